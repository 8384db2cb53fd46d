"""Which point to try next: Optuna's samplers, random draws, or every point of a grid.

`Suggester.ask` is a function of the finished and running trials alone. The Optuna study
is built anew at each ask, so nothing but the trial folders has to survive a
crash; an ask takes some 50 ms at 300 trials and a Gaussian process 0.3 s (6 s at 1,000), for which
the driver stands still, against hours per trial.

A grid is gone through in a random order. In the order of nested loops the rates rise, each better
than those before, so that every trial passes its rung: 2 to 3 times the steps
(`benchmarks/schedule.py`).
"""

import math
import random
import warnings
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import optuna
from optuna.trial import FrozenTrial

from sesttune.search.axis import axis_of
from sesttune.search.parameter import Point
from sesttune.search.space import SearchSpace
from sesttune.search.trial_state import ERROR, TrialState
from sesttune.training.records import NAN

_REDRAWS = 5
"""Of a sampler (a Gaussian process is fitted at each), before a random point is taken."""
_RANDOM_REDRAWS = 1_000
_AHEAD = 50
"""Points of a Sobol sequence beyond the number of trials, where constraints forbid some."""


@dataclass(frozen=True)
class Observed:
    """What the searcher may know of a trial.

    `value` is its best val_loss so far (None before the first validation), `step` the last
    one reported. `state` is `complete`, `pruned` (stopped by a rung), `shorter` (of an earlier
    sweep that trained it for less), `running`, `diverged` (its loss was no number) or `failed`
    (through no fault of its point).
    """

    params: Point
    state: str
    value: float | None = None
    step: int = 0

    @classmethod
    def of(cls, trial: TrialState) -> Self:
        if trial.active:
            state = "running"
        elif trial.complete:
            state = "complete"
        elif trial.reason == NAN:
            state = "diverged"
        else:
            state = "failed" if (trial.reason or "").startswith(ERROR) else "pruned"
        seen = trial.step >= 0
        return cls(trial.point, state, trial.settled if seen else None, max(trial.step, 0))

    @cached_property
    def key(self) -> Hashable:
        """Equal for equal points."""
        return _hashable(self.params)


