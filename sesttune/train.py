"""`sesttune train` (also `se-st-train`): one training with the given settings, without Ray.

It leaves the same run folder as a sweep of one trial, so MLflow, promote and
predict treat both alike.
"""

import argparse
import sys
from collections.abc import Sequence
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
    from sesttune.run_setup import Run

TRIAL_ID = "001"


def main(argv: Sequence[str]) -> int:
    """Train one ST head with the given settings."""
    parser = argparse.ArgumentParser("sesttune train", description=main.__doc__)
    parser.add_argument("--resume", metavar="NAME", help="continue an interrupted training")
    add_config_arguments(parser)
    args = parser.parse_intermixed_args(argv)
    console = open_console()
    config = read_config(args)
    import torch

    from sesttune.config.load import parse_override
    from sesttune.config.paths import MOVABLE
    from sesttune.run_setup import check_warm_up, ensure_data, open_run, prepare_run
    from sesttune.system.machine import cores
    from sesttune.training.trainer import pick_device

    # torch knows no quota, of a container or a batch job: its threads would wait for each other.
    torch.set_num_threads(min(torch.get_num_threads(), cores()))
    if args.resume is not None:
        given = dict(parse_override(text) for text in args.overrides)
        given.pop("output_dir", None)
        if args.config or not set(given) <= set(MOVABLE):
            raise UserError(
                "--resume uses the training's own settings: only output_dir= may go with it, and "
                f"where its inputs lie now: {'=, '.join(MOVABLE)}="
            )
        known = open_run(config.output_dir, args.resume)
        if known.space is not None:
            raise UserError(f"{args.resume} is a sweep: sesttune sweep --resume {args.resume}")
        pick_device(known.config.training)
        training = ensure_data(known, console, given=given)
    else:
        check_warm_up(config)
        pick_device(config.training)  # encoding would come before the trial finds no GPU
        training = prepare_run(named(config, "train"), None, console)
    return train(training, console)


def train(training: "Run", console: Console) -> int:
    """Run, or continue, the one training of a prepared run folder; returns the exit code."""
    from sesttune.result import show_result, write_result
    from sesttune.search.outcome import read_outcome
    from sesttune.system.run_lock import only_driver
    from sesttune.track import how_to_deliver
    from sesttune.tracking.background import BackgroundSync
    from sesttune.tracking.store import tracking_uri
    from sesttune.training.records import NAN, TrialRecord, trial_folder, write_trial
    from sesttune.training.trial import run_trial

    config, folder = training.config, training.folder
    where = trial_folder(folder, TRIAL_ID)
    deliver = BackgroundSync(folder, tracking_uri(config), config.tracking.experiment)
    with only_driver(folder), deliver as mlflow:
        if not where.exists():
            write_trial(TrialRecord(TRIAL_ID, where))
        try:
            run_trial(config, training.manifest, where, lambda line: _show(console, where, line))
        except (KeyboardInterrupt, SystemExit):  # the latter by Lightning, for SIGTERM and Ctrl-C
            again = resume_command("train", folder.name, config.output_dir)
            console.print(f"stopped; go on with: {again}")
            raise KeyboardInterrupt from None
        outcome = read_outcome(folder, config)
        write_result(folder, outcome)
    show_result(training, outcome, console)
    if not mlflow.delivered:
        told = how_to_deliver(folder, config.output_dir)
        console.print(told)
    return 1 if outcome.best is None or outcome.best.stop_reason == NAN else 0


def _show(console: Console, folder: Path, line: dict[str, float]) -> None:
    from sesttune.training.records import read_trial

    record = read_trial(folder)
    if line["step"] == 0 and record is not None:
        console.print(f"data: {record.facts['data']}")
    console.print(
        f"step {int(line['step']):>7,}  train_loss {line['train_loss']:<9.4g} "
        f"val_loss {line['val_loss']:<9.4g} best {line['best_val_loss']:<9.4g} "
        f"{line['steps_per_s']:.1f} steps/s"
    )


if __name__ == "__main__":
    sys.exit(run(main))
