"""What a sweep may cost, and what it has cost so far, over all the drivers it has had."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path

from sesttune.config.duration import seconds
from sesttune.config.schema import SweepConfig
from sesttune.search.trial_state import BUDGET
from sesttune.system.atomic import write_text
from sesttune.training.records import list_trials, read_object

LIMITS = ("sweep.time_budget", "sweep.gpu_hours", "sweep.target_val_loss")
_SPENT = "spent.json"
_SAVED_EVERY_S = 10.0


class Spending:
    """Counts wall-clock and GPU time of the sweep in `folder` while its driver runs.

    `gpus`: what one running trial takes; where there are no GPUs its slot counts as one.
    `clock`: seconds, never going back. The time between two drivers costs nothing.
    """

    def __init__(
        self,
        folder: Path,
        limits: SweepConfig,
        gpus: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path, self._limits, self._clock = folder / _SPENT, limits, clock
        self._gpus = gpus or 1.0
        known = read_spent(folder)
        self.wall_s: float = known.get("wall_s", 0.0)
        self.gpu_s: float = known.get("gpu_s", 0.0)
        self._running = 0
        self._last = self._saved = clock()

    def tick(self, running: int) -> None:
        """Count the time since the last call; from now on `running` trials run."""
        now = self._clock()
        self.wall_s += now - self._last
        self.gpu_s += (now - self._last) * self._running * self._gpus
        self._last, self._running = now, running
        if now - self._saved >= _SAVED_EVERY_S:
            self.save()

    def save(self) -> None:
        """Write the counts; a killed driver loses the last seconds of them."""
        self._saved = self._clock()
        write_text(self._path, json.dumps({"wall_s": self.wall_s, "gpu_s": self.gpu_s}))

    def exceeded(self, best: float) -> str | None:
        """Which limit is reached, by a sweep whose best val_loss is `best`."""
        limits = self._limits
        if limits.target_val_loss is not None and best <= limits.target_val_loss:
            return f"{BUDGET}val_loss {best:.4g} reached sweep.target_val_loss"
        if limits.time_budget is not None:
            allowed = seconds(limits.time_budget, "sweep.time_budget")
            if self.wall_s >= allowed:
                return f"{BUDGET}sweep.time_budget={limits.time_budget} is spent"
        if limits.gpu_hours is not None and self.gpu_s >= 3600 * limits.gpu_hours:
            return f"{BUDGET}sweep.gpu_hours={limits.gpu_hours:g} are spent"
        return None


def read_spent(folder: Path) -> dict[str, float]:
    """Seconds `wall_s` and `gpu_s` of a sweep so far; empty before its first driver."""
    return read_object(folder / _SPENT, "remove it, and what was spent counts from 0 again") or {}


def limit_reached(folder: Path, limits: SweepConfig) -> str | None:
    """Which limit the sweep in `folder` has reached by what its files say; None: none."""
    curves = (record.metrics() for record in list_trials(folder))
    best = min((lines[-1]["best_val_loss"] for lines in curves if lines), default=math.inf)
    return Spending(folder, limits, gpus=0.0).exceeded(best)
