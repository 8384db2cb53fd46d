"""Begin a sweep with what an earlier one on the same data has found (`sweep.warm_start`).

Two things carry over: its results, for the searcher to learn from, and its trainings: a trial whose
settings are those of an earlier one but for max_steps goes on from that one's last checkpoint.
So stages (5,000 steps, 20,000, 40,000) each continue the one before.
"""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from sesttune.config.load import Points, from_dict, settings_by_key, to_dict
from sesttune.config.schema import Config, TrainingConfig
from sesttune.data.identity import CELLS, changed
from sesttune.errors import UserError
from sesttune.search.recorded import earlier_folder, read_schedule
from sesttune.search.rules import grace_period
from sesttune.search.searcher import Observed
from sesttune.search.space import SearchSpace
from sesttune.search.trial_state import BUDGET, ENDED, TrialState
from sesttune.system.atomic import room_on_disk
from sesttune.training.records import (
    DATA,
    LAST,
    MAX_STEPS,
    METRICS,
    PATIENCE,
    RECORD,
    SCHEDULE,
    SETTINGS,
    TrialRecord,
    list_trials,
    read_data,
    read_settings,
    trial_folder,
)

_ABOUT = (SETTINGS, DATA)
_SAME_LOSS = ("model.kwargs.loss", "model.kwargs.st_cell_set_len", "training.train_seed")
"""Settings that must agree for val_losses to be comparable."""
_OTHER_STOP = {
    "max_steps",
    "early_stopping",
    "patience",
    "min_delta",
    "ckpt_every_n_steps",
    "checkpoint_budget_gb",
    "log_every_n_steps",
    "device",
    "profile",
}
"""Settings of a training that do not change its weights at a given step."""
_PLACES = ("se_model_path", "se_checkpoint_path")
"""Where the encoder lies; which one it is, the data say."""


def read_earlier(
    folder: Path, config: Config, space: SearchSpace
) -> tuple[list[TrialState], list[Observed]]:
    """Trainings that can be continued, and results to learn from; both empty without warm start.

    Raises UserError where the earlier sweep does not exist, or was run on other data or with
    another loss.
    """
    name = config.sweep.warm_start
    if name is None:
        return [], []
    source = earlier_folder(folder)
    if not source.is_dir():
        check_earlier(folder.parent / name, config)
        _keep(folder.parent / name, source)
    then = check_earlier(source, config)
    other_inputs = changed_inputs(source, folder)
    earlier_settings, settings = Points(then), Points(config)
    trainings, learnt = [], []
    for record in list_trials(source):
        lines, kept = record.metrics(), read_schedule(record.folder)
        if not lines or kept.get("shares"):
            continue
        effective = earlier_settings.at(record.params)
        point = _point(space, effective)
        own = settings.at(point)
        trial = _state(f"{name}/{record.id}", record, point, effective, own)
        for line in lines:
            trial.take(int(line["step"]), line["best_val_loss"])
        if space.holds(point) and not kept.get("repeats"):
            learnt += _learnt(trial, own)
        same = _training(own) == _training(effective)
        if same and not other_inputs and (record.checkpoints / LAST).exists():
            trainings.append(trial)
    return trainings, learnt


def _keep(source: Path, target: Path) -> None:
    """Keep what `read_earlier` reads of the sweep in `source`, which may be removed or moved.

    Checkpoints are linked: they cost disk only where that sweep is gone. Of a trial that still
    runs they come first, since its metrics are ahead of them otherwise, not behind.
    """
    draft = target.with_name(f".{target.name}")
    shutil.rmtree(draft, ignore_errors=True)
    with room_on_disk(target.parent):
        draft.mkdir()
        for record in list_trials(source):
            kept = trial_folder(draft, record.id)
            (kept / "checkpoints").mkdir(parents=True)
            for path in sorted(record.checkpoints.glob("[!.]*.ckpt")):
                _link(path, kept / "checkpoints" / path.name)
            for name in (METRICS, SCHEDULE, RECORD):
                if (record.folder / name).exists():
                    shutil.copyfile(record.folder / name, kept / name)
        for name in _ABOUT:
            shutil.copyfile(source / name, draft / name)
        draft.rename(target)