class Suggester:
    """Ask for points; the same history gives the same answer.

    `kind`: `tpe` (a mixture model of good and bad points), `gp` (a Gaussian process), `qmc` (a
    scrambled Sobol sequence), `random` or `grid`. The two that learn begin with random points: half
    of the `num_trials`, at least 4 and at most 10 (Optuna's own number).
    """

    def __init__(self, space: SearchSpace, kind: str, seed: int, num_trials: int) -> None:
        self.space, self.kind, self.seed = space, kind, seed
        self.startup = min(10, max(4, num_trials // 2))
        self._axes = {key: axis_of(parameter) for key, parameter in space.parameters.items()}
        self._sequence: list[Point] = []
        self._grid: list[Point] | None = None

    def may_propose(self, point: Point) -> bool:
        """Whether `point` lies in the space and no constraint forbids it."""
        return self.space.holds(point) and self.space.allows(point)

    def ask(self, history: Sequence[Observed]) -> Point | None:
        """A point nobody has tried, or None when a finite space has none left."""
        tried = {seen.key for seen in history if seen.state != "shorter"}
        for point in self._proposals(history):
            if _hashable(point) not in tried and self.space.allows(point):
                return point
        return self._untried(tried)

    def _proposals(self, history: Sequence[Observed]) -> Iterator[Point]:
        if self.kind == "grid":
            return
        if self.kind == "qmc":
            yield from (self._in_sequence(number) for number in range(len(history) + _AHEAD))
            return
        # A generator that went on from ask to ask would be lost with the driver.
        study = optuna.create_study(sampler=self._sampler(self.seed + len(history)))
        if self.kind != "random":
            worst = max((v for seen in history if (v := _result(seen)) is not None), default=None)
            # A trial outside the space, as a sweep that was begun with another has, cannot be told.
            inside = [seen for seen in history if self.space.holds(seen.params)]
            study.add_trials([self._told(seen, worst) for seen in inside])
        for _ in range(_REDRAWS):
            yield self._drawn(study.ask())

    def _sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        samplers = optuna.samplers
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            if self.kind == "tpe":
                # Joint modelling of the keys; running trials count as bad, so that
                # two workers do not try the same place at the same time.
                return samplers.TPESampler(
                    n_startup_trials=self.startup,
                    multivariate=True,
                    group=self.space.conditional,
                    constant_liar=True,
                    seed=seed,
                )
            if self.kind == "gp":
                return samplers.GPSampler(
                    seed=seed, n_startup_trials=self.startup, warn_independent_sampling=False
                )
            if self.kind == "qmc":
                return samplers.QMCSampler(
                    scramble=True, seed=seed, warn_independent_sampling=False
                )
            return samplers.RandomSampler(seed)

    def _in_sequence(self, number: int) -> Point:
        if number >= len(self._sequence):
            study = optuna.create_study(sampler=self._sampler(self.seed))
            self._sequence = []
            for _ in range(2 * number + _AHEAD):
                trial = study.ask()
                self._sequence.append(self._drawn(trial))
                study.tell(trial, 0.0)  # after the first one Optuna knows which keys there are
        return self._sequence[number]

    def _drawn(self, trial: optuna.Trial) -> Point:
        point: Point = {}
        for key, parameter in self.space.parameters.items():
            if parameter.active(point):
                point[key] = self._axes[key].suggest(trial, key)
        return point

    def _untried(self, tried: set[Hashable]) -> Point | None:
        if self._grid is None:
            points = self.space.grid()
            self._grid = [] if points is None else _shuffled(points, self.seed)
        if self._grid or self.kind == "grid":
            return next((point for point in self._grid if _hashable(point) not in tried), None)
        rng = random.Random(self.seed + len(tried))
        drawn = (self.space.random_point(rng) for _ in range(_RANDOM_REDRAWS))
        free = (p for p in drawn if _hashable(p) not in tried and self.space.allows(p))
        return next(free, None)

    def _told(self, seen: Observed, worst: float | None) -> FrozenTrial:
        """A trial as Optuna is told of it; `worst`: the highest loss that one ended with.

        A Gaussian process learns from complete trials alone. A stopped trial had lost at its rung
        to those that went on, so its loss there ranks it; one that diverged is as bad as any. Not
        as an untrained head, which one that diverges or runs may be at: among losses of 3 and 4 a
        single 40 hides from the process which is better.
        """
        status = optuna.trial.TrialState
        stopped = status.COMPLETE if self.kind == "gp" else status.PRUNED
        states = {
            "complete": status.COMPLETE,
            "pruned": stopped,
            "shorter": stopped,
            "diverged": stopped,
            "running": status.RUNNING,
            "failed": status.FAIL,
        }
        state = states[seen.state]
        value = _finite(seen)
        if seen.state == "diverged" and worst is not None:
            value = worst
        if value is None and state == status.COMPLETE:
            state = status.FAIL  # it ended without a result to learn from
        complete = state == status.COMPLETE
        seen_at = {seen.step: value} if value is not None and seen.state != "diverged" else None
        # A key that the space no longer has means nothing to it.
        known = {key: seen.params[key] for key in self._axes if key in seen.params}
        return optuna.trial.create_trial(
            state=state,
            params={key: self._axes[key].coded(value) for key, value in known.items()},
            distributions={key: self._axes[key].distribution for key in known},
            value=value if complete else None,
            intermediate_values=seen_at,
        )


def _finite(seen: Observed) -> float | None:
    return seen.value if seen.value is not None and math.isfinite(seen.value) else None


def _result(seen: Observed) -> float | None:
    """The loss of a trial that is neither under way nor lost."""
    return None if seen.state in ("running", "diverged", "failed") else _finite(seen)


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
