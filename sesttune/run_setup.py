"""From a configuration to a run folder that trials can start in, and back.

Order matters: everything that can be refused is refused before the encoder runs,
the encoder runs before anything is trained, and the run folder appears only when
both have worked, so a mistake leaves nothing behind.
"""

import json
import os
import shlex
import shutil
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf
from rich.console import Console

from sesttune.command import resume_command
from sesttune.config.load import from_dict, settings_by_key, to_dict, to_yaml, with_point
from sesttune.config.paths import MOVABLE, with_whole_paths
from sesttune.config.schema import Config
from sesttune.data.shards import Encoder, Runner, Shard, encode_here
from sesttune.errors import UserError, WrongPlace, first_line
from sesttune.system.atomic import write_text
from sesttune.system.cached_folder import Progress
from sesttune.system.progress_bars import progress_bars
from sesttune.system.run_lock import only_driver
from sesttune.training.records import DATA, SETTINGS, read_data, read_settings

if TYPE_CHECKING:
    from sesttune.data.trial_data import TrialData
    from sesttune.search.space import SearchSpace


@dataclass(frozen=True)
class Run:
    """A run folder: its settings, its prepared data, and its search space (None: one training)."""

    folder: Path
    config: Config
    manifest: Path
    space: dict[str, Any] | None


def run_folder(config: Config) -> Path:
    """`output_dir/name`, absolute; raises UserError where it exists already."""
    assert config.name is not None
    folder = Path(config.output_dir).expanduser().absolute() / config.name
    if folder.exists():
        raise UserError(
            f"{folder} exists: choose another name=, or continue it with --resume {config.name}"
        )
    return folder


