"""Where a trial stands: best value and patience.

Plain values in and out (`state_dict`), no torch and no clock, so the rule that stops
a trial can be read and tested on its own.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass


@dataclass
class Progress:
    """Best-so-far by the patience rule: an improvement smaller than `min_delta` does not count."""

    patience: int | None
    min_delta: float
    best: float = math.inf
    best_step: int = 0
    without_improvement: int = 0

    def update(self, step: int, val_loss: float) -> bool:
        """Take in a validation; returns whether it is a new best."""
        if val_loss < self.best - self.min_delta:
            self.best, self.best_step, self.without_improvement = val_loss, step, 0
            return True
        self.without_improvement += 1
        return False

    @property
    def exhausted(self) -> bool:
        """Whether patience is spent."""
        return self.patience is not None and self.without_improvement >= self.patience

    def state_dict(self) -> dict[str, float]:
        return {k: v for k, v in asdict(self).items() if k not in ("patience", "min_delta")}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.best, self.best_step = float(state["best"]), int(state["best_step"])
        self.without_improvement = int(state["without_improvement"])
