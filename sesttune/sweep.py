"""`sesttune sweep`: search hyperparameters, stop poor trials early, keep the best.

Reads in the order things happen: settings, data, encoder (once), trials, result.
With no data configured it says so and runs the bundled demo.
"""

import argparse
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from sesttune.command import (
    add_config_arguments,
    named,
    open_console,
    read_config,
    resume_command,
    run,
)
from sesttune.errors import UserError

if TYPE_CHECKING:
    from sesttune.config.schema import Config
    from sesttune.run_setup import Run
    from sesttune.search.plan import Plan


def main(argv: Sequence[str]) -> int:
    """Run a hyperparameter sweep; with no data configured, on the bundled demo."""
    parser = argparse.ArgumentParser("sesttune sweep", description=main.__doc__)
    add_search_arguments(parser)
    parser.add_argument("--resume", metavar="NAME", help="continue an interrupted sweep")
    parser.add_argument(
        "--dry-run", action="store_true", help="prepare (and encode) the data, print the plan"
    )
    args = parser.parse_intermixed_args(argv)
    return start(args, args.dry_run) if args.resume is None else _resume(args)


def add_search_arguments(parser: argparse.ArgumentParser) -> None:
    """What `sweep` and `plan` take."""
    parser.add_argument("--space", metavar="S", help="search space: a YAML file or a known name")
    parser.add_argument(
        "--warm-start", metavar="NAME", help="learn from an earlier sweep and continue its best"
    )
    parser.add_argument(
        "--time-budget", metavar="8h", help="wall-clock limit, from the sweep's beginning"
    )
    add_config_arguments(parser)


def start(args: argparse.Namespace, dry_run: bool) -> int:
    """Plan a new sweep and, without `dry_run`, run it."""
    console = open_console()
    for name in ("space", "warm_start", "time_budget"):
        if getattr(args, name) is not None:
            args.overrides.append(f"sweep.{name}={getattr(args, name)}")
    config = named(_configuration(args, console), "sweep")
    from sesttune.plan_run import plan_run
    from sesttune.run_setup import check_warm_up, prepare_run
    from sesttune.search.ray_encode import shard_runner
    from sesttune.search.ray_session import check_room
    from sesttune.search.space_file import load_space
    from sesttune.search.warm_start import changed_inputs, check_earlier

    # The command line outranks the space: a key given there is fixed, not searched.
    fixed = [text.lstrip("+").partition("=")[0] for text in args.overrides]
    space = load_space(config.sweep.space).without(fixed)
    space.check(config)
    check_warm_up(config, space)
    check_room(config)
    earlier = None
    if config.sweep.warm_start is not None:
        earlier = Path(config.output_dir).expanduser() / config.sweep.warm_start
        check_earlier(earlier, config)
    sweep = prepare_run(config, space, console, shard_runner(config))
    try:
        for part in changed_inputs(earlier, sweep.folder) if earlier is not None else ():
            console.print(
                f"{config.sweep.warm_start} had other {part}: its results are learnt from, its "
                "trainings not gone on with"
            )
        sweep, plan = plan_run(sweep, space, console)
    except BaseException:
        shutil.rmtree(sweep.folder)  # nothing has run in it yet
        raise
    if dry_run:
        shutil.rmtree(sweep.folder)
        return 0
    return _run(sweep, console, plan, resume=False)


def _configuration(args: argparse.Namespace, console: Console) -> "Config":
    config = read_config(args)
    if config.data.kwargs.toml_config_path is not None:
        return config
    from sesttune.demo import demo_folder, demo_settings

    console.print(
        "No data configured (data.kwargs.toml_config_path): running the bundled demo, "
        "synthetic cells with planted effects and an encoder of random weights."
    )
    return read_config(args, demo_settings(demo_folder(config.data.cache_dir)))


