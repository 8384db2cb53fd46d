"""Which point to try next: Optuna's TPE, random draws, or every point of a grid.

`Suggester.ask` is a function of the finished and running trials alone. The Optuna study
is built anew at each ask, so nothing but the trial folders has to survive a
crash; the cost is milliseconds per ask at hundreds of trials, against hours per trial.

A grid is gone through in a random order. In the order of nested loops the rates rise, each better
than those before, so that every trial passes its rung: 2 to 3 times the steps
(`benchmarks/schedule.py`).
"""

import math
import random
import warnings
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState

from sesttune.search.space import Parameter, Point, SearchSpace

_REDRAWS = 20


@dataclass(frozen=True)
class Observed:
    """What the searcher may know of a trial.

    `value` is its best val_loss so far (None before the first validation), `step` the last
    one reported. `state` is `complete`, `pruned` (stopped by a rung, so not comparable with
    longer trials), `running` or `failed`.
    """

    params: Point
    state: str
    value: float | None = None
    step: int = 0


class Suggester:
    """Ask for points; the same history gives the same answer.

    `kind` is `tpe`, `random` or `grid`. TPE begins with random points: half of the
    `num_trials`, at least 4 and at most 10 (Optuna's own number).
    """

    def __init__(self, space: SearchSpace, kind: str, seed: int, num_trials: int) -> None:
        self.space, self.kind, self.seed = space, kind, seed
        self.startup = min(10, max(4, num_trials // 2))
        self._distributions = {key: _distribution(p) for key, p in space.parameters.items()}
        self._grid: list[Point] | None = None

    def ask(self, history: Sequence[Observed]) -> Point | None:
        """A point nobody has tried, or None when a finite space has none left."""
        tried = [observed.params for observed in history]
        if self.kind == "grid":
            return self._untried(tried)
        study = self._study(history)
        for _ in range(_REDRAWS):
            drawn = study.ask(self._distributions).params
            point = {key: _exact(p, drawn[key]) for key, p in self.space.parameters.items()}
            if point not in tried:
                return point
        return self._untried(tried)

    def _untried(self, tried: list[Point]) -> Point | None:
        if self._grid is None:
            points = self.space.grid()
            assert points is not None, "a real range does not repeat itself"
            self._grid = _shuffled(points, self.seed)
        known = {_hashable(point) for point in tried}
        return next((point for point in self._grid if _hashable(point) not in known), None)

    def _study(self, history: Sequence[Observed]) -> optuna.Study:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        # A generator that went on from ask to ask would be lost with the driver.
        seed = self.seed + len(history)
        sampler: optuna.samplers.BaseSampler = optuna.samplers.RandomSampler(seed)
        if self.kind == "tpe":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                # Joint modelling of the keys; running trials count as bad, so that
                # two workers do not try the same place at the same time.
                sampler = optuna.samplers.TPESampler(
                    n_startup_trials=self.startup, multivariate=True, constant_liar=True, seed=seed
                )
        study = optuna.create_study(sampler=sampler)
        study.add_trials([self._told(seen) for seen in history])
        return study

    def _told(self, seen: Observed) -> FrozenTrial:
        """A trial as Optuna is told of it."""
        states = {
            "complete": TrialState.COMPLETE,
            "pruned": TrialState.PRUNED,
            "running": TrialState.RUNNING,
            "failed": TrialState.FAIL,
        }
        state = states[seen.state]
        value = seen.value if seen.value is not None and math.isfinite(seen.value) else None
        if value is None and state in (TrialState.COMPLETE, TrialState.PRUNED):
            state = TrialState.FAIL  # it ended without a result to learn from
        return optuna.trial.create_trial(
            state=state,
            # A key that the space no longer has means nothing to it.
            params={key: seen.params[key] for key in self._distributions},
            distributions=self._distributions,
            value=value if state == TrialState.COMPLETE else None,
            intermediate_values=None if value is None else {seen.step: value},
        )


def _shuffled(points: Iterable[Point], seed: int) -> list[Point]:
    """`points` in random order, those equal but for max_steps together in the order given."""
    trainings: dict[Hashable, list[Point]] = {}
    for point in points:
        rest = {key: value for key, value in point.items() if key != "training.max_steps"}
        trainings.setdefault(_hashable(rest), []).append(point)
    order = list(trainings.values())
    random.Random(seed).shuffle(order)
    return [point for training in order for point in training]


def _hashable(point: Point) -> Hashable:
    return tuple(sorted(point.items()))


def _exact(parameter: Parameter, drawn: Any) -> Any:
    """`drawn` as the grid writes it: Optuna's multiples of a quantum carry rounding errors."""
    grid = parameter.grid() if parameter.kind == "uniform" else None
    return drawn if grid is None else min(grid, key=lambda value: abs(value - drawn))


def _distribution(parameter: Parameter) -> BaseDistribution:
    if parameter.kind == "choice":
        return CategoricalDistribution(parameter.values)
    if parameter.kind == "int":
        return IntDistribution(
            int(parameter.low), int(parameter.high), step=int(parameter.quantum or 1)
        )
    if parameter.kind == "loguniform":
        return FloatDistribution(parameter.low, parameter.high, log=True)
    return FloatDistribution(parameter.low, parameter.high, step=parameter.quantum)
