"""How much of a run folder has reached MLflow, and who may send more of it now.

The run folder is the spool: trials append to it and never wait. `tracking.json` says how far each
trial has been delivered, so what is missing can be told without a server. One process at a time
delivers a folder; another one waits for its turn and then reads how far the first one came.
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sesttune.errors import UserError
from sesttune.training.records import (
    BEST,
    PACKING,
    PROFILE,
    REPORT,
    RESULT,
    SETTINGS,
    TrialRecord,
    list_trials,
    read_object,
)

CURSOR, LOCK = "tracking.json", ".tracking.lock"
SWEEP_FILES = (RESULT, SETTINGS, PACKING, REPORT)
"""Of an ended run; of `RESULT` MLflow gets the leaderboard."""


@dataclass(frozen=True)
class KeptFile:
    """A file that MLflow keeps too: whose it is (None: the sweep's), and its folder there."""

    path: Path
    trial: str | None = None
    place: str | None = None

    def mark(self) -> list[int]:
        """What the cursor remembers of it: another size or time is another content."""
        found = self.path.stat()
        return [found.st_size, found.st_mtime_ns]


@dataclass(frozen=True)
class Undelivered:
    """What MLflow lacks: metric lines, news of trials (new, ended, found out), result, files."""

    lines: int
    trials: int
    result: bool
    files: int

    @property
    def anything(self) -> bool:
        return self.lines > 0 or self.trials > 0 or self.result or self.files > 0


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Wait until no other process delivers the run in `folder`, and keep others out meanwhile.

    A killed process lets go of it.
    """
    with (folder / LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def read_cursor(folder: Path) -> dict[str, Any]:
    """`store`, `parent`, `result` where known; what was sent of each of `trials`, and `files`.

    `left_out`: MLflow's runs of trials whose folders were taken away, and numbers given out again.
    A trial that is `deleted` had its run deleted in MLflow by somebody, and is owed nothing.
    """
    try:
        found = read_object(folder / CURSOR, "")
    except UserError:  # lost like one that was removed, which costs time only
        found = None
    return {**new_cursor(), **(found or {})}


def read_result(folder: Path) -> dict[str, Any] | None:
    """How the run ended, where it has; UserError where the file is damaged."""
    return read_object(folder / RESULT, "remove it, and --resume writes it again")


def new_cursor() -> dict[str, Any]:
    """Of a run of which nothing has been sent."""
    return {"trials": {}, "files": {}, "left_out": []}


def undelivered(folder: Path, store_is_gone: bool = False) -> Undelivered:
    """What of the run in `folder` MLflow lacks, as far as this machine remembers."""
    cursor = new_cursor() if store_is_gone else read_cursor(folder)
    lines = trials = 0
    for record in list_trials(folder):
        state = cursor["trials"].get(record.id)
        if state and state.get("deleted"):
            continue
        sent = state["lines"] if state else 0
        lines += max(0, len(record.metrics()) - sent)
        trials += state is None or has_news(record, state)
    result = read_result(folder)
    news = result is not None and cursor.get("result") != result
    return Undelivered(lines, trials, news, len(files_left(folder, cursor)))


def files_left(folder: Path, cursor: dict[str, Any]) -> list[KeptFile]:
    """The files of ended trials and of an ended run that MLflow has not got as they are."""
    found: list[KeptFile] = []
    for record in list_trials(folder):
        if record.finished and not cursor["trials"].get(record.id, {}).get("deleted"):
            paths = (record.folder / "config.yaml", record.checkpoints / BEST)
            found += [KeptFile(path, record.id) for path in paths]
            found += _within(record.folder / PROFILE, record.id)
    if (folder / RESULT).is_file():
        found += [KeptFile(folder / name) for name in SWEEP_FILES]
        found += _within(folder / "plots")
    sent = cursor["files"]
    return [
        kept
        for kept in found
        if kept.path.is_file() and sent.get(file_key(folder, kept)) != kept.mark()
    ]


def file_key(folder: Path, kept: KeptFile) -> str:
    """The file's name in the cursor: its path in the run folder."""
    return kept.path.relative_to(folder).as_posix()


def _within(folder: Path, trial: str | None = None) -> list[KeptFile]:
    return [
        KeptFile(path, trial, path.parent.relative_to(folder.parent).as_posix())
        for path in sorted(folder.rglob("*"))
    ]


def has_news(record: TrialRecord, state: dict[str, Any]) -> bool:
    """Whether a trial has ended, begun again, or found something out, that MLflow has not heard."""
    return record.facts != state.get("facts", {}) or ending(record) != state["ended"]


def ending(record: TrialRecord) -> list[str | None] | None:
    """How a trial ended, as the cursor remembers it; None while it has not."""
    return [record.status, record.stop_reason] if record.finished else None
