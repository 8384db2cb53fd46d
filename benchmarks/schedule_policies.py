"""The policies that `benchmarks/schedule.py` compares, each behind the same protocol.

All run on the same machines: every trial validates and spends its patience alike. What differs is
which point comes next and which trial is stopped. Other projects' schedulers are their own objects.
"""

import itertools
import random
from collections.abc import Callable
from datetime import datetime
from typing import Any

from sesttune.config.load import load_config
from sesttune.search.protocol import Job
from sesttune.search.rules import rules_of
from sesttune.search.schedule import Schedule
from sesttune.search.searcher import Suggester
from sesttune.search.simulator import SimulatedCurves
from sesttune.search.space_file import parse_space

BATCHES, BUDGETS = [8, 16, 32], [20_000, 40_000, 50_000, 60_000]
GRID_LRS = [1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2]
TRIALS = len(BATCHES) * len(BUDGETS) * len(GRID_LRS)
GRACE, FACTOR, LONGEST, INTERVAL, PATIENCE = 5_000, 4, 60_000, 500, 10
Point = dict[str, Any]


def _point(lr: float, batch: int, steps: int) -> Point:
    return {"training.lr": lr, "training.batch_size": batch, "training.max_steps": steps}


def grid_points() -> list[Point]:
    """Every candidate, in the order of nested loops."""
    return [_point(*values) for values in itertools.product(GRID_LRS, BATCHES, BUDGETS)]


def shuffled_points(seed: int) -> list[Point]:
    """Every candidate, in random order."""
    points = grid_points()
    random.Random(seed).shuffle(points)
    return points


class Listed:
    """Points from a list; no trial is stopped."""

    def __init__(self, points: list[Point]) -> None:
        self._points, self._numbers = iter(points), itertools.count()
        self.done = False

    def next(self) -> Job | None:
        point = next(self._points, None)
        self.done = point is None
        if point is None:
            return None
        return Job(str(next(self._numbers)), point, point["training.max_steps"])

    def report(self, job_id: str, step: int, best_val_loss: float) -> bool:
        return False

    def end(self, job_id: str, reason: str) -> None:
        pass


class _RayTrial:
    """What Ray's scheduler asks of a trial."""

    def __init__(self, trial_id: str) -> None:
        self.trial_id = trial_id


class RayAsha(Listed):
    """Points from a list under Ray Tune's AsyncHyperBandScheduler."""

    def __init__(self, points: list[Point]) -> None:
        from ray.tune.schedulers import AsyncHyperBandScheduler

        super().__init__(points)
        self._asha = AsyncHyperBandScheduler(
            time_attr="step",
            metric="best_val_loss",
            mode="min",
            max_t=LONGEST,
            grace_period=GRACE,
            reduction_factor=FACTOR,
        )
        self._trials: dict[str, _RayTrial] = {}

    def next(self) -> Job | None:
        job = super().next()
        if job is not None:
            self._trials[job.id] = _RayTrial(job.id)
            self._asha.on_trial_add(None, self._trials[job.id])
        return job

    def report(self, job_id: str, step: int, best_val_loss: float) -> bool:
        result = {"step": step, "best_val_loss": best_val_loss}
        return self._asha.on_trial_result(None, self._trials[job_id], result) == "STOP"


class SyneTuneAsha:
    """Syne Tune's ASHA, stopping type, with its own random search."""

    def __init__(self, seed: int) -> None:
        from syne_tune.backend.trial_status import Trial
        from syne_tune.config_space import choice
        from syne_tune.optimizer.schedulers.asha import AsynchronousSuccessiveHalving

        self._new = Trial
        self._asha = AsynchronousSuccessiveHalving(
            {"lr": choice(GRID_LRS), "batch": choice(BATCHES), "steps": choice(BUDGETS)},
            metric="best_val_loss",
            time_attr="step",
            max_t=LONGEST,
            grace_period=GRACE,
            reduction_factor=FACTOR,
            random_seed=seed,
        )
        self._trials: dict[str, Any] = {}
        self.done = False

    def next(self) -> Job | None:
        self.done = len(self._trials) >= TRIALS
        if self.done:
            return None
        number, config = len(self._trials), self._asha.suggest().config
        trial = self._new(number, config, datetime(2000, 1, 1))
        self._trials[str(number)] = trial
        self._asha.on_trial_add(trial)
        point = _point(config["lr"], int(config["batch"]), int(config["steps"]))
        return Job(str(number), point, point["training.max_steps"])

    def report(self, job_id: str, step: int, best_val_loss: float) -> bool:
        result = {"step": step, "best_val_loss": best_val_loss}
        decision = self._asha.on_trial_result(self._trials[job_id], result)
        return str(decision) == "STOP"

    def end(self, job_id: str, reason: str) -> None:
        pass


