"""Stop poor trials early: asynchronous successive halving (Li et al., arXiv:1810.05934).

Rungs lie at `grace * eta^k` steps. The decision is Ray Tune's own (a trial stops at a
rung when its value is worse than the best 1/eta quantile of those recorded there before
it), kept here as plain state over recorded values because Ray's scheduler forgets its rungs
when the driver dies; `replay` rebuilds them from the trials' files.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
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


@dataclass
class Rungs:
    """The rungs of one sweep and what was recorded at each.

    `grace`: steps before any trial may be stopped, the first rung. `eta`: the best 1/eta go on.
    `max_t`: steps of the longest trial; there are no rungs at or beyond it. Lower is better.
    """

    grace: int
    eta: int
    max_t: int
    recorded: dict[int, dict[str, float]] = field(init=False)

    def __post_init__(self) -> None:
        steps = []
        rung = self.grace
        while rung < self.max_t:
            steps.append(rung)
            rung *= self.eta
        self.recorded = {rung: {} for rung in steps}

    def report(self, report: Report) -> Stop | None:
        """Record a validation; returns why the trial must stop, or None to go on.

        Only the highest rung reached is judged, once per trial: a repeated report (after
        a resume) changes nothing. A trial at its own last step is recorded but never
        stopped, it has nothing left to save. A value that is not finite is left to
        the trial's own NaN stop.
        """
        reached = [rung for rung in self.recorded if rung <= report.step]
        if not reached or not np.isfinite(report.best_val_loss):
            return None
        rung = max(reached)
        before = self.recorded[rung]
        if report.trial_id in before:
            return None
        cutoff = float(np.percentile(list(before.values()), 100 / self.eta)) if before else np.inf
        before[report.trial_id] = report.best_val_loss
        if report.last or report.best_val_loss <= cutoff:
            return None
        return Stop(rung, report.best_val_loss, cutoff)

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
