"""How much of a run folder has reached MLflow, and who may send more of it now.

The run folder is the spool: trials append to it and never wait. `tracking.json` says how far each
trial has been delivered, so what is missing can be told without a server. One process at a time
delivers a folder; another one waits for its turn and then reads how far the first one came.
"""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sesttune.training.records import TrialRecord, list_trials

CURSOR, LOCK, RESULT = "tracking.json", ".tracking.lock", "result.json"


@dataclass(frozen=True)
class Undelivered:
    """What MLflow lacks: metric lines, news of trials (new, ended, found out), the result."""

    lines: int
    trials: int
    result: bool

    @property
    def anything(self) -> bool:
        return self.lines > 0 or self.trials > 0 or self.result


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Wait until no other process delivers the run in `folder`, and keep others out meanwhile.

    A killed process lets go of it.
    """
    with (folder / LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def read_cursor(folder: Path) -> dict[str, Any]:
    """`store`, `parent`, `result` where known; of each of `trials` its run and what was sent."""
    return {"trials": {}, **(read_json(folder / CURSOR) or {})}


def undelivered(folder: Path) -> Undelivered:
    """What of the run in `folder` MLflow lacks, as far as this machine remembers."""
    cursor = read_cursor(folder)
    lines = trials = 0
    for record in list_trials(folder):
        state = cursor["trials"].get(record.id)
        sent = state["lines"] if state else 0
        lines += max(0, len(record.metrics()) - sent)
        trials += state is None or has_news(record, state)
    result = read_json(folder / RESULT)
    return Undelivered(lines, trials, result is not None and cursor.get("result") != result)


def has_news(record: TrialRecord, state: dict[str, Any]) -> bool:
    """Whether a trial has ended, begun again, or found something out, that MLflow has not heard."""
    return record.facts != state.get("facts", {}) or ending(record) != state["ended"]


def ending(record: TrialRecord) -> list[str | None] | None:
    """How a trial ended, as the cursor remembers it; None while it has not."""
    return [record.status, record.stop_reason] if record.finished else None


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in `path`; None where there is no such file."""
    try:
        return dict(json.loads(path.read_text()))
    except FileNotFoundError:
        return None