class OptunaHyperband:
    """Optuna's TPE with its HyperbandPruner."""

    def __init__(self, seed: int) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._study = optuna.create_study(
            sampler=optuna.samplers.TPESampler(seed=seed),
            pruner=optuna.pruners.HyperbandPruner(GRACE, LONGEST, FACTOR),
        )
        self._state = optuna.trial.TrialState
        self._trials: dict[str, Any] = {}
        self._best: dict[str, float] = {}
        self.done = False

    def next(self) -> Job | None:
        self.done = len(self._trials) >= TRIALS
        if self.done:
            return None
        trial = self._study.ask()
        lr = trial.suggest_categorical("lr", GRID_LRS)
        batch = trial.suggest_categorical("batch", BATCHES)
        steps = trial.suggest_categorical("steps", BUDGETS)
        self._trials[str(trial.number)] = trial
        return Job(str(trial.number), _point(lr, batch, steps), steps)

    def report(self, job_id: str, step: int, best_val_loss: float) -> bool:
        self._best[job_id] = best_val_loss
        self._trials[job_id].report(best_val_loss, step)
        return bool(self._trials[job_id].should_prune())

    def end(self, job_id: str, reason: str) -> None:
        trial = self._trials[job_id]
        if reason == "stopped":
            self._study.tell(trial, state=self._state.PRUNED)
        elif job_id not in self._best or reason == "nan":
            self._study.tell(trial, state=self._state.FAIL)
        else:
            self._study.tell(trial, self._best[job_id])


def ours(seed: int, *overrides: str, rates: str = "grid") -> tuple[Schedule, SimulatedCurves]:
    """Our schedule; `overrides` are settings, e.g. `sweep.seeds=1`.

    `rates`: the `grid` of candidates, or `all` learning rates of its range, for a searcher (`gp`).
    """
    searched: Point = {"type": "choice", "values": GRID_LRS}
    if rates == "all":
        searched = {"type": "loguniform", "low": GRID_LRS[0], "high": GRID_LRS[-1]}
    content = {
        "searcher": "grid" if rates == "grid" else "gp",
        "num_trials": TRIALS,
        "parameters": {
            "training.lr": searched,
            "training.batch_size": {"type": "choice", "values": BATCHES},
            "training.max_steps": {"type": "choice", "values": BUDGETS},
        },
    }
    config = load_config([f"sweep.seed={seed}", *overrides])
    space, curves = parse_space(content, "benchmark"), SimulatedCurves(PATIENCE * INTERVAL)
    kind = config.sweep.searcher or space.searcher
    rules = rules_of(config, space)
    return Schedule(rules, Suggester(space, kind, seed, rules.trials), curves), curves


def others() -> dict[str, Callable[[int], Any]]:
    """Every other policy by name, made from a seed; Syne Tune's where it is installed."""
    policies: dict[str, Callable[[int], Any]] = {
        "full grid": lambda seed: Listed(grid_points()),
        "random order": lambda seed: Listed(shuffled_points(seed)),
        "Optuna TPE + Hyperband": OptunaHyperband,
        "Ray ASHA": lambda seed: RayAsha(shuffled_points(seed)),
    }
    try:
        import syne_tune  # noqa: F401
    except ImportError:
        return policies
    return policies | {"Syne Tune ASHA": SyneTuneAsha}
