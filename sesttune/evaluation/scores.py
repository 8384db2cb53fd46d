"""Score predictors on the held-out conditions of a split, all on the same cell sets.

One fixed cell set a condition, those of the validation during training, so the loss of a model is
the `val_loss` that its trial reported (of one in bfloat16 to four digits). Predicted effects
are taken from these sets, real ones from all cells of the condition (at most `CELLS_OF_MEAN`).
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch

from sesttune.data.sampling import CellSets
from sesttune.data.trial_data import Condition, TrialData, name_of
from sesttune.evaluation.baselines import CELLS_OF_MEAN, dense_sets
from sesttune.evaluation.metrics import (
    Moments,
    changed_genes,
    discrimination,
    mean_absolute_error,
    pearson_delta,
    top_overlap,
)
from sesttune.evaluation.predictors import Predictor, parts
from sesttune.model.losses import Loss
from sesttune.system.cached_folder import Progress, no_progress

NAMES = ("dataset", "cell_type", "perturbation")
METRICS = {
    "loss": "lower",
    "mae": "lower",
    "pearson_delta": "higher",
    "top_overlap": "higher",
    "discrimination": "higher",
}
"""Every metric of a condition, and which direction is better."""


def score(
    data: TrialData,
    split: str,
    sets: CellSets,
    predictors: Mapping[str, Predictor],
    loss: Loss,
    progress: Progress = no_progress,
) -> pd.DataFrame:
    """A row per predictor and condition.

    Columns: `predictor`, `dataset`, `cell_type`, `perturbation`, `cells` and `METRICS`.

    `sets`: one set per condition of `split`, in their order (`sampling.fixed_sets`).
    """
    losses, means = _predict(data, sets, predictors, loss, progress)
    conditions = data.conditions(split)
    controls = _controls(data)
    real = np.empty((len(conditions), data.n_genes))
    changed = []  # the variances that tell are let go of: of 10,000 conditions they are 1.4 GB
    for index, condition in enumerate(conditions):
        moments = _moments(data, condition.rows)
        real[index] = moments.mean
        changed.append(changed_genes(moments, controls[condition.dataset, condition.cell_type]))
        progress("real effects", index + 1, len(conditions))
    tables: list[pd.DataFrame] = []
    progress("scoring predictions", 0, len(predictors))
    for name in predictors:
        rows = []
        for index, condition in enumerate(conditions):
            base = controls[condition.dataset, condition.cell_type]
            effect = means[name][index] - base.mean
            rows.append(
                {
                    "predictor": name,
                    **dict(zip(NAMES, name_of(data.store, condition), strict=True)),
                    "cells": len(condition.rows),
                    "loss": losses[name][index],
                    "mae": mean_absolute_error(means[name][index], real[index]),
                    "pearson_delta": pearson_delta(effect, real[index] - base.mean),
                    "top_overlap": top_overlap(effect, changed[index]),
                }
            )
        table = pd.DataFrame(rows)
        table["discrimination"] = _discrimination(data, conditions, means[name], real)
        tables.append(table)
        progress("scoring predictions", len(tables), len(predictors))
    return pd.concat(tables, ignore_index=True)


def summary(scores: pd.DataFrame, by: str | None = None) -> pd.DataFrame:
    """Mean of each metric over conditions, by predictor (and by one of a condition's columns)."""
    keys = ["predictor"] if by is None else [by, "predictor"]
    return scores.groupby(keys, sort=False)[list(METRICS)].mean()


def genes_not_left_out(data: TrialData, split: str) -> str | None:
    """What is to be said of discrimination where a perturbed gene is not found, hence kept."""
    names = {data.store.names["pert"][condition.pert] for condition in data.conditions(split)}
    kept = sorted(names - set(data.store.target_genes))
    if not kept:
        return None
    return (
        f"{len(kept)} of {len(names)} perturbations (e.g. '{kept[0]}') bear the name of none of "
        "the genes compared, in var's index or a column: discrimination leaves no gene out for them"
    )


def losses_of(scores: pd.DataFrame, predictor: str) -> np.ndarray:
    """The loss of each condition, in their order."""
    return scores.loc[scores["predictor"] == predictor, "loss"].to_numpy()


def _predict(
    data: TrialData,
    sets: CellSets,
    predictors: Mapping[str, Predictor],
    loss: Loss,
    progress: Progress,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Loss [sets] and mean predicted expression [sets, genes] of each predictor."""
    losses: dict[str, list[np.ndarray]] = {name: [] for name in predictors}
    means: dict[str, list[np.ndarray]] = {name: [] for name in predictors}
    done = 0
    for part in parts(sets):
        target = torch.from_numpy(dense_sets(data.store, part.pert_rows))
        for name, predict in predictors.items():
            predicted = predict(part)
            losses[name].append(loss(predicted, target).numpy())
            means[name].append(predicted.mean(1).numpy())
        done += len(part)
        progress("predicting", done, len(sets))
    joined = [{k: np.concatenate(v) for k, v in found.items()} for found in (losses, means)]
    return joined[0], joined[1]


def _controls(data: TrialData) -> dict[tuple[int, int], Moments]:
    """Of each context's controls."""
    store = data.store
    rows = np.flatnonzero(store.is_control)
    contexts = np.stack([store.dataset[rows], store.cell_type[rows]], 1)
    return {
        (int(dataset), int(cell_type)): _moments(
            data, rows[(contexts == (dataset, cell_type)).all(1)]
        )
        for dataset, cell_type in np.unique(contexts, axis=0)
    }


def _moments(data: TrialData, rows: np.ndarray) -> Moments:
    if len(rows) > CELLS_OF_MEAN:  # spread over the rows, hence over files and batches
        rows = rows[np.linspace(0, len(rows) - 1, CELLS_OF_MEAN).astype(np.int64)]
    return Moments.of(data.store.dense(rows))


def _discrimination(
    data: TrialData, conditions: list[Condition], predicted: np.ndarray, real: np.ndarray
) -> np.ndarray:
    """Within each context; the differences to the controls cancel, so means serve."""
    names, genes = data.store.names["pert"], data.store.target_genes
    targets = np.array([genes.get(names[c.pert], -1) for c in conditions])
    contexts = np.array([(c.dataset, c.cell_type) for c in conditions])
    scores = np.empty(len(conditions))
    for context in np.unique(contexts, axis=0):
        here = np.flatnonzero((contexts == context).all(1))
        scores[here] = discrimination(predicted[here], real[here], targets[here])
    return scores
