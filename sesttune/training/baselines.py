"""Validation loss of predictions that any model must beat to be worth something.

- `controls`: the paired control cells as they are;
- `mean_of_controls`: their mean, for every cell of a set;
- `perturbation_mean`: the mean of the context's controls plus the mean change that the
  perturbation made in training (over contexts, each change of means); for a perturbation that
  training lacks, the mean change of all that it has.
"""

from collections.abc import Mapping

import numpy as np
import torch

from sesttune.config.schema import Config
from sesttune.data.sampling import fixed_sets
from sesttune.data.store import CellStore
from sesttune.data.trial_data import TrialData
from sesttune.model.losses import loss_function

CELLS_OF_MEAN = 512
"""Cells of a condition or context that its mean is taken of: it moves by 4 % of their spread."""


def baselines(config: Config, data: TrialData) -> dict[str, float]:
    """The loss of each, over the same sets as that of a trial."""
    loss = loss_function(config.model.kwargs.loss)
    seed = config.training.train_seed
    sets = fixed_sets(data, "val", config.model.kwargs.st_cell_set_len, seed)
    control_means, changes = _means(data, seed)
    overall = np.mean(list(changes.values()), axis=0)
    found: dict[str, list[float]] = {name: [] for name in ("controls", "mean_of_controls")}
    found["perturbation_mean"] = []
    for rows, control_rows, pert in zip(
        sets.pert_rows, sets.control_rows, sets.pert_codes, strict=True
    ):
        target = torch.from_numpy(data.store.dense(rows))[None]
        controls = torch.from_numpy(data.store.dense(control_rows))[None]
        shifted = control_means[_context(data.store, rows[0])] + changes.get(int(pert), overall)
        predicted = {
            "controls": controls,
            "mean_of_controls": controls.mean(1, keepdim=True).expand_as(controls),
            "perturbation_mean": torch.from_numpy(shifted)[None, None].expand_as(controls),
        }
        for name, cells in predicted.items():
            found[name].append(float(loss(cells, target)))
    return {name: float(np.mean(losses)) for name, losses in found.items()}


def _means(
    data: TrialData, seed: int
) -> tuple[Mapping[tuple[int, int], np.ndarray], Mapping[int, np.ndarray]]:
    """Mean of each context's controls, and mean change of each training perturbation [genes]."""
    store, rng = data.store, np.random.default_rng(seed)
    controls = np.flatnonzero(store.is_control)
    keys = store.dataset[controls].astype(np.int64) * len(store.names["cell_type"])
    keys += store.cell_type[controls]
    by_context = {
        _context(store, controls[keys == key][0]): _mean(store, controls[keys == key], rng)
        for key in np.unique(keys)
    }
    changes: dict[int, list[np.ndarray]] = {}
    for condition in data.conditions("train"):
        context = (condition.dataset, condition.cell_type)
        change = _mean(store, condition.rows, rng) - by_context[context]
        changes.setdefault(condition.pert, []).append(change)
    return by_context, {pert: np.mean(parts, axis=0) for pert, parts in changes.items()}


def _mean(store: CellStore, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if len(rows) > CELLS_OF_MEAN:
        rows = np.sort(rng.choice(rows, CELLS_OF_MEAN, replace=False))
    mean: np.ndarray = store.dense(rows).mean(0)
    return mean


def _context(store: CellStore, row: int) -> tuple[int, int]:
    return int(store.dataset[row]), int(store.cell_type[row])
