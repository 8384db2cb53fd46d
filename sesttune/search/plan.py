"""What a sweep will take, before it starts: trials, GPU-hours, wall-clock and disk.

The sweep's own schedule is run in virtual time with measured step times: over typical learning
curves for what to expect, and without rungs over curves that never go flat for the worst. So the
plan knows every rule there is.
"""

import math
import statistics
from collections.abc import Mapping
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

from sesttune.config.load import with_point
from sesttune.config.schema import Config
from sesttune.errors import UserError
from sesttune.search.calibrate import Speed
from sesttune.search.landscape import BATCH, PowerLaw
from sesttune.search.rules import rules_of
from sesttune.search.schedule import Schedule
from sesttune.search.searcher import Suggester
from sesttune.search.simulator import Landscape, SimulatedCurves, Simulation
from sesttune.search.space import SearchSpace

GB = 1e9
_TYPICAL = 5
"""Landscapes that the expectation is the median of."""
_KEPT_FREE = 1 * GB
"""Of the disk, for metrics, logs and whatever else is written there."""


@dataclass(frozen=True)
class Outlay:
    """Of a whole sweep. `trainings`: trials that take a GPU; `gpu_s`: GPU-seconds (or of slots)."""

    trainings: int
    steps: int
    gpu_s: float
    wall_s: float


@dataclass(frozen=True)
class Plan:
    """`rungs` in optimizer steps; `disk_gb`: checkpoints and MLflow's copies in the worst case."""

    trials: int
    rungs: tuple[int, ...]
    expected: Outlay
    worst: Outlay
    trial_gb: float
    disk_gb: float


def make_plan(config: Config, space: SearchSpace, slots: int, gpus: float, speed: Speed) -> Plan:
    """The plan for `slots` trials at once, each on `gpus` GPUs (0: on the CPU)."""
    space = space.on(config)
    rules = rules_of(config, space)
    share = gpus or 1.0
    typical = [
        _simulate(config, space, slots, share, speed, _typical(config, seed))
        for seed in range(_TYPICAL)
    ]
    expected = sorted(typical, key=lambda outlay: outlay.wall_s)[_TYPICAL // 2]
    unstopped = with_point(config, {"sweep.asha": False})
    worst = _simulate(unstopped, space, slots, share, speed, _Relentless())
    # Stopping and going on costs a start each time, which can be more than it saves.
    worst = Outlay(*(max(pair) for pair in zip(astuple(worst), astuple(expected), strict=True)))
    trial_gb = _trial_bytes(config, space, speed) / GB
    copies = worst.trainings * speed.best_bytes / GB  # what MLflow keeps of each
    transient = slots * speed.last_bytes / GB  # while a file is replaced there are two
    disk = worst.trainings * trial_gb + copies + transient
    return Plan(rules.trials, rules.rungs, expected, worst, trial_gb, disk)


def check_disk(plan: Plan, config: Config, speed: Speed, free_bytes: float, folder: Path) -> None:
    """Raise UserError, with what would fit, where the worst case does not fit the disk."""
    free = (free_bytes - _KEPT_FREE) / GB
    if plan.disk_gb <= free:
        return
    trainings = plan.worst.trainings
    fixed = plan.disk_gb - trainings * plan.trial_gb
    least = (speed.best_bytes + speed.last_bytes) / GB
    affordable = (free - fixed) / trainings
    if affordable >= least:
        hint = f"training.checkpoint_budget_gb={math.floor(100 * affordable) / 100:g} would fit"
    else:
        copy = speed.best_bytes / GB
        fitting = int(max(0.0, free - fixed + trainings * copy) / (least + copy))
        repeats = config.sweep.finalists * (config.sweep.seeds - 1)
        hint = (
            f"not even with best and last checkpoints alone ({least:.2g} GB a trial): free some "
            f"space, or search at most {max(1, fitting - repeats)} points (sweep.num_trials, or a "
            f"smaller grid) with training.checkpoint_budget_gb={math.ceil(100 * least) / 100:g}"
        )
    raise UserError(
        f"the sweep may fill {plan.disk_gb:.3g} GB of {folder} ({trainings} trials of "
        f"{plan.trial_gb:.2g} GB), where {free_bytes / GB:.3g} GB are free: {hint}"
    )


def _simulate(
    config: Config,
    space: SearchSpace,
    slots: int,
    share: float,
    speed: Speed,
    curves: Landscape,
) -> Outlay:
    training, rules = config.training, rules_of(config, space)
    patience = training.patience if training.early_stopping else 10**9
    looked_up = SimulatedCurves(training.patience * training.val_check_interval)
    kind = "grid" if (config.sweep.searcher or space.searcher) == "grid" else "random"
    searcher = Suggester(space, kind, config.sweep.seed, rules.trials)
    schedule = Schedule(rules, searcher, looked_up)
    timed = _Timed(curves, speed, config)
    simulation = Simulation(
        schedule, timed, slots, training.val_check_interval, patience, speed.startup_s
    )
    looked_up.simulation = simulation
    simulation.run()
    trainings = len(simulation.trainings)
    return Outlay(trainings, simulation.steps, share * simulation.slot_s, simulation.time_s)


@dataclass
class _Timed:
    """Curves with the measured times of this machine."""

    curves: Landscape
    speed: Speed
    config: Config

    def val_loss(self, point: Mapping[str, Any], step: int) -> float:
        return self.curves.val_loss(point, step)

    def step_s(self, point: Mapping[str, Any]) -> float:
        training = self.config.training
        accumulate = point.get("training.accumulate_grad_batches", training.accumulate_grad_batches)
        sets = int(point.get(BATCH, training.batch_size)) * int(accumulate)
        validating = self.speed.validation_s / training.val_check_interval
        return self.speed.fixed_s + self.speed.set_s * sets + validating


class _Relentless:
    """Curves that fall by the same share for ever."""

    def val_loss(self, point: Mapping[str, Any], step: int) -> float:
        return math.exp(-step / 10_000)

    def step_s(self, point: Mapping[str, Any]) -> float:
        return 0.0


def _typical(config: Config, seed: int) -> PowerLaw:
    """Curves of the shape seen on real data, on the time scale of these budgets."""
    window = config.training.patience * config.training.val_check_interval
    return replace(
        PowerLaw(seed=seed, lr=config.training.lr, batch_size=config.training.batch_size),
        steps_scale=0.2 * window,
        plateau=3.0,
        turn=0.6 * window,
        best_lr=statistics.geometric_mean([3e-4, config.training.lr]) * 2 ** (seed - 2),
        diverges_at=math.inf,
    )


def _trial_bytes(config: Config, space: SearchSpace, speed: Speed) -> float:
    """Checkpoints of one trial: best, last, and the periodic ones that its budget lets stand."""
    periodic = space.longest(config) // config.training.ckpt_every_n_steps
    wanted = speed.best_bytes + speed.last_bytes * (1 + periodic)
    budget = config.training.checkpoint_budget_gb * GB
    return max(speed.best_bytes + speed.last_bytes, min(budget, wanted))
