"""Stop poor trials early: asynchronous successive halving (Li et al., arXiv:1810.05934).

Rungs lie at `grace * eta^k` steps, or where they are told to. The decision is Ray Tune's own (a
trial stops at a rung when its value is worse than the best 1/eta quantile of those recorded
there before it), kept here as plain state over recorded values because Ray's scheduler forgets
its rungs when the driver dies; `replay` rebuilds them from the trials' files.

What is judged: the highest rung reached, once per trial, at the first validation at or past it
(a trial that skips past a rung is judged at the next validation). A tie goes on. A late joiner
meets everything recorded before it. A loss that is not finite is neither judged nor recorded.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


@dataclass(frozen=True)
class Stop:
    """Why a trial was stopped: its value at `rung` (optimizer steps) was above `cutoff`."""

    rung: int
    value: float
    cutoff: float

    def __str__(self) -> str:
        return (
            f"asha: rung {self.rung}, best val_loss {self.value:.4g} is above the cutoff "
            f"{self.cutoff:.4g}"
        )


class Report(NamedTuple):
    """One validation of a trial; `last` says that it was at the trial's own max_steps."""

    trial_id: str
    step: int
    best_val_loss: float
    last: bool


def geometric(grace: int, eta: int, max_t: int) -> list[int]:
    """Rungs at `grace * eta^k`; none at or beyond `max_t`, the steps of the longest trial."""
    steps = []
    rung = grace
    while rung < max_t:
        steps.append(rung)
        rung *= eta
    return steps


class Rungs:
    """The rungs of one sweep and what was recorded at each.

    `steps`: where they lie, in optimizer steps. `eta`: the best 1/eta go on. Lower is better.
    """

    def __init__(self, steps: Iterable[int], eta: int) -> None:
        self.eta = eta
        self.recorded: dict[int, dict[str, float]] = {rung: {} for rung in sorted(steps)}

    def report(self, report: Report) -> Stop | None:
        """Record a validation; returns why the trial must stop, or None to go on.

        A repeated report (after a resume) changes nothing. A trial at its own last step is
        recorded but never stopped, it has nothing left to save.
        """
        reached = [rung for rung in self.recorded if rung <= report.step]
        if not reached or not np.isfinite(report.best_val_loss):
            return None
        rung = max(reached)
        if report.trial_id in self.recorded[rung]:
            return None
        cutoff = self.cutoff(rung)
        self.recorded[rung][report.trial_id] = report.best_val_loss
        if report.last or report.best_val_loss <= cutoff:
            return None
        return Stop(rung, report.best_val_loss, cutoff)

    def cutoff(self, rung: int) -> float:
        """What a value must not be above at `rung`, by all that is recorded there now."""
        values = list(self.recorded[rung].values())
        return float(np.percentile(values, 100 / self.eta)) if values else np.inf

    def highest(self, trial_id: str) -> tuple[int, float] | None:
        """The highest rung at which a trial is recorded, and its value there."""
        for rung in reversed(self.recorded):
            if trial_id in self.recorded[rung]:
                return rung, self.recorded[rung][trial_id]
        return None

    def replay(self, reports: Iterable[Report]) -> dict[str, Stop]:
        """Record past validations in the order they were made.

        Returns the stops that were due at a trial's *last* report: decided, but not yet
        carried out when the driver died. A trial that reported again after
        a rung had been let through it, whatever the replay makes of the timing.
        """
        due: dict[str, Stop] = {}
        for report in reports:
            due.pop(report.trial_id, None)
            stop = self.report(report)
            if stop is not None:
                due[report.trial_id] = stop
        return due
