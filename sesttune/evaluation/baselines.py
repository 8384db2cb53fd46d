"""Predictions without a model, which any model must beat to be worth something.

- `controls`: the paired control cells as they are;
- `mean_of_controls`: their mean, for every cell of a set;
- `perturbation_mean`: the mean of the context's controls plus the mean change that the
  perturbation made in training (over contexts, each change of means); for a perturbation that
  training lacks, the mean change of all that it has.
"""

from collections import Counter
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from sesttune.config.schema import Config
from sesttune.data.sampling import CellSets, fixed_sets
from sesttune.data.store import CellStore
from sesttune.data.trial_data import TrialData
from sesttune.evaluation.predictors import Predictor, parts
from sesttune.model.losses import loss_function
from sesttune.system.cached_folder import Progress, no_progress

CELLS_OF_MEAN = 512
"""Cells of a condition or context that its mean is taken of: it moves by 4 % of their spread."""


def baselines(
    config: Config, data: TrialData, progress: Progress = no_progress
) -> dict[str, float]:
    """The validation loss of each, over the same sets as that of a trial."""
    loss = loss_function(config.model.kwargs.loss)
    seed = config.training.train_seed
    sets = fixed_sets(data, "val", config.model.kwargs.st_cell_set_len, seed)
    found: dict[str, list[Tensor]] = {}
    predictors, done = baseline_predictors(data, seed, progress), 0
    for part in parts(sets):
        target = torch.from_numpy(dense_sets(data.store, part.pert_rows))
        for name, predict in predictors.items():
            found.setdefault(name, []).append(loss(predict(part), target))
        done += len(part)
        progress("losses without a model", done, len(sets))
    return {name: float(torch.cat(losses).mean()) for name, losses in found.items()}


def baseline_predictors(
    data: TrialData, seed: int, progress: Progress = no_progress
) -> dict[str, Predictor]:
    """The predictors by name; `seed` picks the cells that the means are taken of."""
    control_means, changes, overall = _means(data, seed, progress)
    store = data.store

    def controls(sets: CellSets) -> Tensor:
        return torch.from_numpy(dense_sets(store, sets.control_rows))

    def mean_of_controls(sets: CellSets) -> Tensor:
        cells = controls(sets)
        return cells.mean(1, keepdim=True).expand_as(cells)

    def perturbation_mean(sets: CellSets) -> Tensor:
        means = [
            control_means[_context(store, rows[0])] + changes.get(int(pert), overall)
            for rows, pert in zip(sets.pert_rows, sets.pert_codes, strict=True)
        ]
        each = torch.from_numpy(np.stack(means))[:, None]  # [sets, 1, genes]
        return each.expand(-1, sets.pert_rows.shape[1], -1)

    return {
        "controls": controls,
        "mean_of_controls": mean_of_controls,
        "perturbation_mean": perturbation_mean,
    }


def dense_sets(store: CellStore, rows: np.ndarray) -> np.ndarray:
    """log1p expression of `rows` (int64 [sets, cells]), float32 [sets, cells, genes]."""
    return store.dense(rows.ravel()).reshape(*rows.shape, store.n_genes)


def _means(
    data: TrialData, seed: int, progress: Progress
) -> tuple[Mapping[tuple[int, int], np.ndarray], Mapping[int, np.ndarray], np.ndarray]:
    """Mean of each context's controls; mean change of each training perturbation that is held out;
    and of all that are trained on [genes].

    Sums, and none of a perturbation that is not asked for: a mean for each of 100,000 conditions
    would take 7 GB.
    """
    store, rng = data.store, np.random.default_rng(seed)
    controls = np.flatnonzero(store.is_control)
    keys = store.context[controls]
    by_context = {
        _context(store, controls[keys == key][0]): _mean(store, controls[keys == key], rng)
        for key in np.unique(keys)
    }
    conditions = data.conditions("train")
    times = Counter(condition.pert for condition in conditions)
    asked = {c.pert for split in ("val", "test") for c in data.conditions(split)}
    changes = {pert: np.zeros(store.n_genes) for pert in sorted(asked & times.keys())}
    overall = np.zeros(store.n_genes)
    for done, condition in enumerate(conditions, 1):
        context = (condition.dataset, condition.cell_type)
        change = _mean(store, condition.rows, rng) - by_context[context]
        change /= times[condition.pert]
        overall += change
        if condition.pert in changes:
            changes[condition.pert] += change
        progress("means of conditions", done, len(conditions))
    overall /= len(times)
    return (
        by_context,
        {pert: change.astype(np.float32) for pert, change in changes.items()},
        overall.astype(np.float32),
    )


def _mean(store: CellStore, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if len(rows) > CELLS_OF_MEAN:
        rows = np.sort(rng.choice(rows, CELLS_OF_MEAN, replace=False))
    mean: np.ndarray = store.dense(rows).mean(0)
    return mean


def _context(store: CellStore, row: int) -> tuple[int, int]:
    return int(store.dataset[row]), int(store.cell_type[row])
