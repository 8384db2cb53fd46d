"""`sesttune evaluate`: score a model on held-out conditions, beside predictions without a model."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from sesttune.command import add_trial_arguments, check_output, open_console, run, show_table
from sesttune.config.schema import Config
from sesttune.errors import UserError
from sesttune.system.atomic import replacing

if TYPE_CHECKING:
    import pandas as pd

    from sesttune.data.trial_data import TrialData
    from sesttune.held_out import Model

SHOWN = 5
"""Perturbations shown at either end; all are in `--output`."""


def main(argv: Sequence[str]) -> int:
    """Score a model on the held-out conditions of its data, beside the mean baselines."""
    parser = argparse.ArgumentParser("sesttune evaluate", description=main.__doc__)
    parser.add_argument("--model", help="models:/se-st@champion, or a folder with head.json")
    add_trial_arguments(parser)
    parser.add_argument("--against", metavar="MODEL", help="compare with it by condition")
    parser.add_argument("--split", choices=("test", "val"), help="default: test where there is one")
    parser.add_argument("--output", type=Path, metavar="F.csv", help="every condition's metrics")
    parser.add_argument(
        "--cell-eval", type=Path, metavar="DIR", help="also cell-eval's metrics (extra `eval`)"
    )
    parser.add_argument("--output-dir", default="outputs", help="runs and MLflow: %(default)s")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="data.KEY=value",
        help="other data than the model's own, or where they lie now; also the encoder's "
        "model.kwargs.se_model_path and se_checkpoint_path",
    )
    args = parser.parse_intermixed_args(argv)
    if (args.model is None) == (args.sweep is None):
        raise UserError("name what to evaluate: --model M, or --sweep NAME")
    if args.model is not None and (args.trial is not None or args.step is not None):
        raise UserError("--trial and --step go with --sweep, not with --model")
    if args.output is not None:
        check_output(args.output, (".csv",))
    from sesttune.config.paths import INPUTS

    keys = [text.lstrip("+").partition("=")[0] for text in args.overrides]
    wrong = [key for key in keys if not key.startswith("data.") and key not in INPUTS]
    if wrong:
        raise UserError(f"{wrong[0]}: only data.* settings can be changed, the model is fixed")
    if args.cell_eval is not None:
        # A bar a metric, over whatever is printed; tqdm reads this when torch loads it.
        os.environ.setdefault("TQDM_DISABLE", "1")
        from sesttune.evaluation.cell_eval import require_cell_eval

        require_cell_eval()
    console = open_console()
    _evaluate(args, console)
    return 0


def _evaluate(args: argparse.Namespace, console: Console) -> None:
    from sesttune.config.load import parse_override, with_point
    from sesttune.evaluation.challenge import challenge
    from sesttune.evaluation.scores import genes_not_left_out, losses_of
    from sesttune.held_out import (
        chosen_trial,
        evaluate_models,
        heading,
        held_out_split,
        rival_may_know,
        score_table,
        stored_model,
        trial_model,
    )
    from sesttune.run_setup import open_run, prepared_data, run_data
    from sesttune.tracking.store import tracking_uri

    known = None if args.sweep is None else open_run(args.output_dir, args.sweep)
    uri = tracking_uri(known.config if known else Config(output_dir=args.output_dir))
    point = dict(parse_override(text) for text in args.overrides)
    if point:  # the model's genes are compared by name, which says more than their number
        point |= {"model.kwargs.input_dim": None, "model.kwargs.output_dim": None}
    own = genes = None
    if known is None:
        model = stored_model(args.model, uri)
    else:
        record = chosen_trial(known, args.trial)
        own = run_data(known, console)
        model = trial_model(known, record, args.step, own)
    config, model = with_point(model.config, point), model.found_at(point)
    data = own if own is not None and not point else prepared_data(config, console)
    if data.store.genes != model.about["genes"] and "data.kwargs.gene_list" not in point:
        genes = model.about["genes"]  # of files that have more, or in another order
        data = prepared_data(config, console, genes=genes)
    for note in data.notes if point else ():  # those of its own data its training told
        console.print(f"  {note}")
    split = args.split or held_out_split(data)
    models = {"model": model}
    if args.against is not None:
        models["against"] = stored_model(args.against, uri)
    scores = evaluate_models(models, data, config, split, console, genes)
    console.print(heading(model, split, data))
    if data.fingerprint != model.about["data_fingerprint"]:
        console.print(_other_data(own, data, split))
    show_table(console, score_table(scores))
    if scores["cell_type"].nunique() > 1:
        show_table(console, score_table(scores, "cell_type"))
    if (told := genes_not_left_out(data, split)) is not None:
        console.print(told)
    _show_extremes(scores, console)
    rivals = ["against"] if args.against is not None else []
    for rival in [*rivals, "perturbation_mean"]:
        found = challenge(losses_of(scores, "model"), losses_of(scores, rival))
        name = args.against if rival == "against" else rival
        console.print(f"against {name}: {found}")
    if args.against is not None and (told := rival_may_know(models["against"], data)) is not None:
        console.print(told)
    if args.output is not None:
        with replacing(args.output) as draft:
            scores.to_csv(draft, index=False)
        console.print(f"every condition: {args.output}")
    if args.cell_eval is not None:
        show_table(console, _cell_eval(model, data, config, split, args.cell_eval))


def _other_data(own: "TrialData | None", data: "TrialData", split: str) -> str:
    """What data that are not the model's own mean for its scores; `own`: where they are known."""
    from sesttune.held_out import trained_conditions

    said = "not the data it was trained on:"
    if own is None:
        return f"{said} it may have been trained on some of these conditions"
    seen, total = trained_conditions(own, data, split), len(data.conditions(split))
    return f"{said} {seen} of these {total} conditions were in its training"


def _show_extremes(scores: "pd.DataFrame", console: Console) -> None:
    """The perturbations that are predicted best and worst, over cell types."""
    own = scores[scores["predictor"] == "model"]
    means = own.groupby("perturbation")["pearson_delta"].mean().dropna().sort_values()
    if len(means) < 2 * SHOWN:
        return
    for name, part in (("best", means[: -SHOWN - 1 : -1]), ("worst", means[:SHOWN])):
        listed = ", ".join(f"{pert} {value:.2f}" for pert, value in part.items())
        console.print(f"{name} by Pearson Δ: {listed}")


def _cell_eval(
    model: "Model", data: "TrialData", config: Config, split: str, folder: Path
) -> Table:
    from sesttune.evaluation.cell_eval import run_cell_eval
    from sesttune.evaluation.predictors import head_predictor

    predict = head_predictor(model.head, data.controls, data.features)
    return cell_eval_table(run_cell_eval(data, split, predict, config, folder), folder)


def cell_eval_table(found: Mapping[str, Mapping[str, float]], folder: Path) -> Table:
    """Each metric that cell-eval computed in any context, by context (`found`)."""
    table = Table(title=f"cell-eval, in {folder}", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("metric")
    for context in found:
        table.add_column(context, justify="right")
    # cell-eval leaves a metric out of a context that it cannot compute it in.
    for metric in dict.fromkeys(name for means in found.values() for name in means):
        values = (means.get(metric) for means in found.values())
        table.add_row(metric, *("-" if value is None else f"{value:.4g}" for value in values))
    return table


if __name__ == "__main__":
    sys.exit(run(main))
