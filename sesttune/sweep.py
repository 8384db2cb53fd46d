"""`sesttune sweep`: search hyperparameters, stop poor trials early, keep the best.

Reads in the order things happen: settings, data, encoder (once), trials, result.
With no data configured it says so and runs the bundled demo.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from sesttune.command import add_config_arguments, named, read_config, run
from sesttune.errors import UserError

if TYPE_CHECKING:
    from sesttune.config.schema import Config
    from sesttune.run_setup import Run
    from sesttune.search.outcome import SweepOutcome


def main(argv: Sequence[str]) -> int:
    """Run a hyperparameter sweep; with no data configured, on the bundled demo."""
    parser = argparse.ArgumentParser("sesttune sweep", description=main.__doc__)
    parser.add_argument("--space", metavar="S", help="search space: a YAML file or a known name")
    parser.add_argument("--resume", metavar="NAME", help="continue an interrupted sweep")
    add_config_arguments(parser)
    args = parser.parse_args(argv)
    console = Console()
    return _start(args, console) if args.resume is None else _resume(args, console)


def _start(args: argparse.Namespace, console: Console) -> int:
    if args.space is not None:
        args.overrides.append(f"sweep.space={args.space}")
    config = named(_configuration(args, console), "sweep")
    from sesttune.run_setup import prepare_run
    from sesttune.search.space import load_space

    # The command line outranks the space: a key given there is fixed, not searched.
    fixed = [text.lstrip("+").partition("=")[0] for text in args.overrides]
    space = load_space(config.sweep.space).without(fixed)
    space.check(config)
    return _run(prepare_run(config, space.to_dict(), console), console, resume=False)


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


def _resume(args: argparse.Namespace, console: Console) -> int:
    allowed = [text for text in args.overrides if text.lstrip("+").startswith("output_dir=")]
    if args.config or args.space or len(allowed) < len(args.overrides):
        raise UserError("--resume uses the sweep's own settings: only output_dir= may go with it")
    from sesttune.run_setup import ensure_data, open_run

    known = open_run(read_config(args).output_dir, args.resume)
    if known.space is None:
        raise UserError(
            f"{args.resume} is a single training: sesttune train --resume {args.resume}"
        )
    return _run(ensure_data(known, console), console, resume=True)


def _run(sweep: "Run", console: Console, resume: bool) -> int:
    from sesttune.run_setup import RESULT, write_json
    from sesttune.search.driver import run_sweep
    from sesttune.search.ledger import trial_count
    from sesttune.search.live import LiveTable
    from sesttune.search.space import parse_space
    from sesttune.tracking.background import BackgroundSync
    from sesttune.tracking.store import tracking_uri
    from sesttune.training.records import list_trials

    assert sweep.space is not None
    config, folder = sweep.config, sweep.folder
    space = parse_space(sweep.space, str(folder / "sweep.yaml"))
    with BackgroundSync(folder, tracking_uri(config), config.tracking.experiment):
        with LiveTable(console, trial_count(config, space), list_trials(folder)) as live:
            outcome = run_sweep(folder, config, space, sweep.manifest, [live], resume)
        write_json(folder / RESULT, _result(outcome))
    _show(outcome, sweep, console)
    return 1 if outcome.best is None else 0


def _result(outcome: "SweepOutcome") -> dict[str, Any]:
    """What `result.json` and MLflow keep of the outcome."""
    rows = [
        {
            "trial": row.id,
            "best_val_loss": row.best_val_loss if math.isfinite(row.best_val_loss) else None,
            "best_step": row.best_step,
            "last_step": row.step,
            "ended_by": (row.stop_reason or row.status).partition(",")[0],
            "parameters": _parameters(row.params),
        }
        for row in outcome.leaderboard
    ]
    return {"verdict": outcome.verdict, "evidence": outcome.evidence, "leaderboard": rows}


def _parameters(params: dict[str, Any]) -> str:
    parts = []
    for key, value in params.items():
        shown = f"{value:.2e}" if isinstance(value, float) else str(value)
        parts.append(f"{key.rpartition('.')[2]}={shown}")
    return " ".join(parts)


def _show(outcome: "SweepOutcome", sweep: "Run", console: Console) -> None:
    import json

    table = Table(title=f"leaderboard of {sweep.folder.name}", title_justify="left")
    for column in ("trial", "best val_loss", "at step", "ended by", "parameters"):
        table.add_column(
            column, justify="right" if column in ("best val_loss", "at step") else "left"
        )
    for row in _result(outcome)["leaderboard"]:
        loss = "-" if row["best_val_loss"] is None else f"{row['best_val_loss']:.4f}"
        cells = (row["trial"], loss, f"{row['best_step']:,}", row["ended_by"], row["parameters"])
        table.add_row(*cells)
    console.print(table)
    about = json.loads((sweep.folder / "data.json").read_text())
    listed = ", ".join(f"{name} {loss:.4f}" for name, loss in about["baselines"].items())
    where = sweep.config.output_dir
    console.print(f"baselines: {listed}", highlight=False)
    console.print(
        f"verdict:   {outcome.verdict or 'no result'}: {outcome.evidence}", highlight=False
    )
    console.print(f"browse:    sesttune ui output_dir={where}", highlight=False, soft_wrap=True)
    if outcome.best is not None:
        console.print(
            f"promote:   sesttune promote --sweep {sweep.folder.name} --output-dir {where}",
            highlight=False,
            soft_wrap=True,
        )


if __name__ == "__main__":
    sys.exit(run(main))
