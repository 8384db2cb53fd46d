"""What happens around the optimizer steps: validate, save, report, stop.

At every `val_check_interval` the order is: validation, best checkpoint, last checkpoint,
metrics line, report. A kill between any two loses at most one interval and leaves
no line twice, because the last checkpoint carries the line that follows it.
"""

import math
import time
from collections.abc import Callable
from typing import Any

import lightning
import torch

from sesttune.config.schema import Config
from sesttune.data.loader import Batch, TrainingBatches
from sesttune.training.module import TrialModule
from sesttune.training.progress import Progress
from sesttune.training.records import append_metrics
from sesttune.training.saving import Saver, restore_optimizer
from sesttune.training.validation import mean_loss

Report = Callable[[dict[str, float]], None]


class TrialCallback(lightning.Callback):
    """Drives one trial; `stop_reason` says why it ended."""

    def __init__(
        self,
        config: Config,
        module: TrialModule,
        batches: TrainingBatches,
        val_batches: list[Batch],
        saver: Saver,
        progress: Progress,
        restored: dict[str, Any] | None,
        validate_first: bool,
        report: Report | None,
    ) -> None:
        self._training, self._module, self._batches = config.training, module, batches
        self._val_batches, self._saver, self._progress = val_batches, saver, progress
        self._restored, self._validate_first, self._report = restored, validate_first, report
        self._first_step = int(restored["step"]) if restored else 0
        self._first_sets = int(restored["sets_drawn"]) if restored else 0
        self._set_len = config.model.kwargs.st_cell_set_len
        self.step = self._first_step
        self.last_report: dict[str, float] = restored["report"] if restored else {}
        self.stop_reason = "max_steps"
        self._micro_batches = 0
        self._started = self._interval_start = time.perf_counter()
        self._interval_step, self._interval_waited = self.step, 0.0

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if self._restored is not None:
            restore_optimizer(trainer.optimizers[0], self._restored)
            self._restored = None
        if self._validate_first:
            self._validate(trainer)
        self._start_interval()

    def on_train_batch_start(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, batch: Any, index: int
    ) -> None:
        # The norm is wanted for the step that a report follows, and for no other.
        self._module.measure_grad_norm = self._due(self.step + 1)

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        index: int,
    ) -> None:
        self._micro_batches += 1
        step = self._first_step + trainer.global_step
        if step == self.step:  # still accumulating
            return
        self.step = step
        if step % self._training.log_every_n_steps == 0 and self._diverged():
            self._stop(trainer, "nan")
            return
        if self._due(step):
            self._validate(trainer)
            self._start_interval()
        if step % self._training.ckpt_every_n_steps == 0 and self.stop_reason != "nan":
            self._saver.save_periodic(self._state(trainer, self.last_report))

    def _due(self, step: int) -> bool:
        return step % self._training.val_check_interval == 0 or step == self._training.max_steps

    def _diverged(self) -> bool:
        return not math.isfinite(float(self._module.loss_sum))

    def _validate(self, trainer: lightning.Trainer) -> None:
        rates = self._rates()
        val_loss = self._val_loss(trainer)
        if not math.isfinite(val_loss) or self._diverged():
            self._stop(trainer, "nan")
            return
        if self._progress.update(self.step, val_loss):
            self._saver.save_best(self.step, val_loss)
        module = self._module
        line = {
            "step": self.step,
            "train_loss": float(module.loss_sum) / max(module.loss_count, 1)
            if module.loss_count
            else math.nan,
            "val_loss": val_loss,
            "best_val_loss": self._progress.best,
            "best_step": self._progress.best_step,
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "grad_norm": float(module.grad_norm),
            **rates,
            "max_steps": self._training.max_steps,
            "time": time.time(),
        }
        module.loss_sum.zero_()
        module.loss_count = 0
        self._saver.save_last(self._state(trainer, line))
        self.last_report = line
        append_metrics(self._saver.folder.parent, line)
        if self._report is not None:
            self._report(line)
        if self._progress.exhausted:
            self._stop(trainer, "patience")

    def _val_loss(self, trainer: lightning.Trainer) -> float:
        module = self._module
        module.eval()
        with trainer.precision_plugin.forward_context():
            batches = (trainer.strategy.batch_to_device(batch) for batch in self._val_batches)
            val_loss = mean_loss(module.set_losses, batches)
        module.train()
        return val_loss

    def _state(self, trainer: lightning.Trainer, report: dict[str, float]) -> dict[str, Any]:
        sets = self._first_sets + self._micro_batches * self._training.batch_size
        return self._saver.training_state(self.step, sets, trainer.optimizers[0], report)

    def _rates(self) -> dict[str, float]:
        """Speed since the last validation, its own time left out."""
        now = time.perf_counter()
        elapsed = now - self._interval_start
        steps = (self.step - self._interval_step) / elapsed if elapsed > 0 else 0.0
        sets = self._training.batch_size * self._training.accumulate_grad_batches
        waited = self._batches.waited_s - self._interval_waited
        on_gpu = self._module.device.type == "cuda"
        return {
            "steps_per_s": steps,
            "cells_per_s": steps * sets * self._set_len,
            "data_wait_frac": min(waited / elapsed, 1.0) if elapsed > 0 else 0.0,
            "gpu_mem_gib": torch.cuda.max_memory_allocated() / 2**30 if on_gpu else 0.0,
            "elapsed_s": now - self._started,
        }

    def _start_interval(self) -> None:
        self._interval_start, self._interval_step = time.perf_counter(), self.step
        self._interval_waited = self._batches.waited_s

    def _stop(self, trainer: lightning.Trainer, reason: str) -> None:
        self.stop_reason = reason
        trainer.should_stop = True
