"""One trial, the same for `sesttune train`, for Ray workers and for tests.

A trial lives in its folder: called again on the same folder it continues from
`checkpoints/last.ckpt`, so whoever runs trials needs no resume logic of its own.
"""

import logging
import os
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch

from sesttune.atomic import write_text
from sesttune.config.load import to_yaml
from sesttune.config.schema import Config
from sesttune.data.loader import TrainingBatches
from sesttune.data.trial_data import TrialData
from sesttune.errors import UserError
from sesttune.model.st_head import STHead
from sesttune.training.callbacks import Report, TrialCallback
from sesttune.training.module import TrialModule, head_config
from sesttune.training.progress import Progress
from sesttune.training.records import BEST, LAST, append_metrics, cut_metrics, update_trial
from sesttune.training.saving import Saver, read_training_state, restore_weights
from sesttune.training.validation import validation_batches


@dataclass(frozen=True)
class TrialResult:
    """How a trial ended; `stop_reason` is `max_steps`, `patience` or `nan`."""

    stop_reason: str
    step: int
    best_val_loss: float
    best_step: int
    best_checkpoint: Path
    startup_s: float


def run_trial(
    config: Config, manifest: Path, folder: Path, report: Report | None = None
) -> TrialResult:
    """Train until max_steps, patience or divergence, and leave everything in `folder`.

    `report` gets each validation's metrics as a dict (see `callbacks`). Continues from the
    folder's own last checkpoint where there is one, else from `model.checkpoint` where that
    is set. Raises UserError for a checkpoint that cannot be continued and a full disk.
    """
    entered = time.perf_counter()
    _quiet_lightning()
    update_trial(folder, "running", None)
    write_text(folder / "config.yaml", to_yaml(config))
    data = TrialData.open(manifest)
    # Initial weights and dropout follow the seed; the sampler has streams of its own.
    torch.manual_seed(config.training.train_seed)
    module = TrialModule(config, STHead(head_config(config, data)))
    training = config.training
    progress = Progress(training.patience if training.early_stopping else None, training.min_delta)
    saver = Saver(folder / "checkpoints", config, data, module, progress)
    state, own = _starting_state(config, saver.folder)
    if state is not None:
        restore_weights(module, state, saver.folder / LAST)
    validate_first = _continue_metrics(folder, state if own else None)
    if own and state is not None:
        progress.load_state_dict(state["progress"])
    first_step = int(state["step"]) if state else 0
    _check_steps_left(config, first_step, own)
    batches = TrainingBatches(
        data,
        config.model.kwargs.st_cell_set_len,
        training.batch_size,
        training.train_seed,
        training_workers(config),
        drawn=int(state["sets_drawn"]) if state else 0,
    )
    callback = TrialCallback(
        config,
        module,
        batches,
        list(validation_batches(config, data)),
        saver,
        progress,
        state,
        validate_first,
        report,
    )
    startup_s = time.perf_counter() - entered
    if first_step < training.max_steps and not progress.exhausted:
        try:
            _trainer(config, training.max_steps - first_step, callback).fit(module, batches)
        finally:
            batches.close()
    elif progress.exhausted:
        callback.stop_reason = "patience"
    status = {"max_steps": "done", "patience": "stopped", "nan": "failed"}[callback.stop_reason]
    update_trial(folder, status, callback.stop_reason)
    return TrialResult(
        callback.stop_reason,
        callback.step,
        progress.best,
        progress.best_step,
        saver.folder / BEST,
        startup_s,
    )


def training_workers(config: Config) -> int:
    """Reader threads: as configured, but no more than the machine has cores."""
    return min(config.data.kwargs.num_workers, os.cpu_count() or 1)


def _trainer(config: Config, steps: int, callback: TrialCallback) -> lightning.Trainer:
    training = config.training
    on_gpu = training.device != "cpu" and torch.cuda.is_available()
    if training.device == "cuda" and not on_gpu:
        raise UserError(
            "training.device=cuda, but there is no CUDA device; set training.device=cpu"
        )
    bf16 = training.precision == "bf16" or (
        training.precision == "auto" and on_gpu and torch.cuda.is_bf16_supported()
    )
    return lightning.Trainer(
        accelerator="gpu" if on_gpu else "cpu",
        devices=1,
        precision="bf16-mixed" if bf16 else "32-true",
        max_steps=steps,
        max_epochs=-1,
        min_epochs=0,
        accumulate_grad_batches=training.accumulate_grad_batches,
        gradient_clip_val=training.gradient_clip_val,
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def _starting_state(config: Config, checkpoints: Path) -> tuple[dict[str, Any] | None, bool]:
    """The state to continue from, and whether it is this folder's own."""
    if (checkpoints / LAST).is_file():
        return read_training_state(checkpoints / LAST), True
    if config.model.checkpoint is not None:
        return read_training_state(Path(config.model.checkpoint).expanduser()), False
    return None, False


def _check_steps_left(config: Config, first_step: int, own: bool) -> None:
    if not own and first_step >= config.training.max_steps:
        raise UserError(
            f"model.checkpoint is at step {first_step} already: training.max_steps="
            f"{config.training.max_steps} must be larger"
        )


def _continue_metrics(folder: Path, own: dict[str, Any] | None) -> bool:
    """Make the metrics end where the checkpoint does; returns whether to validate at once."""
    if own is None:
        cut_metrics(folder, -1)
        return True
    line = own["report"]
    kept = cut_metrics(folder, int(line["step"]))
    if not kept or kept[-1]["step"] < line["step"]:  # killed between checkpoint and line
        append_metrics(folder, line)
    return False


def _quiet_lightning() -> None:
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Reading ahead and validation are done here, so Lightning's advice on them does not apply.
    warnings.filterwarnings("ignore", module="lightning")
