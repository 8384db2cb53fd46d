"""A trial as the schedule sees it: its point, how far it is, and why it stands still."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from sesttune.training.records import MAX_STEPS, PATIENCE

WAITING, BEHIND, RUNNING, ENDED = "waiting", "behind", "running", "ended"
"""Handed out next; waits for the trial it continues; has a slot; has ended."""

ASHA, ERROR, BUDGET = "asha", "error: ", "budget: "
"""How the reason begins: stopped by a rung, failed otherwise, stopped by a limit of the sweep."""

_REMEMBERED = ("max_steps", "repeats", "shares", "continues", "remedies", "passed")


@dataclass
class TrialState:
    """One trial. `best` is its best val_loss until `step`, its last validation.

    `max_steps`: its budget now; an extension raises it over `budget`, the one it began with.
    """

    id: str
    point: dict[str, Any]
    max_steps: int
    budget: int
    state: str = WAITING
    reason: str | None = None
    step: int = -1
    best: float = math.inf
    settled: float = math.inf
    """Its best within `budget`: what it is compared by, whatever an extension adds."""
    repeats: str | None = None
    """The finalist of which it is another draw."""
    shares: str | None = None
    """The trial whose training is its own, too."""
    continues: str | None = None
    """The trial, of this sweep or an earlier one, whose checkpoint it begins with."""
    remedies: str | None = None
    """The unstable trial that it is the remedy of."""
    passed: list[int] = field(default_factory=list)
    """Rungs at which it had been stopped, and went on from later."""
    under_way: bool = False
    """It had a GPU when the driver died."""

    @property
    def active(self) -> bool:
        return self.state != ENDED

    @property
    def earlier(self) -> bool:
        """Whether it is of an earlier sweep (`SWEEP/ID`)."""
        return "/" in self.id

    @property
    def stopped_by_rung(self) -> bool:
        return (self.reason or "").startswith(ASHA)

    @property
    def complete(self) -> bool:
        """It was trained as long as its budget, whatever became of an extension."""
        extended = self.max_steps > self.budget
        return self.reason in (MAX_STEPS, PATIENCE) or (extended and not self.active)

    def take(self, step: int, best: float) -> None:
        """Take in a validation."""
        self.step, self.best = step, best
        if step <= self.budget:
            self.settled = best

    def state_dict(self) -> dict[str, Any]:
        """What no curve tells: to be kept with the trial's record."""
        values = asdict(self)
        return {name: values[name] for name in _REMEMBERED if values[name]}

    @classmethod
    def remembered(
        cls, trial_id: str, point: dict[str, Any], budget: int, kept: Mapping[str, Any]
    ) -> Self:
        """The trial of a record; `kept` is its `state_dict`."""
        return cls(trial_id, point, budget=budget, **{"max_steps": budget, **kept})
