"""Measure a step before a sweep is planned: some tens of real ones, in a process of their own.

Two trials of the space's smallest and largest batch run alone, one after the other, with the widest
and deepest head that the space holds. Times of batch sizes between lie on a line through the two.
"""

import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sesttune.config.load import from_dict, to_dict, with_point
from sesttune.config.schema import Config
from sesttune.errors import UserError
from sesttune.search.measuring import Lost, Place, in_a_process
from sesttune.search.space import SearchSpace
from sesttune.training.records import BEST, LAST

INTERVAL, _INTERVALS, _ENOUGH_S = 10, 5, 20.0
"""Steps between validations; how many of them; a slow machine stops after three and this time."""
_BATCH = "training.batch_size"


@dataclass(frozen=True)
class Speed:
    """Seconds of a step are `fixed_s + set_s * sets`; bytes are of one checkpoint file."""

    fixed_s: float
    set_s: float
    validation_s: float
    startup_s: float
    best_bytes: int
    last_bytes: int


@dataclass(frozen=True)
class Sample:
    """One measured trial; `sets` are those of an optimizer step, `val_losses` by step."""

    sets: int
    step_s: float
    validation_s: float
    startup_s: float
    best_bytes: int
    last_bytes: int
    val_losses: dict[int, float]


def calibrate(
    config: Config,
    space: SearchSpace,
    manifest: Path,
    folder: Path,
    threads: int,
    place: Place = in_a_process,
) -> Speed:
    """Measure on the prepared data of `manifest`; `folder` is made and removed again.

    `threads`: compute threads of a trial on the CPU. Raises UserError where not even the smallest
    batch can be trained.
    """
    sizes = _batch_sizes(config, space)
    points = [{_BATCH: sets} for sets in sorted({sizes[0], sizes[-1]})]
    return _line(measure(config, space, manifest, folder, threads, points, place=place))


def measure(
    config: Config,
    space: SearchSpace,
    manifest: Path,
    folder: Path,
    threads: int,
    points: Sequence[dict[str, Any]],
    interval: int = INTERVAL,
    place: Place = in_a_process,
) -> list[Sample]:
    """Five intervals of the widest head and largest batch of `space`, but for what a point says.

    One after the other in a process of their own, whose imports would else take longer than the
    steps; arguments and errors are those of `calibrate`.
    """
    widest = space.widest(config) | {_BATCH: _batch_sizes(config, space)[-1]}
    trials = [_settings(config, widest | point, interval) for point in points]
    arguments = [to_dict(trial) for trial in trials], str(manifest), str(folder), threads
    try:
        samples: list[Sample] = place(_measure_all, *arguments)
        return samples
    except Lost:
        sizes = ", ".join(str(trial.training.batch_size) for trial in trials)
        raise UserError(
            f"the process that measured trials of {_BATCH}={sizes} was lost (killed, "
            f"or out of memory): free some memory of its machine, or lower {_BATCH}"
        ) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _batch_sizes(config: Config, space: SearchSpace) -> list[int]:
    """The smallest and the largest batch, which may be one."""
    batches = space.parameters.get(_BATCH)
    found = {int(b) for b in batches.extremes()} if batches else {config.training.batch_size}
    return sorted(found)


def _line(samples: list[Sample]) -> Speed:
    """The speed by the samples of the smallest and the largest batch (they may be one)."""
    small, large = samples[0], samples[-1]
    set_s = large.step_s / large.sets
    if large.sets > small.sets:
        set_s = max(0.0, (large.step_s - small.step_s) / (large.sets - small.sets))
    return Speed(
        max(0.0, large.step_s - set_s * large.sets),
        set_s,
        large.validation_s,
        small.startup_s,
        large.best_bytes,
        large.last_bytes,
    )


def _settings(config: Config, point: dict[str, Any], interval: int) -> Config:
    return with_point(
        config,
        point
        | {
            "training.max_steps": interval * _INTERVALS,
            "training.val_check_interval": interval,
            "training.ckpt_every_n_steps": 10**9,
            "training.early_stopping": False,
            "training.warmup_steps": 0,
            "training.profile": False,
            "model.checkpoint": None,
        },
    )


class _Enough(Exception):
    """Ends a measured trial."""


def _measure_all(
    settings: list[dict[str, Any]], manifest: str, folder: str, threads: int
) -> list[Sample]:
    import torch

    torch.set_num_threads(threads)
    return [
        _measure(from_dict(trial), Path(manifest), Path(folder, str(number)))
        for number, trial in enumerate(settings)
    ]


def _measure(config: Config, manifest: Path, folder: Path) -> Sample:
    from sesttune.training.trial import run_trial

    lines: list[dict[str, float]] = []

    def watch(line: dict[str, float]) -> None:
        lines.append(line)
        if len(lines) > 3 and line["time"] - lines[1]["time"] > _ENOUGH_S:
            raise _Enough

    with suppress(_Enough):
        run_trial(config, manifest, folder, watch)
    trained = lines[2:] or lines[1:]  # the first interval warms up
    if not trained:
        raise UserError(f"no step could be measured with {_BATCH}={config.training.batch_size}")
    step_s = sum(1 / line["steps_per_s"] for line in trained) / len(trained)
    took = (trained[-1]["time"] - lines[1]["time"]) / max(1, len(lines) - 2)
    sizes = {name: (folder / "checkpoints" / name).stat().st_size for name in (BEST, LAST)}
    return Sample(
        config.training.batch_size * config.training.accumulate_grad_batches,
        step_s,
        max(0.0, took - config.training.val_check_interval * step_s),
        trained[0]["startup_s"],
        sizes[BEST],
        sizes[LAST],
        {int(line["step"]): line["val_loss"] for line in lines},
    )
