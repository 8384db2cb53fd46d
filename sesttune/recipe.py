"""How a registered version was made, read from its `head.json`: settings, command, differences.

At a constant learning rate a trial that took over another's training, or was stopped, is the
beginning of one and the same training, so it can be made from the start. What it cannot do
without is the checkpoint that `model.checkpoint` named: that was made by another training.
"""

import shlex
from collections.abc import Mapping
from typing import Any

from sesttune.config.load import from_dict, to_overrides, with_point
from sesttune.config.paths import PATHS
from sesttune.config.schema import Config
from sesttune.errors import UserError

SHOWN = ("training.max_steps", "training.train_seed", "training.replicate")
"""Settings that the command names even where they are the default."""
PLACES = (
    *PATHS,
    "data.kwargs.num_workers",
    "data.kwargs.store_location",
    "training.device",
    "tracking.uri",
    "tracking.experiment",
    "name",
)
"""Settings that say where things lie and not what is trained; these may be given anew."""
IRRELEVANT = ("ray", "mlflow")
"""Packages that no number of a training depends on."""


def settings_of(about: Mapping[str, Any], places: Mapping[str, object]) -> Config:
    """The settings of the one training that makes the version; `places` replaces paths.

    Raises UserError where the version does not say how it was made, and for another setting
    than `PLACES`.
    """
    if "sweep" not in about:
        raise UserError("this version does not say how it was made: promote it again")
    for key in places:
        if key not in PLACES:
            raise UserError(
                f"{key} would make another model: only where things lie may be given "
                f"({', '.join(PLACES)})"
            )
    recorded = from_dict(about["config"])
    # sweep.* chooses trainings, and is of no use to one.
    config = with_point(recorded, {f"sweep.{k}": v for k, v in vars(Config().sweep).items()})
    steps = recorded.training.max_steps
    last = about["step"] if about["val_loss"] is None else about["last_step"]
    if recorded.training.lr_schedule == "constant" and last is not None:
        steps = min(steps, last)
    name = f"reproduced-{about['sweep']}-{about['trial']}"
    return with_point(config, {"name": name, "training.max_steps": steps, **places})


def training_command(about: Mapping[str, Any], config: Config) -> str:
    """The command to paste; on a CPU with the number of threads that gives the same bits."""
    words = ["sesttune", "train", *to_overrides(config, SHOWN)]
    where = about["environment"]
    if str(where.get("device", "")).startswith("cpu"):
        words.insert(0, f"OMP_NUM_THREADS={where['threads']}")
    return shlex.join(words)


def describe(
    about: Mapping[str, Any], config: Config, versions: Mapping[str, str], device: str
) -> list[str]:
    """Lines for a person; `versions` and `device` are those of here and now."""
    where, training = about["environment"], config.training
    return [
        f"made by:   trial {about['trial']} of {about['sweep']}",
        f"sweep:     {about['command']}",
        f"training:  {training_command(about, config)}",
        f"seed:      train_seed {training.train_seed}, replicate {training.replicate}",
        f"data:      fingerprint {about['data_fingerprint']}",
        f"encoder:   {about['encoder']['label']}, sha256 {about['encoder']['sha256'] or 'none'}",
        f"versions:  {_versions(about['versions'], versions)}",
        f"device:    {_then_and_now(where.get('device', 'not recorded'), device)}",
        f"result:    {_result(about)}",
        *(f"note:      {note}" for note in _notes(about, config)),
    ]


def reasons(
    about: Mapping[str, Any], versions: Mapping[str, str], device: str, threads: int
) -> list[str]:
    """Why the last digits may differ here; none where bits should be the same."""
    then, where = about["versions"], about["environment"]
    names = sorted({*then, *versions} - set(IRRELEVANT))
    found = [
        f"{name} {versions.get(name, 'missing')}, then {then.get(name, 'not recorded')}"
        for name in names
        if versions.get(name) != then.get(name)
    ]
    if device != where.get("device"):
        found.append(f"{device}, then {where.get('device', 'not recorded')}")
    elif not device.startswith("cpu"):
        found.append("a GPU adds in no fixed order")
    elif threads != where.get("threads"):
        found.append(f"{threads} threads, then {where.get('threads')}")
    if "earlier_versions" in where:
        found.append("it was trained under several versions")
    if "micro_batch" in where:
        found.append(f"memory was short then: {where['micro_batch']} sets a pass")
    return found


def _notes(about: Mapping[str, Any], config: Config) -> list[str]:
    notes = []
    if config.model.checkpoint is not None:
        notes.append(
            f"it began with {config.model.checkpoint}, which another training made: without "
            "that file it cannot be made again"
        )
    if about["continues"] is not None:
        notes.append(
            f"it took over the training of trial {about['continues']}: one training, made here "
            "from the start"
        )
    planned = int(about["config"]["training"]["max_steps"])
    if config.training.max_steps < planned:
        where = "is of" if about["val_loss"] is None else "ended at"
        notes.append(
            f"it {where} step {config.training.max_steps:,} of {planned:,}: trained until there"
        )
    return notes


def _result(about: Mapping[str, Any]) -> str:
    if about["val_loss"] is None:
        return f"the head of step {about['step']:,}, where no validation was due"
    return f"val_loss {about['val_loss']:.9g} at step {about['step']:,}"


def _versions(then: Mapping[str, str], now: Mapping[str, str]) -> str:
    if not then:
        return "not recorded"
    return ", ".join(
        f"{name} {_then_and_now(version, now.get(name, 'missing'))}"
        for name, version in then.items()
    )


def _then_and_now(then: str, now: str) -> str:
    return then if then == now else f"{then} (now {now})"
