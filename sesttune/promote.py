"""`sesttune promote`: register a trained head in MLflow, if it beats the one that serves now.

Candidate and champion predict the same held-out conditions. A candidate that is not better beyond
noise is refused, with the table, unless `--force` says why it is to be the champion all the same.
"""

import argparse
import json
import math
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from sesttune.command import add_trial_arguments, open_console, program, run, show_table
from sesttune.config.schema import Config
from sesttune.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from sesttune.data.trial_data import TrialData
    from sesttune.held_out import Model
    from sesttune.run_setup import Run
    from sesttune.tracking.aliases import Version


def main(argv: Sequence[str]) -> int:
    """Register a sweep's best model, if it beats the present champion on held-out data."""
    parser = argparse.ArgumentParser("sesttune promote", description=main.__doc__)
    add_trial_arguments(parser)
    parser.add_argument("--alias", default="champion", help="default: %(default)s")
    parser.add_argument(
        "--split", choices=("test", "val"), help="held-out data; default: test where there is one"
    )
    parser.add_argument("--force", metavar="REASON", help="promote all the same, and record why")
    parser.add_argument(
        "--export-state", type=Path, metavar="DIR", help="also a folder for `state tx infer`"
    )
    parser.add_argument("--rollback", action="store_true", help="back to the former champion")
    parser.add_argument("--list", action="store_true", help="every registered version")
    parser.add_argument("--output-dir", default="outputs", help="default: %(default)s")
    args = parser.parse_args(argv)
    if [args.sweep is not None, args.rollback, args.list].count(True) != 1:
        raise UserError("name one of --sweep NAME, --rollback, --list")
    if not re.fullmatch(r"[\w-]+", args.alias) or re.fullmatch(r"v\d+|latest", args.alias):
        raise UserError(
            f"--alias {args.alias}: MLflow takes letters, digits, _ and -, and neither `latest` "
            "nor a version such as v1"
        )
    if args.force is not None and not args.force.strip():
        raise UserError('--force needs a reason, e.g. --force "the old one saw the test data"')
    if args.export_state is not None and (args.sweep is None or args.export_state.exists()):
        raise UserError(f"--export-state {args.export_state} must be new, and goes with --sweep")
    console = open_console()
    from sesttune.run_setup import open_run
    from sesttune.tracking.store import mlflow_store, tracking_uri

    known = None if args.sweep is None else open_run(args.output_dir, args.sweep)
    config = known.config if known else Config(output_dir=args.output_dir)
    uri = tracking_uri(config)
    with mlflow_store(uri):
        if known is not None:
            return _promote(known, args, uri, console)
        return _roll_back(uri, args.alias, console) if args.rollback else _list(uri, console)


def _promote(known: "Run", args: argparse.Namespace, uri: str, console: Console) -> int:
    from sesttune.evaluation.scores import METRICS, summary
    from sesttune.held_out import chosen_trial, held_out_split, trial_model
    from sesttune.model.head_checkpoint import read_vectors
    from sesttune.model.state_export import export_state, infer_command
    from sesttune.result import unfinished
    from sesttune.run_setup import run_data
    from sesttune.system.atomic import room_on_disk
    from sesttune.tracking.aliases import MODEL_NAME, move_alias, refuse_overtaken, serving
    from sesttune.tracking.registry import log_held_out, register, require_run, write_model
    from sesttune.tracking.sync import RunTracker

    if (told := unfinished(known)) is not None:
        console.print(told)
    record = chosen_trial(known, args.trial)
    tracker = RunTracker(known.folder, uri, known.config.tracking.experiment)
    tracker.sync()
    run_id = tracker.trial_run(record.id)
    assert run_id is not None
    require_run(run_id, uri)  # scoring takes minutes
    data = run_data(known, console)
    candidate = trial_model(known, record, args.step, data)
    args.split = args.split or held_out_split(data)
    champion = serving(uri, args.alias)
    _refuse_the_same(candidate, champion, known.folder.name, record.id, args.alias)
    scores, said, accepted = _judge(candidate, champion, data, args, uri, console)
    if not accepted:
        line = f'not promoted; --force "reason" makes it the {args.alias} all the same'
        console.print(line)
        return 1
    means = summary(scores)
    held_out = {f"{args.split}_{m}": means[m].to_dict()["candidate"] for m in METRICS}
    held_out = {name: value for name, value in held_out.items() if math.isfinite(value)}
    tags = {
        "sweep": known.folder.name,
        "trial": record.id,
        "params": json.dumps(record.params),
        "held_out": args.split,
        "against": said,
        **{name: f"{value:.6g}" for name, value in held_out.items()},
        **({"forced": args.force} if args.force else {}),
    }
    refuse_overtaken(uri, args.alias, champion)  # scoring takes minutes on real data
    log_held_out(run_id, held_out, candidate.about["step"], uri)
    with tempfile.TemporaryDirectory() as folder:
        with room_on_disk(Path(folder)):
            about = write_model(Path(folder), candidate.head, candidate.about, data)
        version = register(run_id, Path(folder), about, tags, uri)
        refuse_overtaken(uri, args.alias, champion)
        move_alias(uri, args.alias, version)
        if args.export_state is not None:
            vectors = read_vectors(Path(folder))
            export_state(args.export_state, candidate.head, about, vectors)
    console.print(
        f"registered {MODEL_NAME} version {version} as '{args.alias}' ({candidate.label})\n"
        f"use it: {_predict_command(known, args)}"
    )
    if args.export_state is not None:
        infer = infer_command(args.export_state, about)
        console.print(f"or:     {infer}")
    return 0


