"""What happens around the optimizer steps: validate, save, report, stop.

At every `val_check_interval` the order is: validation, last checkpoint, best checkpoint,
metrics line, report. A kill between any two loses at most one interval and leaves
no line twice, because the last checkpoint carries the line that follows it. The files are
written by the saver's thread; the report is made by the loop once it has written them.
"""

import math
import time
from collections.abc import Callable
from typing import Any

import lightning
import torch

from sesttune.config.schema import Config
from sesttune.data.loader import TrainingBatches
from sesttune.system.host_memory import mapped_gib
from sesttune.training.compiled import NOT_COMPILED
from sesttune.training.learning_rate import learning_rate
from sesttune.training.micro_batch import MicroBatch
from sesttune.training.module import TrialModule
from sesttune.training.progress import Progress
from sesttune.training.records import MAX_STEPS, NAN, PATIENCE
from sesttune.training.saving import Saver, restore_optimizer
from sesttune.training.system_metrics import SystemMetrics
from sesttune.training.validation import Validation

Report = Callable[[dict[str, float]], None]


class TrialCallback(lightning.Callback):
    """Drives one trial; `stop_reason` says why it ended.

    `restored` is the training state it continues from, `started` the time (seconds since the
    epoch) from which its start-up counts.
    """

    def __init__(
        self,
        config: Config,
        module: TrialModule,
        batches: TrainingBatches,
        micro: MicroBatch,
        validation: Validation,
        saver: Saver,
        progress: Progress,
        restored: dict[str, Any] | None,
        validate_first: bool,
        report: Report | None,
        started: float,
    ) -> None:
        self._training, self._module, self._batches = config.training, module, batches
        self._micro, self._validation = micro, validation
        self._saver, self.progress, self._report = saver, progress, report
        self._restored, self._validate_first = restored, validate_first
        self._first_step = int(restored["step"]) if restored else 0
        self._first_sets = int(restored["sets_drawn"]) if restored else 0
        self._set_len = config.model.kwargs.st_cell_set_len
        self._store_folder = validation.data.store.folder
        self.step = self._first_step
        self.last_report: dict[str, float] = restored["report"] if restored else {}
        self.stop_reason = MAX_STEPS
        self._unreported: dict[str, float] | None = None
        self._micro_batches = 0
        self._compiles = config.training.compile not in NOT_COMPILED
        self._asked_for, self.startup_s = started, math.nan
        self._started = self._interval_start = time.perf_counter()
        self._interval_step, self._interval_waited = self.step, 0.0

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self._system = SystemMetrics(self._saver.folder, module.device)
        if module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()  # of earlier trials, and of a larger micro-batch
        if self._restored is not None:
            restore_optimizer(trainer.optimizers[0], self._restored)
            self._restored = None
        if self._validate_first:
            self._validate(trainer)
        self._start_interval()

    def on_train_batch_start(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, batch: Any, index: int
    ) -> None:
        if math.isnan(self.startup_s) and not self._compiles:
            self._note_startup()
        if index % self._micro.accumulate == 0:
            # Not between loss and backward, as Lightning would: their memory is left to the pass,
            # and a recorded one, which overwrites its last gradients, leaves none unreadable.
            trainer.optimizers[0].zero_grad()
        # The norm is wanted for the step that a report follows, and for no other.
        self._module.measure_grad_norm = self._due(self.step + 1)
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = learning_rate(self.step, self._training)

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
        self._module.update_average(step)
        if math.isnan(self.startup_s):
            self._note_startup()  # compiling is of the start, not of the speed
            self._start_interval()
        if self._unreported is not None and not self._saver.writing:
            self.deliver()
        if step % self._training.log_every_n_steps == 0 and self._diverged():
            self._stop(trainer, NAN)
            return
        periodic = step % self._training.ckpt_every_n_steps == 0
        if self._due(step):
            self._validate(trainer, periodic)
            self._start_interval()
        elif periodic:
            self._saver.save_periodic(self._state(trainer, self.last_report))

    def deliver(self) -> None:
        """Wait until what was begun is on disk, and report it."""
        self._saver.settle()
        line, self._unreported = self._unreported, None
        if line is not None and self._report is not None:
            self._report(line)

    def _note_startup(self) -> None:
        if self._module.device.type == "cuda":
            torch.cuda.synchronize()
        # Another machine, whose clock may be ahead of this one's, may have asked for it.
        self.startup_s = max(0.0, time.time() - self._asked_for)

    def _due(self, step: int) -> bool:
        return step % self._training.val_check_interval == 0 or step == self._training.max_steps

    def _diverged(self) -> bool:
        return not math.isfinite(float(self._module.loss_sum))

    def _validate(self, trainer: lightning.Trainer, periodic: bool = False) -> None:
        rates = self._rates()
        with trainer.precision_plugin.forward_context():
            val_loss = self._validation.loss(self._module)
        if not math.isfinite(val_loss) or self._diverged():
            self._stop(trainer, NAN)
            return
        self.deliver()
        best = self.progress.update(self.step, val_loss)
        module = self._module
        line = {
            "step": self.step,
            "train_loss": float(module.loss_sum) / module.loss_count
            if module.loss_count
            else math.nan,
            "val_loss": val_loss,
            "best_val_loss": self.progress.best,
            "best_step": self.progress.best_step,
            "lr": learning_rate(max(self.step - 1, 0), self._training),
            "grad_norm": float(module.grad_norm),
            **rates,
            **self._system.read(),
            "max_steps": self._training.max_steps,
            "time": time.time(),
        }
        module.loss_sum.zero_()
        module.loss_count = 0
        self._saver.save_validated(self._state(trainer, line), best, periodic)
        self.last_report = self._unreported = line
        if self.progress.exhausted:
            self._stop(trainer, PATIENCE)

    def _state(self, trainer: lightning.Trainer, report: dict[str, float]) -> dict[str, Any]:
        sets = self._first_sets + self._micro_batches * self._micro.sets
        return self._saver.training_state(self.step, sets, trainer.optimizers[0], report)

    def _rates(self) -> dict[str, float]:
        """Speed since the last validation, its own time left out; and memory."""
        on_gpu = self._module.device.type == "cuda"
        if on_gpu:
            torch.cuda.synchronize()  # what is queued belongs to the interval
        now = time.perf_counter()
        elapsed = now - self._interval_start
        steps = (self.step - self._interval_step) / elapsed if elapsed > 0 else 0.0
        sets = self._micro.sets * self._micro.accumulate
        waited = self._batches.waited_s - self._interval_waited
        return {
            "steps_per_s": steps,
            "cells_per_s": steps * sets * self._set_len,
            "data_wait_frac": min(waited / elapsed, 1.0) if steps else 0.0,
            "gpu_mem_gib": torch.cuda.max_memory_allocated() / 2**30 if on_gpu else 0.0,
            "store_pss_gib": mapped_gib(self._store_folder)[1],
            "startup_s": self.startup_s,
            "elapsed_s": now - self._started,
        }

    def _start_interval(self) -> None:
        self._interval_start, self._interval_step = time.perf_counter(), self.step
        self._interval_waited = self._batches.waited_s

    def _stop(self, trainer: lightning.Trainer, reason: str) -> None:
        self.stop_reason = reason
        trainer.should_stop = True
