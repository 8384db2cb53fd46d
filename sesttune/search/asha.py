"""Stop poor trials early: asynchronous successive halving (Li et al., arXiv:1810.05934).

Rungs lie at `grace * eta^k` steps, or where they are told to. Two rules, both over the best value
so far of all trials that are recorded at a rung:

- *pausing* (where stopped trials keep their checkpoints and can go on, the default): a trial goes
  on while it is among the best 1/eta of its rung, rounded down, itself included. So the first ones
  wait for others to be compared with, and go on later where they pass. The paper's promotions.
- *stopping* (where stopped is stopped): Ray Tune's decision, a trial stops when its value is worse
  than the best 1/eta quantile of those recorded before it. The first ones always go on, which costs
  up to 14 % more GPU-hours to come within 1 % of the best (`benchmarks/schedule.py`).

Both are kept here as plain state over recorded values because Ray's scheduler forgets its rungs
when the driver dies; `replay` rebuilds them from the trials' files.

What is judged: the highest rung reached, once per trial, at the first validation at or past it
(a trial that skips past a rung is judged at the next validation). A tie goes on. A late joiner
meets everything recorded before it. A loss that is not finite is neither judged nor recorded.
"""

import bisect
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Stop:
    """Why a trial was stopped: its value at `rung` (optimizer steps) was above `cutoff`."""

    rung: int
    value: float
    cutoff: float

    def __str__(self) -> str:
        value = f"asha: rung {self.rung}, best val_loss {self.value:.4g}"
        if math.isinf(self.cutoff):
            return f"{value} waits for others to be compared with"
        return f"{value} is above the cutoff {self.cutoff:.4g}"


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
    `pausing`: the rule, see above.
    """

    def __init__(self, steps: Iterable[int], eta: int, pausing: bool = False) -> None:
        self.eta, self.pausing = eta, pausing
        self.recorded: dict[int, dict[str, float]] = {rung: {} for rung in steps}
        self._sorted: dict[int, list[float]] = {rung: [] for rung in self.recorded}

    def report(self, report: Report) -> Stop | None:
        """Record a validation; returns why the trial must stop, or None to go on.

        A repeated report (after a resume) changes nothing. A trial at its own last step is
        recorded but never stopped, it has nothing left to save.
        """
        reached = [rung for rung in self.recorded if rung <= report.step]
        if not reached or not math.isfinite(report.best_val_loss):
            return None
        rung = max(reached)
        if report.trial_id in self.recorded[rung]:
            return None
        before = self._quantile(rung)
        self._record(rung, report.trial_id, report.best_val_loss)
        cutoff = self.cutoff(rung) if self.pausing else before
        if report.last or report.best_val_loss <= cutoff:
            return None
        return Stop(rung, report.best_val_loss, cutoff)

    def cutoff(self, rung: int, at_least: int = 0) -> float:
        """The worst value that may go on from `rung` by all that is recorded there now.

        That of the best 1/eta, rounded down, and of `at_least` so many; -inf where none may.
        """
        values = self._sorted[rung]
        allowed = min(len(values), max(len(values) // self.eta, at_least))
        return values[allowed - 1] if allowed else -math.inf

    def hand_over(self, old: str, new: str) -> Stop | None:
        """The training of trial `old` goes on as that of `new`, which stands where it stood.

        Returns why it must not go on from the highest rung recorded, by all that is there now.
        """
        for values in self.recorded.values():
            if old in values:
                values[new] = values.pop(old)
        found = self.highest(new)
        if found is None:
            return None
        rung, value = found
        cutoff = self.cutoff(rung) if self.pausing else self._quantile(rung)
        return None if value <= cutoff else Stop(rung, value, cutoff)

    def _record(self, rung: int, trial_id: str, value: float) -> None:
        self.recorded[rung][trial_id] = value
        bisect.insort(self._sorted[rung], value)

    def _quantile(self, rung: int) -> float:
        """Ray's cutoff for the next one to be recorded (numpy's percentile); inf for the first."""
        values = self._sorted[rung]
        if not values:
            return math.inf
        place = (len(values) - 1) / self.eta
        low = int(place)
        high = min(low + 1, len(values) - 1)
        return values[low] + (place - low) * (values[high] - values[low])

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