def _link(path: Path, target: Path) -> None:
    try:
        os.link(path, target)
    except FileNotFoundError:
        return  # thinned out meanwhile
    except OSError:  # no hard links here: gone on with while it is there
        target.symlink_to(path.absolute())


def check_earlier(source: Path, config: Config) -> Config:
    """The settings of the sweep in `source`; raises UserError where they are not comparable."""
    if not all((source / name).is_file() for name in _ABOUT):
        known = sorted(path.parent.name for path in source.parent.glob(f"*/{SETTINGS}"))
        raise UserError(
            f"sweep.warm_start={source.name}: no such sweep in {source.parent}; there are: "
            f"{', '.join(known) or 'none'}"
        )
    then = from_dict(read_settings(source)["config"])
    key = other_loss(then, config)
    if key is not None:
        one, two = settings_by_key(then)[key], settings_by_key(config)[key]
        raise UserError(
            f"sweep.warm_start={source.name}: it was run with {key}={one}, this one has {two}, so "
            "their losses are not comparable"
        )
    return then


def changed_inputs(source: Path, folder: Path) -> list[str]:
    """What the heads of two sweeps were shown that differs, in words.

    Trainings of such a sweep are not gone on with. Raises UserError where it is the cells.
    """
    parts = changed(read_data(source), read_data(folder))
    if CELLS in parts:
        raise UserError(
            f"sweep.warm_start={source.name}: it was run on other data, so their losses are not "
            "comparable; leave it out"
        )
    return parts


def other_loss(first: Config, second: Config) -> str | None:
    """A setting in which two sweeps differ and that makes their val_losses incomparable."""
    one, two = settings_by_key(first), settings_by_key(second)
    return next((key for key in _SAME_LOSS if one[key] != two[key]), None)


def _state(
    trial_id: str, record: TrialRecord, point: dict[str, Any], then: Config, now: Config
) -> TrialState:
    """The trial of settings `then`, to be gone on with under `now`."""
    reason = record.stop_reason if record.finished else f"{BUDGET}not finished"
    if reason == PATIENCE and not _as_impatient(then.training, now.training):
        reason = f"{BUDGET}patience {then.training.patience}"
    budget = then.training.max_steps
    return TrialState(trial_id, point, budget, budget, state=ENDED, reason=reason)


def _as_impatient(then: TrainingConfig, now: TrainingConfig) -> bool:
    """Whether who lost patience `then` would have lost it `now`, too."""
    return now.early_stopping and now.patience <= then.patience


def _learnt(trial: TrialState, now: Config) -> list[Observed]:
    """What an earlier trial tells of one with the settings `now`, at most one thing.

    One that failed says nothing, nor does one that was cut before any rung. One that was trained
    for less than `now.training.max_steps` says where it was then, and its point is as good as new.
    """
    seen = Observed.of(trial)
    cut = (trial.reason or "").startswith(BUDGET)
    if seen.state == "failed" or (cut and trial.step < grace_period(now)):
        return []
    if cut or (trial.reason == MAX_STEPS and trial.budget < now.training.max_steps):
        seen = replace(seen, state="shorter")
    return [seen]


def _training(config: Config) -> dict[str, Any]:
    """What the weights at a given step depend on, beside the data."""
    plain = to_dict(config)
    training = {k: v for k, v in plain["training"].items() if k not in _OTHER_STOP}
    if config.training.lr_schedule != "constant":
        training["max_steps"] = config.training.max_steps
    kwargs = {k: v for k, v in plain["model"]["kwargs"].items() if k not in _PLACES}
    return {"training": training, "model": {**plain["model"], "kwargs": kwargs}}


def _point(space: SearchSpace, config: Config) -> dict[str, Any]:
    point: dict[str, Any] = {}
    settings = settings_by_key(config)
    for key, parameter in space.parameters.items():
        if parameter.active(point):
            point[key] = settings[key]
    return point
