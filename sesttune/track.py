"""`sesttune track`: what of the runs has not reached MLflow, and deliver it.

A sweep delivers its own run folder while it runs; this is for what is left when the store was away
until its end. Both may run at once: they take turns, and each reads how far the other one came.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sesttune.command import program, run
from sesttune.errors import UserError

if TYPE_CHECKING:
    from sesttune.run_setup import Run
    from sesttune.tracking.spool import Undelivered


def main(argv: Sequence[str]) -> int:
    """Deliver what MLflow lacks of sweeps and trainings (sync), or list it (status)."""
    parser = argparse.ArgumentParser("sesttune track", description=main.__doc__)
    parser.add_argument("action", choices=("sync", "status"))
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: every run")
    parser.add_argument("--output-dir", default="outputs", help="default: %(default)s")
    args = parser.parse_args(argv)
    from sesttune.run_setup import open_run, run_names

    act = _sync if args.action == "sync" else _status
    if args.names:  # all are opened before anything is sent
        return act([open_run(args.output_dir, name) for name in args.names])
    runs, damaged = [], 0
    for name in run_names(args.output_dir):
        try:
            runs.append(open_run(args.output_dir, name))
        except UserError as error:
            print(f"{name}: {error}")
            damaged = 1
    return max(damaged, act(runs))


def how_to_deliver(folder: Path, output_dir: str) -> str:
    """What the output of a run says when MLflow lacked some of it at its end."""
    given = shlex.join([folder.name, "--output-dir", output_dir])
    command = f"{program()} track sync {given}"
    return f"mlflow:    lacks some of it; nothing is lost, deliver it with: {command}"


def _sync(runs: Sequence["Run"]) -> int:
    from sesttune.tracking.store import unreachable, without_secrets

    away: dict[str, str | None] = {}
    failed = False
    for each in runs:
        uri = _store(each)
        if uri not in away:
            away[uri] = unreachable(uri)
        wrong = away[uri]
        try:
            if wrong is None:
                wrong, told = _deliver(each, uri)
            if wrong is not None:
                told = f"not delivered: MLflow at {without_secrets(uri)}: {wrong}"
        except UserError as error:
            wrong = told = f"not delivered: {error}"
        failed |= wrong is not None
        print(f"{each.folder.name}: {told}", flush=True)
    return int(failed)


def _deliver(each: "Run", uri: str) -> tuple[str | None, str]:
    """What went wrong in MLflow, or None; and what has been done. UserError as `sync` raises it."""
    from sesttune.tracking.spool import undelivered
    from sesttune.tracking.store import problem, without_secrets
    from sesttune.tracking.sync import RunTracker

    try:
        tracker = RunTracker(each.folder, uri, each.config.tracking.experiment)
        tracker.check_store()
        before = undelivered(each.folder)
        if not before.anything:
            return None, "already there"
        wrong = tracker.sync()
    except UserError:
        raise
    except Exception as error:  # one run's trouble must not keep the others
        return problem(error, uri), ""
    return wrong, f"delivered {_amount(before)} to {without_secrets(uri)}"


def _status(runs: Sequence["Run"]) -> int:
    from sesttune.tracking.spool import undelivered
    from sesttune.tracking.store import is_gone

    told = failed = 0
    for each in runs:
        try:
            left = undelivered(each.folder, is_gone(_store(each)))
        except UserError as error:
            print(f"{each.folder.name}: {error}")
            failed += 1
            continue
        if left.anything:
            print(f"{each.folder.name}: {_amount(left)} not delivered")
            told += 1
    if not told:
        print(f"nothing is left to deliver of {len(runs) - failed} runs")
    return int(failed > 0)


def _store(each: "Run") -> str:
    """The store of a run's own settings, else the one it was delivered to before."""
    from sesttune.tracking.spool import read_cursor
    from sesttune.tracking.store import tracking_uri

    return tracking_uri(each.config, read_cursor(each.folder).get("store"))


def _amount(left: "Undelivered") -> str:
    parts = [f"{left.lines:,} points"] if left.lines else []
    if left.trials:
        parts.append(f"news of {left.trials:,} trial{'s' if left.trials > 1 else ''}")
    if left.result:
        parts.append("the result")
    if left.files:
        parts.append(f"{left.files:,} file{'s' if left.files > 1 else ''}")
    return ", ".join(parts)


if __name__ == "__main__":
    sys.exit(run(main))
