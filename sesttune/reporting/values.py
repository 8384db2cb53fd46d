"""What a report shows, as plain values: figures and page know neither run folders nor search."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

DONE, RUNG, PATIENCE, LIMIT, FAILED, OPEN = (
    "trained to its end",
    "stopped by a rung",
    "stopped by patience",
    "stopped by a limit of the sweep",
    "failed",
    "not ended",
)
"""How a trial ended, in the words of a legend."""


@dataclass(frozen=True)
class TimeSpent:
    """Seconds of a trial by what they went to, and its median speed."""

    computing_s: float
    waiting_s: float
    validating_s: float
    startup_s: float
    steps_per_s: float


@dataclass(frozen=True)
class Trial:
    """A trial with its curve: `losses[i]` is the val_loss after `steps[i]` steps.

    `best` is nan before the first validation. `shares`: the trial whose training is its own, too.
    `repeats`: the finalist that it is another draw of.
    """

    id: str
    label: str
    params: Mapping[str, Any]
    steps: tuple[int, ...]
    losses: tuple[float, ...]
    best: float
    best_step: int
    ended: str
    shares: str | None = None
    repeats: str | None = None
    time: TimeSpent | None = None


@dataclass(frozen=True)
class Axis:
    """A searched key. `values` in order for a choice, each as far from the next; else a range."""

    key: str
    name: str
    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 1.0
    log: bool = False

    @property
    def numeric(self) -> bool:
        return all(type(value) in (int, float) for value in self.values)

    def place(self, value: Any) -> float:
        """Where a value lies, from 0 to 1."""
        if self.values:
            return self.values.index(value) / max(1, len(self.values) - 1)
        scale = math.log if self.log else float
        low, high = scale(self.low), scale(self.high)
        return (scale(value) - low) / (high - low)

    def value_at(self, place: float) -> float:
        """The inverse of `place` on a range."""
        if self.log:
            return float(self.low * (self.high / self.low) ** place)
        return self.low + (self.high - self.low) * place


@dataclass(frozen=True)
class Moment:
    """The best val_loss of all after `hours` GPU-hours (or slot-hours) of training."""

    hours: float
    best: float


@dataclass(frozen=True)
class ReportData:
    """A run, whole: `trials` by rank and repeats after them; the first one with a result leads.

    `summary`: the terminal's closing lines by name; `cost`: sentences. `progress` by time, with
    `found`, the moment of the winner's best. `importance` by key, empty where `importance_missing`
    says why.
    """

    name: str
    ended: bool
    summary: tuple[tuple[str, str], ...]
    cost: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    trials: tuple[Trial, ...]
    unit: str = "GPU-hours"
    rungs: tuple[int, ...] = ()
    baselines: Mapping[str, float] = field(default_factory=dict)
    progress: tuple[Moment, ...] = ()
    found: Moment | None = None
    axes: tuple[Axis, ...] = ()
    importance: Mapping[str, float] = field(default_factory=dict)
    importance_missing: str | None = None

    @property
    def ranked(self) -> tuple[Trial, ...]:
        """Trials that have a result, the best first, without repeats."""
        return tuple(t for t in self.trials if t.repeats is None and math.isfinite(t.best))

    @property
    def baseline(self) -> tuple[str, float] | None:
        """The best prediction without a model."""
        return min(self.baselines.items(), key=lambda pair: pair[1], default=None)