def _predict_command(known: "Run", args: argparse.Namespace) -> str:
    from sesttune.tracking.aliases import MODEL_NAME

    words = ["predict", "--model", f"models:/{MODEL_NAME}@{args.alias}"]
    words += ["--adata", "IN.h5ad", "--output", "OUT.h5ad"]
    words += ["--output-dir", args.output_dir] if args.output_dir != "outputs" else []
    own = known.config.tracking.uri  # the environment's, where it counts, is there already
    store = f"MLFLOW_TRACKING_URI={shlex.quote(own)} " if own is not None else ""
    return f"{store}{program()} {shlex.join(words)}"


def _refuse_the_same(
    candidate: "Model", champion: "Version | None", sweep: str, trial: str, alias: str
) -> None:
    if champion is None:
        return
    about = candidate.about
    same = {"sweep": sweep, "trial": trial, "step": str(about["step"])}
    same["data_fingerprint"] = about["data_fingerprint"]
    if all(champion.tags.get(key) == value for key, value in same.items()):
        raise UserError(f"{candidate.label} is the {alias} already (version {champion.version})")


def _judge(
    candidate: "Model",
    champion: "Version | None",
    data: "TrialData",
    args: argparse.Namespace,
    uri: str,
    console: Console,
) -> "tuple[pd.DataFrame, str, bool]":
    """Scores on held-out data, the comparison in words, and whether the candidate is accepted."""
    from sesttune.evaluation.challenge import challenge
    from sesttune.evaluation.scores import genes_not_left_out, losses_of
    from sesttune.held_out import (
        evaluate_models,
        heading,
        rival_may_know,
        score_table,
        stored_model,
    )
    from sesttune.tracking.aliases import MODEL_NAME

    config, split, rival = candidate.config, args.split, None
    models, said = {"candidate": candidate}, f"no {args.alias} before it"
    if champion is not None:
        rival = f"{args.alias} (version {champion.version})"
        try:
            stored = stored_model(f"models:/{MODEL_NAME}/{champion.version}", uri)
            both = {**models, "champion": stored}
            scores = evaluate_models(both, data, config, split, console)
        except UserError as error:
            if args.force is None:
                raise UserError(
                    f'cannot compare with the {rival}: {error}; --force "reason" promotes without'
                ) from None
            rival, said = None, f"not compared with the {rival}: {error}"
    if rival is None:
        scores = evaluate_models(models, data, config, split, console)
    console.print(heading(candidate, split, data))
    show_table(console, score_table(scores))
    if (told := genes_not_left_out(data, split)) is not None:
        console.print(told)
    if rival is None:
        mean = challenge(losses_of(scores, "candidate"), losses_of(scores, "perturbation_mean"))
        console.print(f"against perturbation_mean: {mean}")
        return scores, said, True
    found = challenge(losses_of(scores, "candidate"), losses_of(scores, "champion"))
    said = f"{rival}: {found}"
    console.print(f"against {said}")
    if (told := rival_may_know(stored, data)) is not None:
        console.print(told)
    return scores, said, found.better or args.force is not None


def _roll_back(uri: str, alias: str, console: Console) -> int:
    from sesttune.tracking.aliases import MODEL_NAME, previous_of, roll_back

    left, now = roll_back(uri, alias)
    console.print(
        f"{MODEL_NAME} version {now} is '{alias}' again; version {left} is '{previous_of(alias)}'"
    )
    return 0


def _list(uri: str, console: Console) -> int:
    from sesttune.tracking.aliases import MODEL_NAME, versions

    found = versions(uri)
    if not found:
        console.print(f"no version of {MODEL_NAME} is registered yet")
        return 0
    table = Table(box=None, pad_edge=False)  # fits 80 columns
    for column in (
        "version",
        "alias",
        "on",
        "trial",
        "step",
        "val_loss",
        "held out",
        "Pearson",
    ):
        table.add_column(column, overflow="fold", no_wrap=column != "trial")
    for item in found:
        split = item.tags.get("held_out")
        when = time.strftime("%Y-%m-%d", time.localtime(item.created_ms / 1000))
        keys = ("val_loss", f"{split}_loss", f"{split}_pearson_delta")
        val_loss, loss, pearson = (_short(item.tags.get(key, "-")) for key in keys)
        trial = f"{item.tags.get('sweep', '-')}/{item.tags.get('trial', '-')}"
        step, aliases = item.tags.get("step", "-"), ", ".join(item.aliases)
        scores = (val_loss, f"{loss} ({split})", pearson)
        table.add_row(item.version, aliases, when, trial, step, *scores)
    show_table(console, table)
    return 0


def _short(value: str) -> str:
    """A number in four digits; `-` stays."""
    return value if value == "-" else f"{float(value):.4g}"


if __name__ == "__main__":
    sys.exit(run(main))
