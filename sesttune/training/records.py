"""What a run and its trials leave on disk, and how the rest of the program reads it.

The run folder is the single truth: the searcher, the rungs, the live table and
MLflow are all filled from `trial.json` and `metrics.jsonl`, so any of them can
die and be filled again.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from sesttune.errors import UserError
from sesttune.system.atomic import room_on_disk, write_text

SETTINGS, DATA, RESULT = "sweep.yaml", "data.json", "result.json"
REPORT, PACKING = "report.html", "packing.json"
"""In a run folder; docs/architecture.md says what each holds."""
METRICS, RECORD, SCHEDULE = "metrics.jsonl", "trial.json", "schedule.json"
BEST, LAST = "best.ckpt", "last.ckpt"
PROFILE = "profile"
FINISHED = ("done", "stopped", "failed")
MAX_STEPS, PATIENCE, NAN = "max_steps", "patience", "nan"
"""Why a training ended by itself: its budget, too long without a gain, a loss that is no number."""

Line = Mapping[str, float]
"""One report line of a trial: step, train_loss, val_loss, ... (`callbacks.py`)."""


@dataclass(frozen=True)
class TrialRecord:
    """One trial: its searched parameters, where it stands, and why it stopped.

    `status` is `pending`, `running`, `done` (reached max_steps), `stopped` (patience,
    ASHA, a limit of the sweep) or `failed`; `stop_reason` says which in words. `facts` is what was
    found out on the way: where the data lie, a batch made smaller for want of memory.
    """

    id: str
    folder: Path
    params: dict[str, Any] = field(default_factory=dict)
    status: str = "pending"
    stop_reason: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        return self.status in FINISHED

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def metrics(self) -> list[dict[str, float]]:
        return read_metrics(self.folder)


def read_settings(run_folder: Path) -> dict[str, Any]:
    """What the run was started with: `command`, `space` and `config`."""
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(run_folder / SETTINGS)))


def read_data(run_folder: Path) -> dict[str, Any]:
    """What the run is trained on: `id`, `manifest`, `fingerprint`, `encoder`, ..."""
    return dict(json.loads((run_folder / DATA).read_text()))


def trial_folder(run_folder: Path, trial_id: str) -> Path:
    """`<run>/trials/<id>`."""
    return run_folder / "trials" / trial_id


def write_trial(record: TrialRecord) -> TrialRecord:
    """Write `trial.json` (temporary name, then rename)."""
    record.folder.mkdir(parents=True, exist_ok=True)
    content = {k: v for k, v in asdict(record).items() if k != "folder"}
    write_text(record.folder / RECORD, json.dumps(content))
    return record


def read_trial(folder: Path) -> TrialRecord | None:
    """The record in `folder`, or None where there is none; UserError where it is damaged."""
    cure = f"restore it, or move {folder} away to leave this trial out"
    content = read_object(folder / RECORD, cure)
    if content is None:
        return None
    try:
        return TrialRecord(folder=folder, **content)
    except TypeError:
        raise UserError(f"{folder / RECORD} is not a record of a trial: {cure}") from None


def read_object(path: Path, cure: str) -> dict[str, Any] | None:
    """The JSON object in `path`, None where there is no file; UserError where it is damaged."""
    try:
        return dict(json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        raise UserError(f"{path} is damaged: {cure}") from None


def update_trial(folder: Path, status: str, stop_reason: str | None) -> TrialRecord:
    """Change status and reason, keeping the rest (a bare folder gets a new record)."""
    record = read_trial(folder) or TrialRecord(folder.name, folder)
    return write_trial(replace(record, status=status, stop_reason=stop_reason))


def note_facts(folder: Path, **facts: Any) -> TrialRecord:
    """Add to the facts of a trial (a bare folder gets a new record)."""
    record = read_trial(folder) or TrialRecord(folder.name, folder)
    return write_trial(replace(record, facts={**record.facts, **facts}))


def list_trials(run_folder: Path) -> list[TrialRecord]:
    """The trials of a run, by id."""
    folders = sorted((run_folder / "trials").glob("*/"), key=lambda folder: in_order(folder.name))
    return [record for folder in folders if (record := read_trial(folder)) is not None]


def in_order(trial_id: str) -> tuple[int, str]:
    """A key to sort ids by: 1000 comes after 999, not after 100."""
    return len(trial_id), trial_id


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The reported lines; one torn by a kill at the end of the file is left out.

    Raises UserError where another one is damaged.
    """
    try:
        text = (folder / METRICS).read_text(errors="replace")
    except FileNotFoundError:
        return []
    found = []
    for number, line in enumerate(text.split("\n")[:-1], 1):
        try:
            found.append(dict(json.loads(line)))
        except (ValueError, TypeError):
            path = folder / METRICS
            raise UserError(f"{path}: line {number} is damaged: remove that line") from None
    return found


def metrics_bytes(folder: Path) -> int:
    """Size of the reported lines, which tells cheaply that there are new ones."""
    path = folder / METRICS
    return path.stat().st_size if path.exists() else 0


def append_metrics(folder: Path, metrics: Line) -> None:
    """Add one line; written in one call, so a kill leaves at most a torn last line."""
    with room_on_disk(folder), (folder / METRICS).open("a") as file:
        file.write(json.dumps(dict(metrics)) + "\n")


def cut_metrics(folder: Path, last_step: int) -> list[dict[str, float]]:
    """Drop the lines after `last_step` and a torn one; returns those kept."""
    kept = [line for line in read_metrics(folder) if line["step"] <= last_step]
    write_text(folder / METRICS, "".join(json.dumps(line) + "\n" for line in kept))
    return kept
