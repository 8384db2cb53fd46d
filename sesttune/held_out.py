"""Evaluate models on held-out data: what `evaluate` and `promote` share.

Every model is shown the same cells in the same sets. One that was trained on other data, or with
another encoder or other perturbation features, sees them through its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sesttune.config.load import from_dict, settings_by_key, to_dict, with_point
from sesttune.config.paths import INPUTS, MOVABLE
from sesttune.config.schema import Config
from sesttune.data.identity import other_embeddings
from sesttune.data.sampling import fixed_sets
from sesttune.data.trial_data import TrialData, name_of
from sesttune.data.value_scale import unlike_training
from sesttune.errors import UserError
from sesttune.evaluation.baselines import baseline_predictors
from sesttune.evaluation.predictors import head_predictor
from sesttune.evaluation.scores import METRICS, score, summary
from sesttune.model.head_checkpoint import import_head, read_vectors
from sesttune.model.losses import loss_function
from sesttune.model.st_head import STHead
from sesttune.run_setup import Run, prepared_data
from sesttune.search.outcome import read_outcome
from sesttune.search.recorded import read_schedule
from sesttune.system.progress_bars import progress_bars
from sesttune.tracking.provenance import provenance
from sesttune.training.records import TrialRecord, list_trials
from sesttune.training.trained_head import trained_head

HEADINGS = {
    "loss": "loss ↓",
    "mae": "MAE ↓",
    "pearson_delta": "Pearson Δ ↑",
    "top_overlap": "top-50 DE ↑",
    "discrimination": "discrimination ↑",
}


@dataclass(frozen=True)
class Model:
    """A head in eval mode, what it is called, and how it was made (as `head.json` says).

    `vectors`: name -> float32 [pert_dim] of the perturbations that came with it.
    """

    label: str
    head: STHead
    about: dict[str, Any]
    vectors: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def config(self) -> Config:
        return from_dict(self.about["config"])

    def found_at(self, places: Mapping[str, object]) -> "Model":
        """The same with its inputs elsewhere; of dotted keys and values those in `INPUTS` count."""
        own = {key: value for key, value in places.items() if key in INPUTS}
        config = to_dict(with_point(self.config, own))
        return replace(self, about={**self.about, "config": config})


def chosen_trial(run: Run, trial: str | None) -> TrialRecord:
    """The trial `trial` of a run, by default its best; raises UserError where it cannot be had."""
    name = run.folder.name
    records = {record.id: record for record in list_trials(run.folder)}
    if not records:
        raise UserError(f"{run.folder} holds no trial")
    if trial is None:
        best = read_outcome(run.folder, run.config).best
        if best is None:
            raise UserError(f"no trial of {name} has a result")
        trial = best.id
    if trial not in records:
        raise UserError(f"no trial '{trial}' in {name}; there are: {', '.join(records)}")
    trunk = read_schedule(records[trial].folder).get("shares")
    if trunk is not None and trunk not in records:
        raise UserError(
            f"trial {trial} has its result of the training of trial {trunk}, whose folder is gone: "
            f"sesttune sweep --resume {name} trains it again"
        )
    if trunk is not None:
        raise UserError(
            f"trial {trial} is the beginning of the training of trial {trunk}, which has the "
            f"checkpoint: --trial {trunk}"
        )
    return records[trial]


def trial_model(run: Run, record: TrialRecord, step: int | None, data: TrialData) -> Model:
    """The head that a trial trained, at its best or at `step`."""
    head, about = trained_head(record, data, step)
    own = settings_by_key(run.config)  # the inputs may have been moved since it was written
    config = with_point(from_dict(about["config"]), {key: own[key] for key in MOVABLE})
    about |= {**provenance(record), "config": to_dict(config)}
    return Model(f"{run.folder.name}/{record.id} at step {about['step']:,}", head, about)


def stored_model(model: str, uri: str) -> Model:
    """`models:/NAME@ALIAS` of the registry at `uri`, or a folder with `head.json`."""
    from sesttune.tracking.registry import fetch_model  # MLflow takes seconds to import

    folder = fetch_model(model, uri)
    head, about = import_head(folder)
    return Model(model, head, about, read_vectors(folder))


def held_out_split(data: TrialData) -> str:
    """`test` where the split file has one, else `val`."""
    return "test" if data.conditions("test") else "val"


def evaluate_models(
    models: Mapping[str, Model],
    data: TrialData,
    config: Config,
    split: str,
    console: Console,
    genes: list[str] | None = None,
) -> pd.DataFrame:
    """Scores of the models and of the baselines (`evaluation/scores.py`), all on `data`.

    The first model's loss and set length serve for all; `genes` are what `data` were prepared
    with. Raises UserError where a model cannot see these data.
    """
    kwargs, seed = config.model.kwargs, config.training.train_seed
    sets = fixed_sets(data, split, kwargs.st_cell_set_len, seed)
    predictors = {}
    for name, model in models.items():
        seen = _as_seen_by(model, data, config, console, genes)
        predictors[name] = head_predictor(model.head, seen.controls, seen.features)
    with progress_bars(console) as progress:
        predictors |= baseline_predictors(data, seed, progress)
        return score(data, split, sets, predictors, loss_function(kwargs.loss), progress)


def _as_seen_by(
    model: Model,
    data: TrialData,
    config: Config,
    console: Console,
    genes: list[str] | None,
) -> TrialData:
    """The same cells with the control embeddings and features that `model` was made for."""
    if model.about["genes"] != data.store.genes:
        raise UserError(f"{model.label} predicts other genes than these data have")
    _refuse_another_scale(model, data, config)
    settings = settings_by_key(config)
    point = {k: v for k, v in settings.items() if k.startswith("data.") and k not in INPUTS}
    point["training.train_seed"] = settings["training.train_seed"]  # it may choose the conditions
    for key, own in settings_by_key(model.config).items():  # moved: those here may be the same
        if key in INPUTS and key in MOVABLE and own and not Path(own).expanduser().exists():
            point[key] = settings[key]
    seen = prepared_data(with_point(model.config, point), console, genes=genes)
    then = model.about["encoder"]
    same_cells = model.about["data_fingerprint"] == data.fingerprint
    if other_embeddings(then, seen.encoder, same_cells):
        raise UserError(
            f"{model.label} was trained with the encoder {then['label']} of "
            f"sha256 {then['sha256'][:12]}, but {seen.encoder['path']} is another"
            if then["sha256"]
            else f"{model.label} was trained with {then['label']}, but these hold other embeddings"
        )
    _refuse_other_vectors(model, seen)
    told = unlike_training(data.store.counts_a_cell, model.about.get("counts_a_cell", ()))
    if told is not None:
        console.print(f"warning: {model.label}: {told}")
    if seen.store.fingerprint != data.store.fingerprint:
        raise UserError(f"{model.label} cannot be shown the same cells")
    return seen


def _refuse_other_vectors(model: Model, seen: TrialData) -> None:
    """The file may have been written again since."""
    rows = zip(seen.store.names["pert"], seen.features, strict=True)
    there = {name: row for name, row in rows if name in model.vectors and row[0] == row[0]}
    other = [name for name, row in there.items() if not np.array_equal(row, model.vectors[name])]
    if other:
        raise UserError(
            f"{model.label} was trained with other vectors of {len(other)} perturbations (e.g. "
            f"'{other[0]}') than {model.config.data.kwargs.perturbation_features_file} holds: put "
            "back the file that it was trained with, or name it to evaluate "
            "(data.kwargs.perturbation_features_file=)"
        )


def _refuse_another_scale(model: Model, data: TrialData, config: Config) -> None:
    own, these = model.config.data.kwargs, config.data.kwargs
    raw = any(about["values"] == "raw" for about in data.store.files)
    given = {own.counts, these.counts} == {"raw", "log1p"}
    for key, differs in (
        ("target_sum", raw and own.target_sum != these.target_sum),
        ("counts", given),
    ):
        if differs:
            raise UserError(
                f"{model.label} was trained with data.kwargs.{key}={getattr(own, key)}, these data "
                f"are taken with {getattr(these, key)}: its predictions have another scale"
            )


def heading(model: Model, split: str, data: TrialData) -> str:
    """What is evaluated on what, in a line."""
    conditions = data.conditions(split)
    cells = sum(len(condition.rows) for condition in conditions)
    said = f"{model.label} on {split}: {len(conditions)} conditions, {cells:,} perturbed cells"
    if split == "val" and data.fingerprint == model.about["data_fingerprint"]:
        said += " (which chose the model, so these figures flatter it)"
    return said


def rival_may_know(rival: Model, data: TrialData) -> str | None:
    """What is to be said of a rival from which nothing has held these conditions."""
    if rival.about["data_fingerprint"] == data.fingerprint:
        return None
    return (
        f"{rival.label} was trained on other data or another split: it may have been trained on "
        "some of these conditions, which would flatter it"
    )


def trained_conditions(own: TrialData, data: TrialData, split: str) -> int:
    """How many of `split`'s conditions (cell type and perturbation) `own` has for training."""

    def named(of: TrialData, part: str) -> list[tuple[str, ...]]:
        return [name_of(of.store, condition)[1:] for condition in of.conditions(part)]

    trained = set(named(own, "train"))
    return sum(name in trained for name in named(data, split))


def score_table(scores: pd.DataFrame, by: str | None = None) -> Table:
    """Mean metrics of each predictor (by a column), the best of each in bold."""
    table = Table(box=SIMPLE_HEAD)
    for column in ([by] if by else []) + ["predictor"]:
        table.add_column(column.replace("_", " "))
    for metric in METRICS:
        table.add_column(HEADINGS[metric], justify="right")
    means = summary(scores, by)
    groups = [means] if by is None else [group for _, group in means.groupby(level=0, sort=False)]
    for group in groups:
        best = {m: group[m].min() if METRICS[m] == "lower" else group[m].max() for m in METRICS}
        for index, row in group.iterrows():
            cells = [
                Text(_cell(row[metric]), style="bold" if row[metric] == best[metric] else "")
                for metric in METRICS
            ]
            # As text, which no console takes for markup.
            named = [Text(name) for name in (index if isinstance(index, tuple) else (str(index),))]
            table.add_row(*named, *cells)
    return table


def _cell(value: float) -> str:
    return "-" if value != value else f"{value:.4g}"
