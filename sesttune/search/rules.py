"""What a person can set about a sweep's schedule, from the settings and the search space."""

import math
from dataclasses import dataclass

from sesttune.config.schema import Config
from sesttune.search.asha import geometric
from sesttune.search.shared_training import MAX_STEPS_KEY
from sesttune.search.space import SearchSpace


@dataclass(frozen=True)
class Rules:
    """The keys of `sweep.*` say what they mean."""

    trials: int
    rungs: tuple[int, ...]
    eta: int
    max_steps: int
    """Budget of a point that names none."""
    longest: int | None = None
    """The largest max_steps searched; None where it is not searched."""
    lr_schedule: str = "constant"
    """Of a point that names none."""
    continue_stopped: bool = True
    extend_to: tuple[int, ...] = ()
    finalists: int = 1
    seeds: int = 1
    try_remedies: bool = False


def rules_of(config: Config, space: SearchSpace) -> Rules:
    """The schedule's rules as the settings have them."""
    sweep = config.sweep
    longest = space.longest(config)
    rungs: list[int] = []
    if sweep.asha:
        rungs = sweep.rungs or geometric(grace_period(config), sweep.reduction_factor, longest)
    return Rules(
        trials=trial_count(config, space),
        rungs=tuple(rung for rung in rungs if rung < longest),
        eta=sweep.reduction_factor,
        max_steps=config.training.max_steps,
        longest=longest if MAX_STEPS_KEY in space.parameters else None,
        lr_schedule=config.training.lr_schedule,
        continue_stopped=sweep.continue_stopped,
        extend_to=tuple(sweep.extend_to),
        finalists=sweep.finalists,
        seeds=sweep.seeds,
        try_remedies=sweep.try_remedies,
    )


def grace_period(config: Config) -> int:
    """Steps before ASHA may stop a trial: as set, else as many as patience would wait."""
    return config.sweep.grace_period or (
        config.training.patience * config.training.val_check_interval
    )


def trial_count(config: Config, space: SearchSpace) -> int:
    """Trials of the sweep: as asked for, but all of a grid and no more than a space holds."""
    points = space.on(config).size()
    if (config.sweep.searcher or space.searcher) == "grid" and math.isfinite(points):
        return int(points)
    return int(min(config.sweep.num_trials or space.num_trials, points))
