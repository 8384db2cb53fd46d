"""Predict every perturbed cell of some conditions, a full cell set at a time."""

from collections.abc import Iterator, Sequence

import numpy as np

from sesttune.data.sampling import CellSets, ControlPool
from sesttune.data.store import CellStore
from sesttune.data.trial_data import Condition
from sesttune.evaluation.predictors import Predictor, parts


def predict_every_cell(
    store: CellStore, conditions: Sequence[Condition], predict: Predictor, length: int, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows of the store (int64 [n]) and their predicted expression (float32 [n, genes]).

    Each cell is made from a control of its own context, which `seed` picks. A short last set of a
    condition is filled up, so that every set has the trained `length`.
    """
    taken = [
        (condition.pert, condition.rows[start : start + length])
        for condition in conditions
        for start in range(0, len(condition.rows), length)
    ]
    if not taken:
        return
    rows = np.stack([np.resize(part, length) for _, part in taken])
    paired = ControlPool(store).pair(rows, np.random.default_rng(seed))
    perts = np.array([pert for pert, _ in taken], np.int64)
    own = iter(part for _, part in taken)
    for sets in parts(CellSets(rows, paired, perts)):
        for predicted in predict(sets).numpy():
            cells = next(own)
            yield cells, predicted[: len(cells)]