def prepare_run(
    config: Config,
    space: "SearchSpace | None",
    console: Console,
    runner: Runner = encode_here,
) -> Run:
    """Check and prepare the data, encode what is not cached, and create the run folder.

    Its settings name files by whole paths: workers and `--resume` may be in another folder.
    """
    from sesttune.tracking.store import check_store
    from sesttune.training.compiled import check_compiler

    folder = run_folder(config)
    check_compiler(config.training)
    check_store(config)
    there = next(parent for parent in folder.parents if parent.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise UserError(f"output_dir={config.output_dir}: {there} cannot be written to")
    config = with_whole_paths(config)
    start = _starting_state(config, space)

    @cache  # at the first step of what takes time: above a refusal nobody wants to read them
    def show_settings() -> None:
        console.print(to_yaml(config), style="dim")

    data = prepared_data(config, console, runner, begin=show_settings)
    show_settings()
    _show_notes(data, console)
    about = _about(data, config, console)
    if start is not None:
        from sesttune.training.starting_point import refuse_other_data, told_of_other_split

        refuse_other_data(start, config, data)
        if (told := told_of_other_split(start, config, data)) is not None:
            console.print(f"warning: {told}")
    listed = space.to_dict() if space is not None else None
    # Paths repeat (another machine, a deleted folder); this id is what MLflow knows the run by.
    about = {"id": uuid.uuid4().hex, "manifest": str(data.manifest), **about}
    draft = folder.with_name(f".{folder.name}-{os.getpid()}")
    try:
        draft.mkdir(parents=True)
        write_settings(draft, config, listed)
        write_text(draft / DATA, json.dumps(about, indent=2))
        draft.rename(folder)
    except OSError as error:
        raise UserError(
            f"output_dir={config.output_dir}: cannot create {folder}: {error}"
        ) from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return Run(folder, config, data.manifest, listed)


def check_warm_up(config: Config, space: "SearchSpace | None" = None) -> None:
    """Raise UserError where lr would never reach its value.

    Of what a user asks for: a calibration, and the training of a version again, may be shorter.
    """
    training = config.training
    found: tuple[int, int] | None = training.warmup_steps, training.max_steps
    where, fix = "", "shorten it"
    if space is not None:
        found = space.ends_in_warm_up(config)
        where = f"search space {space.source}: "
        fix += ", or add the constraint 'warmup_steps < max_steps'"
    if found is not None and found[0] >= found[1]:
        raise UserError(
            f"{where}training.warmup_steps={found[0]} lasts to the end of "
            f"training.max_steps={found[1]}, and lr never reaches its value: {fix}"
        )


def _starting_state(config: Config, space: "SearchSpace | None") -> dict[str, Any] | None:
    """What trials go on from, if anything, checked as far as it can be without the data."""
    if config.model.checkpoint is None:
        return None
    from sesttune.training.starting_point import starting_state

    steps = space.shortest(config) if space is not None else config.training.max_steps
    return starting_state(with_point(config, {"training.max_steps": steps}))


def open_run(output_dir: str, name: str) -> Run:
    """The run `output_dir/name` as it was started; raises UserError where there is none."""
    folder = Path(output_dir).expanduser().absolute() / name
    if not (folder / DATA).is_file():
        runs = run_names(output_dir)
        raise UserError(
            f"no run '{name}' in {folder.parent}; there are: {', '.join(runs) or 'none'}"
        )
    try:
        settings, about = read_settings(folder), read_data(folder)
        manifest, space = Path(about["manifest"]), settings["space"]
    except Exception as error:  # yaml, json and omegaconf raise unrelated families
        why = first_line(error)
        raise UserError(f"{folder}: {SETTINGS} or {DATA} is damaged ({why})") from None
    # The folder may have been moved, or be named from elsewhere than where it was begun.
    config = replace(from_dict(settings["config"]), output_dir=output_dir)
    return Run(folder, config, manifest, space)


def run_names(output_dir: str) -> list[str]:
    """The runs in `output_dir`, by name."""
    return sorted(path.parent.name for path in Path(output_dir).expanduser().glob(f"[!.]*/{DATA}"))


def ensure_data(
    run: Run,
    console: Console,
    runner: Runner = encode_here,
    given: Mapping[str, object] = MappingProxyType({}),
) -> Run:
    """Prepare again what a cleaned cache has lost; raises UserError where the data changed.

    `given`: dotted keys with new values, limits or places, which the run keeps if they have not.
    """
    run = replace(run, config=with_whole_paths(with_point(run.config, given)))
    data = run_data(run, console, runner)
    _show_notes(data, console)
    if given:
        settings = settings_by_key(run.config)
        with only_driver(run.folder):  # one that runs would not hear of them
            change_settings(run, {key: settings[key] for key in given})
    return replace(run, manifest=data.manifest)


def run_data(run: Run, console: Console, runner: Runner = encode_here) -> "TrialData":
    """The data of a run; raises UserError where they are no longer what it was trained on.

    With another encoder nothing is encoded, which may take hours.
    """
    from sesttune.data.identity import identity

    def encode(shards: Sequence[Shard], encoder: Encoder, progress: Progress) -> None:
        _refuse_changed(run, {**read_data(run.folder), "encoder": encoder.identity})
        runner(shards, encoder, progress)

    try:
        data = prepared_data(run.config, console, encode)
    except WrongPlace as error:
        kind = "train" if run.space is None else "sweep"
        again = resume_command(kind, run.folder.name, run.config.output_dir)
        raise UserError(
            f"{error}. Where inputs of {run.folder.name} have been moved, name their new places: "
            f"{again} KEY=PATH (KEY: {', '.join(MOVABLE)})"
        ) from None
    _refuse_changed(run, identity(data))
    return data


def _refuse_changed(run: Run, now: Mapping[str, Any]) -> None:
    from sesttune.data.identity import changed

    parts = changed(read_data(run.folder), now)
    if parts:
        raise UserError(
            f"the {parts[0]} have changed since {run.folder.name} was started: its results would "
            "not be comparable; start a new sweep"
        )


def prepared_data(
    config: Config,
    console: Console,
    runner: Runner = encode_here,
    genes: list[str] | None = None,
    begin: Callable[[], None] = lambda: None,
) -> "TrialData":
    """Check the data and build what is not cached (see `prepare`), with bars on a terminal.

    `begin` is called before the first bar, and again with each of their steps.
    """
    from sesttune.data.trial_data import TrialData, prepare
    from sesttune.model.se_checkpoint import find_files
    from sesttune.model.se_encoder import SEEncoder
    from sesttune.system.out_of_memory import give_back

    kwargs, cache = config.model.kwargs, Path(config.data.cache_dir).expanduser()

    def encoder() -> SEEncoder:
        return SEEncoder(
            find_files(kwargs.se_model_path, kwargs.se_checkpoint_path),
            cache=cache,
            precision=kwargs.se_precision,
            min_matched=kwargs.se_min_matched,
        )

    with progress_bars(console) as show:

        def progress(what: str, done: int, total: int) -> None:
            begin()
            show(what, done, total)

        manifest = prepare(config, encoder, progress, runner, genes)
    give_back()  # what encoding took of a GPU, for the trials, which are other processes
    return TrialData(manifest)


def _show_notes(data: "TrialData", console: Console) -> None:
    for note in data.notes:
        console.print(f"  {note}")


def _about(data: "TrialData", config: Config, console: Console) -> dict[str, Any]:
    """What a run folder keeps of its data."""
    from sesttune.data.identity import identity
    from sesttune.evaluation.baselines import baselines

    with progress_bars(console) as progress:
        known = baselines(config, data, progress)
    return {**identity(data), "notes": data.notes, "baselines": known}


def write_settings(folder: Path, config: Config, space: Mapping[str, Any] | None) -> None:
    """Keep what a run was started with."""
    settings = {"command": _command_line(), "space": space, "config": to_dict(config)}
    write_text(folder / SETTINGS, OmegaConf.to_yaml(OmegaConf.create(settings)))


def _command_line() -> str:
    """As the console script takes it, whichever way this process was started."""
    program = Path(sys.argv[0]).stem  # of a module, its command
    command = {"sesttune": [], "cli": [], "se-st-train": ["train"]}.get(program, [program])
    return shlex.join(["sesttune", *command, *sys.argv[1:]])


def change_settings(run: Run, changed: Mapping[str, object]) -> Run:
    """`run` with other values of some dotted keys, on disk, too; the rest stays as it was begun."""
    config = with_point(run.config, changed)
    settings = OmegaConf.load(run.folder / SETTINGS)
    for key, value in changed.items():
        OmegaConf.update(settings, f"config.{key}", value)
    write_text(run.folder / SETTINGS, OmegaConf.to_yaml(settings))
    return replace(run, config=config)