def _resume(args: argparse.Namespace) -> int:
    console = open_console()
    given = _given_anew(args)
    from sesttune.plan_run import read_plan
    from sesttune.run_setup import ensure_data, open_run
    from sesttune.search.ray_encode import shard_runner
    from sesttune.search.ray_session import check_cluster

    known = open_run(read_config(args).output_dir, args.resume)
    if known.space is None:
        raise UserError(
            f"{args.resume} is a single training: sesttune train --resume {args.resume}"
        )
    _check_limits(known, given, console)
    check_cluster(known.config)
    sweep = ensure_data(known, console, shard_runner(known.config), given)
    return _run(sweep, console, read_plan(sweep.folder), resume=True)


def _given_anew(args: argparse.Namespace) -> dict[str, object]:
    """Limits, and places of inputs, given with --resume; raises UserError for other settings."""
    from sesttune.config.load import parse_override
    from sesttune.config.paths import MOVABLE
    from sesttune.search.budget import LIMITS

    given = dict(parse_override(text) for text in args.overrides)
    if args.time_budget is not None:
        given["sweep.time_budget"] = args.time_budget
    other = args.config or args.space or args.warm_start or args.dry_run
    if other or not set(given) <= {"output_dir", *LIMITS, *MOVABLE}:
        raise UserError(
            "--resume uses the sweep's own settings: only output_dir=, --time-budget, "
            f"{'= and '.join(LIMITS[1:])}= may go with it, and where its inputs lie now: "
            f"{'=, '.join(MOVABLE)}="
        )
    return {key: value for key, value in given.items() if key != "output_dir"}


def _check_limits(known: "Run", given: Mapping[str, object], console: Console) -> None:
    """Raise UserError where a new limit is reached already; say so of one that the sweep had."""
    from sesttune.config.load import with_point
    from sesttune.search.budget import LIMITS, Spending, limit_reached
    from sesttune.search.live import duration
    from sesttune.search.trial_state import BUDGET

    settings = with_point(known.config, given).sweep
    why = limit_reached(known.folder, settings)
    if why is None:
        return
    took = Spending(known.folder, settings, gpus=0.0)
    told = (
        f"{why.removeprefix(BUDGET)}, so nothing more would be trained (taken so far: "
        f"{duration(took.wall_s)}, {took.gpu_s / 3600:.3g} GPU- or slot-hours)"
    )
    key = next(key for key in LIMITS if key in why)
    if key in given:
        raise UserError(f"{told}; a limit counts from the sweep's beginning")
    told += f"; to go on, give another {key}= with --resume"
    console.print(told)


def _run(sweep: "Run", console: Console, plan: "Plan | None", resume: bool) -> int:
    from sesttune.report import try_report
    from sesttune.result import show_result, write_result
    from sesttune.search.driver import run_sweep
    from sesttune.search.live import LiveTable
    from sesttune.search.rules import trial_count
    from sesttune.search.space_file import parse_space
    from sesttune.track import how_to_deliver
    from sesttune.tracking.background import BackgroundSync
    from sesttune.tracking.store import tracking_uri
    from sesttune.training.records import SETTINGS, list_trials

    assert sweep.space is not None
    config, folder = sweep.config, sweep.folder
    space = parse_space(sweep.space, str(folder / SETTINGS))
    again = resume_command("sweep", folder.name, config.output_dir)
    if not resume:  # said in advance: where Ray, or the machine, dies, nobody can
        console.print(f"if it is interrupted: {again}")
    with BackgroundSync(folder, tracking_uri(config), config.tracking.experiment) as mlflow:
        try:
            total, steps = trial_count(config, space), plan.expected.steps if plan else None
            with LiveTable(console, total, list_trials(folder), steps) as live:
                outcome = run_sweep(folder, config, space, sweep.manifest, [live], resume)
        except KeyboardInterrupt:
            console.print(f"stopped; go on with: {again}")
            raise
        try_report(sweep, outcome)  # before the result, with which MLflow gets what is there
        write_result(folder, outcome)
    show_result(sweep, outcome, console)
    if not mlflow.delivered:
        told = how_to_deliver(folder, config.output_dir)
        console.print(told)
    return 1 if outcome.best is None else 0


if __name__ == "__main__":
    sys.exit(run(main))
