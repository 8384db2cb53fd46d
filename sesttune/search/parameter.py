"""One searched key: its values or range, and the conditions on which it is searched."""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_FEW = 64
"""Values of a range that are each checked."""

Point = dict[str, Any]
"""One setting of every searched key, e.g. `{"training.lr": 1e-4}`."""


@dataclass(frozen=True)
class Parameter:
    """One searched key. `values` for a choice; `low` to `high`, both included, else.

    `when`: other keys and the values that they must have for this one to be searched.
    """

    kind: str
    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    quantum: float | None = None
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def active(self, point: Point) -> bool:
        """Whether it is searched beside the settings that `point` has so far."""
        return all(key in point and point[key] in values for key, values in self.when.items())

    def draw(self, rng: random.Random) -> Any:
        """A random value."""
        grid = self.grid()
        if grid is not None:
            return rng.choice(grid)
        if self.kind == "loguniform":
            return math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
        return rng.uniform(self.low, self.high)

    def grid(self) -> Sequence[Any] | None:
        """Every value it can take, in order; None where there is no end of them."""
        if self.kind == "choice":
            return self.values
        if self.kind == "int":
            return range(int(self.low), int(self.high) + 1, int(self.quantum or 1))
        if self.kind == "uniform" and self.quantum:
            steps = int((self.high - self.low) / self.quantum + 1e-9)
            # Rounded, so that 3 x 0.1 is 0.3 as the file would write it.
            return tuple(round(self.low + k * self.quantum, 12) for k in range(steps + 1))
        return None

    def takes(self, value: Any) -> bool:
        """Whether it can have this value."""
        grid = self.grid()
        if grid is None:
            return isinstance(value, int | float) and self.low <= value <= self.high
        return value in grid

    def extremes(self) -> tuple[Any, ...]:
        """Values that must be acceptable settings: all where they are few, else the ends."""
        grid = self.grid()
        if grid is not None:
            few = self.kind == "choice" or len(grid) <= _FEW
            return tuple(grid) if few else (grid[0], grid[-1])
        # A fraction in between, so that a real range over a whole-number key is refused.
        return (float(self.low), float(self.high), self.low + (self.high - self.low) / math.e)

    def to_dict(self) -> dict[str, Any]:
        """As the file describes it."""
        described: dict[str, Any] = {"type": self.kind}
        if self.kind == "choice":
            described["values"] = list(self.values)
        else:
            described |= {"low": self.low, "high": self.high}
        if self.quantum is not None:
            described["quantum"] = self.quantum
        if self.when:
            described["when"] = {key: list(values) for key, values in self.when.items()}
        return described
