"""The head that a trial trained: at its best validation, or at an earlier checkpoint it kept."""

import math
from pathlib import Path
from typing import Any

from sesttune.config.load import from_dict
from sesttune.data.trial_data import TrialData
from sesttune.errors import UserError
from sesttune.model.head_checkpoint import load_state, read_checkpoint
from sesttune.model.st_head import STHead
from sesttune.training.head_size import head_config
from sesttune.training.records import BEST, LAST, TrialRecord


def trained_head(
    record: TrialRecord, data: TrialData, step: int | None = None
) -> tuple[STHead, dict[str, Any]]:
    """The head in eval mode, and how it was made (plain values; what `head.json` says).

    `step` None: the best. Raises UserError, naming the steps there are, for one that is not kept.
    """
    path = _checkpoint(record, step)
    content = read_checkpoint(path)
    config = from_dict(content["config"])
    head = STHead(head_config(config, data))
    # Of the states, those with an average of the weights are validated on it.
    load_state(head, content.get("average", content["model"]), path)
    about = {
        "step": int(content["step"]),
        "val_loss": _val_loss(record, int(content["step"])),
        "config": content["config"],
        "encoder": dict(content["encoder"]),
        "data_fingerprint": data.fingerprint,
        "genes": data.store.genes,
        "counts_a_cell": data.store.counts_a_cell,
    }
    return head.eval(), about


def _checkpoint(record: TrialRecord, step: int | None) -> Path:
    folder = record.checkpoints
    if step is None:
        if not (folder / BEST).is_file():
            raise UserError(f"trial {record.id} has no best checkpoint ({folder / BEST})")
        return folder / BEST
    lines = record.metrics()
    kept = {int(path.stem[5:]): path for path in folder.glob("step=*.ckpt")}
    if lines and (folder / LAST).is_file():
        kept.setdefault(int(lines[-1]["step"]), folder / LAST)
    if lines and (folder / BEST).is_file():
        kept[int(lines[-1]["best_step"])] = folder / BEST
    if step not in kept:
        shown = ", ".join(f"{known:,}" for known in sorted(kept)) or "none"
        raise UserError(f"--step {step}: trial {record.id} kept checkpoints of steps {shown}")
    return kept[step]


def _val_loss(record: TrialRecord, step: int) -> float | None:
    """As reported at `step`; None where no validation was due there."""
    losses = [line["val_loss"] for line in record.metrics() if line["step"] == step]
    return losses[0] if losses and math.isfinite(losses[0]) else None
