"""One attempt at a trial, from its last good state to its end or to an error."""

from pathlib import Path
from typing import Any

import torch

from sesttune.config.schema import Config
from sesttune.data.loader import TrainingBatches
from sesttune.data.readers import Reader
from sesttune.data.sampling import CellSetSampler
from sesttune.data.trial_data import TrialData
from sesttune.model.st_head import STHead
from sesttune.system.machine import cores
from sesttune.training.callbacks import Report, TrialCallback
from sesttune.training.head_size import head_config
from sesttune.training.micro_batch import MicroBatch
from sesttune.training.module import TrialModule
from sesttune.training.profiling import StepProfiler
from sesttune.training.progress import Progress
from sesttune.training.records import LAST, PATIENCE, append_metrics, cut_metrics
from sesttune.training.saving import Saver, read_training_state, restore_weights
from sesttune.training.starting_point import refuse_other_data, starting_state
from sesttune.training.trainer import make_trainer
from sesttune.training.validation import Validation

_APART = 1_000_003
"""Between the seeds of two replicates, so that those of neighbouring train_seeds differ."""


def fit(
    config: Config,
    data: TrialData,
    reader: Reader,
    device: torch.device,
    micro: MicroBatch,
    folder: Path,
    report: Report | None,
    started: float,
) -> TrialCallback:
    """Continue the trial in `folder`, or begin it, and train to max_steps, patience or NaN.

    Whatever is raised, the checkpoints and metrics in `folder` are those of the last validation,
    and it has been reported.
    """
    training = config.training
    # Initial weights and dropout follow the seed; the sampler has streams of its own.
    seed = training.train_seed + _APART * training.replicate
    torch.manual_seed(seed)
    module = TrialModule(config, STHead(head_config(config, data)), micro.accumulate)
    progress = Progress(training.patience if training.early_stopping else None, training.min_delta)
    last = folder / "checkpoints" / LAST
    own = read_training_state(last) if last.is_file() else None
    state = own or starting_state(config)
    if own is not None:
        restore_weights(module, own, last)
        progress.load_state_dict(own["progress"])
    elif state is not None:
        refuse_other_data(state, config, data)
        restore_weights(module, state, Path(str(config.model.checkpoint)))
    validate_first = _continue_metrics(folder, own)
    first_step = int(state["step"]) if state else 0
    sampler = CellSetSampler(data, config.model.kwargs.st_cell_set_len, seed)
    sampler.load_state_dict({"sets": int(state["sets_drawn"]) if state else 0})
    saver = Saver(folder / "checkpoints", config, data, module, progress)
    if own is not None:
        saver.complete(own, periodic=first_step % training.ckpt_every_n_steps == 0)
    batches = TrainingBatches(sampler, reader, micro.sets, training_workers(config))
    callback = TrialCallback(
        config,
        module,
        batches,
        micro,
        Validation(config, data, reader, micro.sets),
        saver,
        progress,
        state,
        validate_first,
        report,
        started,
    )
    try:
        if progress.exhausted:
            callback.stop_reason = PATIENCE
        elif first_step < training.max_steps:
            callbacks = [callback, *StepProfiler.if_wanted(config, module, folder)]
            steps = training.max_steps - first_step
            make_trainer(training, device, micro, steps, callbacks, folder).fit(module, batches)
    finally:
        try:
            callback.deliver()
        finally:
            batches.close()
            saver.close()
    return callback


def training_workers(config: Config) -> int:
    """Reader threads: as configured, but no more than there are cores to use."""
    return min(config.data.kwargs.num_workers, cores())


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
