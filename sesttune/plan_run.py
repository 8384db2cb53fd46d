"""Plan a prepared run: calibrate, print what it will take, and refuse what the disk cannot hold."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from sesttune.command import show_table
from sesttune.config.load import with_point
from sesttune.config.schema import Config
from sesttune.errors import UserError
from sesttune.run_setup import Run, write_settings
from sesttune.search.budget import read_spent
from sesttune.search.calibrate import Speed, calibrate
from sesttune.search.compiling import fastest_mode, modes_to_try
from sesttune.search.live import duration
from sesttune.search.measuring import place_for
from sesttune.search.plan import Outlay, Plan, check_disk, make_plan
from sesttune.search.ray_session import Slots, cluster_address, slots
from sesttune.search.recorded import read_schedule, trained_before
from sesttune.search.space import SearchSpace
from sesttune.system.atomic import write_text
from sesttune.system.compiler import missing
from sesttune.system.machine import cores, gpus
from sesttune.training.records import list_trials, read_object

PLAN = "plan.json"


def plan_run(run: Run, space: SearchSpace, console: Console) -> tuple[Run, Plan]:
    """Measure, plan, print and keep the plan of a run that has not begun.

    The run that comes back has no setting left to measure but the trials on a GPU. Raises UserError
    where the disk cannot hold the worst case, or no trial fits the machine.
    """
    folder, given = run.folder, _machine(run.config)
    run, compiling = _settle_compile(run, space, given, console)
    config = run.config
    console.print("calibrating: some tens of steps at the smallest and largest batch", style="dim")
    scratch, place = folder / ".calibration", place_for(config, given)
    speed = calibrate(config, space, run.manifest, scratch, given.threads, place)
    plan = make_plan(config, space, given.concurrent, given.gpus, speed)
    measured = {"speed": vars(speed), "compiling": compiling}
    write_text(folder / PLAN, json.dumps({**asdict(plan), **measured}, indent=2))
    console.print(_headline(plan, given, speed, config))
    show_table(console, _table(plan, given))
    check_disk(plan, config, speed, shutil.disk_usage(folder).free, folder.parent)
    return run, plan


def _settle_compile(
    run: Run, space: SearchSpace, given: Slots, console: Console
) -> tuple[Run, str | None]:
    """The run with `training.compile=auto` replaced by what is fastest here, and what was found."""
    mode, found = "none", None
    if run.config.training.compile != "auto":
        return run, found
    if given.gpus and (lacking := missing()) is not None:
        found = f"training.compile=none: this machine has not got {lacking}"
        console.print(found, highlight=False, soft_wrap=True)
    elif modes := modes_to_try(run.config, given.gpus):
        console.print("measuring whether compiling the head pays, a few minutes", style="dim")
        scratch, place = run.folder / ".compiling", place_for(run.config, given)
        mode, found = fastest_mode(
            run.config, space, run.manifest, scratch, given.threads, modes, place=place
        )
        console.print(found)
    settled = replace(run, config=with_point(run.config, {"training.compile": mode}))
    write_settings(run.folder, settled.config, run.space)
    return settled, found


def read_plan(folder: Path) -> Plan | None:
    """The plan that the run in `folder` was started with; raises UserError for a damaged one."""
    cure = "remove it, and the sweep is not compared with it"
    if (kept := read_object(folder / PLAN, cure)) is None:
        return None
    try:
        return Plan(
            kept["trials"],
            tuple(kept["rungs"]),
            Outlay(**kept["expected"]),
            Outlay(**kept["worst"]),
            kept["trial_gb"],
            kept["disk_gb"],
        )
    except (KeyError, TypeError):
        raise UserError(f"{folder / PLAN} is not a plan: {cure}") from None


def against_plan(folder: Path) -> str | None:
    """How far the plan was off, once the sweep in `folder` has ended; None without a plan."""
    plan, took = read_plan(folder), read_spent(folder)
    if plan is None or not took:
        return None
    steps = trained_steps(folder)
    off = took["wall_s"] / plan.expected.wall_s
    return (
        f"took {duration(took['wall_s'])} and {steps:,} steps; planned were "
        f"{duration(plan.expected.wall_s)} ({off:.2f} x) and {plan.expected.steps:,}, at worst "
        f"{duration(plan.worst.wall_s)} and {plan.worst.steps:,}"
    )


def trained_steps(folder: Path) -> int:
    """Optimizer steps that a sweep has made: none twice, and none of an earlier sweep's."""
    made = 0
    for record in list_trials(folder):
        lines = record.metrics()
        if lines and not read_schedule(record.folder).get("shares"):
            made += int(lines[-1]["step"]) - max(0, trained_before(folder, record.id))
    return made


def _machine(config: Config) -> Slots:
    """The slots of this machine, as Ray would count them; those of a cluster once it is joined."""
    if cluster_address(config) is not None:
        from sesttune.search.ray_session import ray_session

        with ray_session(config) as found:
            return found
    return slots(config, {"CPU": float(cores()), "GPU": float(gpus())})


def _headline(plan: Plan, given: Slots, speed: Speed, config: Config) -> str:
    at = "no rungs" if not plan.rungs else "rungs at " + ", ".join(f"{r:,}" for r in plan.rungs)
    at += " steps" if plan.rungs else ""
    batch, passes = config.training.batch_size, config.training.accumulate_grad_batches
    rate = 1 / (speed.fixed_s + speed.set_s * batch * passes)
    return (
        f"plan: {plan.trials} trials, {given.concurrent} at once, {at}; "
        f"{rate:.3g} steps/s at batch size {batch}"
    )


def _table(plan: Plan, given: Slots) -> Table:
    unit = "GPU-hours" if given.gpus else "slot-hours"
    table = Table(box=None, pad_edge=False)
    for column in ("", "trainings", "steps", unit, "wall-clock", "disk"):
        table.add_column(column, justify="left" if column == "" else "right")
    for name, outlay in (("expected", plan.expected), ("worst case", plan.worst)):
        table.add_row(
            name,
            str(outlay.trainings),
            f"{outlay.steps:,}",
            f"{outlay.gpu_s / 3600:.3g}",
            duration(outlay.wall_s),
            f"{plan.disk_gb:.3g} GB" if name == "worst case" else "",
        )
    return table
