"""One trial, the same for `sesttune train`, for Ray workers and for tests.

A trial lives in its folder: called again on the same folder it continues from
`checkpoints/last.ckpt`, so whoever runs trials needs no resume logic of its own.
"""

import logging
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from sesttune.config.load import to_yaml
from sesttune.config.schema import Config
from sesttune.data.readers import choose_reader
from sesttune.data.trial_data import TrialData
from sesttune.system.atomic import write_text
from sesttune.system.host_memory import keep_freed_memory
from sesttune.system.out_of_memory import give_back, is_out_of_memory, keep_to_share
from sesttune.training.callbacks import Report
from sesttune.training.compiled import check_compiler, forget_compiled
from sesttune.training.environment import note_environment
from sesttune.training.fit import fit
from sesttune.training.micro_batch import MicroBatch
from sesttune.training.records import (
    LAST,
    MAX_STEPS,
    NAN,
    PATIENCE,
    note_facts,
    read_trial,
    update_trial,
)
from sesttune.training.trainer import pick_device

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrialResult:
    """How a trial ended; `stop_reason` is `max_steps`, `patience` or `nan`.

    `startup_s` is nan where no step was left to do.
    """

    stop_reason: str
    step: int
    best_val_loss: float
    best_step: int
    startup_s: float


def run_trial(
    config: Config,
    manifest: Path,
    folder: Path,
    report: Report | None = None,
    started: float | None = None,
) -> TrialResult:
    """Train until max_steps, patience or divergence, and leave everything in `folder`.

    `report` gets each validation's metrics as a dict (see `callbacks`). `started`: when the trial
    was asked for (seconds since the epoch), where that was before this call. Continues from the
    folder's own last checkpoint where there is one, else from `model.checkpoint` where that
    is set. Raises UserError for settings that this machine cannot follow (no GPU, no compiler, no
    room on the device for the store), a checkpoint that cannot be continued, a full disk, and a
    device too small for one cell set.
    """
    known = read_trial(folder)
    if started is None or (folder / "checkpoints" / LAST).exists():
        started = time.time()
    update_trial(folder, "running", None)
    write_text(folder / "config.yaml", to_yaml(config))
    device = pick_device(config.training)
    check_compiler(config.training)
    # As the loss leaves it after products in TF32. What is compiled is found again by this setting,
    # which has a third value, unset, until then.
    torch.set_float32_matmul_precision("highest")
    if device.type == "cpu":
        keep_freed_memory()
    give_back()  # or what an earlier trial of this process left counts as taken
    data = TrialData(manifest)
    share = config.sweep.gpu_share
    keep_to_share(device, share)
    reader = choose_reader(data, device, config.data.kwargs.store_location, share)
    note_facts(folder, data=reader.description)
    note_environment(folder, device)
    micro = MicroBatch(config.training.batch_size, config.training.accumulate_grad_batches)
    if known is not None and "micro_batch" in known.facts:  # it ran out of memory before
        whole = micro.sets * micro.accumulate
        micro = MicroBatch(known.facts["micro_batch"], whole // known.facts["micro_batch"])
    try:
        while True:
            try:
                done = fit(config, data, reader, device, micro, folder, report, started)
                break
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
            # Outside of `except`, whose traceback would keep the tensors of the failed step.
            micro = micro.smaller()
            give_back()
            note_facts(folder, micro_batch=micro.sets)
            told = "out of memory: %d sets a pass, %d passes a step"
            log.warning(told, micro.sets, micro.accumulate)
    finally:
        forget_compiled(config.training.compile)
    status = {MAX_STEPS: "done", PATIENCE: "stopped", NAN: "failed"}[done.stop_reason]
    update_trial(folder, status, done.stop_reason)
    return TrialResult(
        done.stop_reason,
        done.step,
        done.progress.best,
        done.progress.best_step,
        done.startup_s,
    )
