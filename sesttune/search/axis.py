"""A searched key as Optuna sees it.

A choice of numbers is told as their places in order, so that a sampler knows that 16 lies between
8 and 32; as mere names a Gaussian process's sixteen trials ended half as far again from the best.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from sesttune.search.parameter import Parameter


@dataclass(frozen=True)
class Axis:
    """`values`: what the places of a choice of numbers stand for; None for any other key."""

    distribution: BaseDistribution
    values: tuple[Any, ...] | None = None
    grid: Sequence[Any] | None = None
    """The values of a range with a quantum, as a file would write them."""

    def suggest(self, trial: optuna.Trial, key: str) -> Any:
        """The value that the sampler of `trial` wants."""
        about = self.distribution
        if isinstance(about, CategoricalDistribution):
            return trial.suggest_categorical(key, about.choices)
        if isinstance(about, IntDistribution):
            place = trial.suggest_int(key, about.low, about.high, step=about.step)
            return place if self.values is None else self.values[place]
        assert isinstance(about, FloatDistribution)
        drawn = trial.suggest_float(key, about.low, about.high, step=about.step, log=about.log)
        if self.grid is None:
            return drawn
        # Optuna's multiples of a quantum carry rounding errors.
        return min(self.grid, key=lambda value: abs(value - drawn))

    def coded(self, value: Any) -> Any:
        """The inverse of `suggest`."""
        return value if self.values is None else self.values.index(value)


def axis_of(parameter: Parameter) -> Axis:
    """The axis of a searched key."""
    with warnings.catch_warnings():
        # That a quantum does not divide its range: the last value is below `high`, here as there.
        warnings.simplefilter("ignore", UserWarning)
        return _axis(parameter)


def _axis(parameter: Parameter) -> Axis:
    low, high, quantum = parameter.low, parameter.high, parameter.quantum
    if parameter.kind == "choice":
        values = parameter.values
        if len(values) > 1 and all(type(value) in (int, float) for value in values):
            return Axis(IntDistribution(0, len(values) - 1), tuple(sorted(values)))
        return Axis(CategoricalDistribution(values))
    if parameter.kind == "int":
        return Axis(IntDistribution(int(low), int(high), step=int(quantum or 1)))
    if parameter.kind == "loguniform":
        return Axis(FloatDistribution(low, high, log=True))
    return Axis(FloatDistribution(low, high, step=quantum), grid=parameter.grid())
