"""Cell sets: perturbed cells of one condition, each paired with a control of its context.

Training sets form one endless stream that is a pure function of the seed: set t
belongs to epoch t // sets_per_epoch, an epoch uses every perturbed cell once, and
the whole state is the number of sets drawn. So a resumed trial, or one with another
batch size, sees the same sets in the same order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sesttune.data.store import CellStore
from sesttune.data.trial_data import Condition, TrialData
from sesttune.errors import UserError

TRAIN_STREAM, CONTROL_STREAM, FIXED_STREAM = 0, 1, 2
"""Names of independent random streams under one seed."""


@dataclass(frozen=True)
class CellSets:
    """Store rows of some cell sets.

    `pert_rows` and `control_rows` are int64 [sets, cells]; `pert_codes` int64 [sets].
    """

    pert_rows: np.ndarray
    control_rows: np.ndarray
    pert_codes: np.ndarray

    def __len__(self) -> int:
        return len(self.pert_codes)

    def part(self, start: int, stop: int) -> "CellSets":
        return CellSets(
            self.pert_rows[start:stop], self.control_rows[start:stop], self.pert_codes[start:stop]
        )


class ControlPool:
    """Control rows of every context, and of every batch within it."""

    def __init__(self, store: CellStore) -> None:
        self._batch = store.batch
        self._context: dict[tuple[int, int], np.ndarray] = {}
        self._in_batch: dict[tuple[int, int, int], np.ndarray] = {}
        rows = np.flatnonzero(store.is_control)
        labels = np.stack([store.dataset[rows], store.cell_type[rows], store.batch[rows]], axis=1)
        for d, c, b in np.unique(labels, axis=0):
            here = (labels[:, 0] == d) & (labels[:, 1] == c)
            self._context[(d, c)] = rows[here]
            self._in_batch[(d, c, b)] = rows[here & (labels[:, 2] == b)]

    def pair(self, rows: np.ndarray, condition: Condition, rng: np.random.Generator) -> np.ndarray:
        """A control for each of `rows`: same batch where there is one, else same context."""
        context = (condition.dataset, condition.cell_type)
        batches = self._batch[rows]
        paired = np.empty_like(rows)
        for batch in np.unique(batches):
            where = np.flatnonzero(batches == batch)
            pool = self._in_batch.get((*context, batch), self._context[context])
            paired[where] = draw(rng, pool, len(where))
        return paired


def draw(rng: np.random.Generator, pool: np.ndarray, count: int) -> np.ndarray:
    """`count` of `pool`, each at most once unless the pool is too small."""
    if len(pool) >= count:
        return rng.choice(pool, count, replace=False)
    return np.concatenate([pool, rng.choice(pool, count - len(pool))])


class CellSetSampler:
    """The endless stream of training sets; `state_dict` is the number of sets drawn."""

    def __init__(self, data: TrialData, set_len: int, seed: int) -> None:
        self._conditions = data.conditions("train")
        if not self._conditions:
            raise UserError("the split file leaves no training condition")
        self._pool = ControlPool(data.store)
        self._set_len, self._seed = set_len, seed
        self._sets_in = [-(-len(c.rows) // set_len) for c in self._conditions]
        self.sets_per_epoch = sum(self._sets_in)
        self.drawn = 0
        self._epoch = -1
        self._rows = np.empty((0, set_len), np.int64)
        self._owner = np.empty(0, np.int64)

    def state_dict(self) -> dict[str, int]:
        return {"sets": self.drawn}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.drawn = int(state["sets"])

    def next_sets(self, count: int) -> CellSets:
        """The next `count` sets of the stream."""
        rows, controls, codes = [], [], []
        for number in range(self.drawn, self.drawn + count):
            epoch, position = divmod(number, self.sets_per_epoch)
            self._plan(epoch)
            condition = self._conditions[self._owner[position]]
            rng = np.random.default_rng([self._seed, CONTROL_STREAM, number])
            rows.append(self._rows[position])
            controls.append(self._pool.pair(self._rows[position], condition, rng))
            codes.append(condition.pert)
        self.drawn += count
        return CellSets(np.stack(rows), np.stack(controls), np.array(codes, np.int64))

    def _plan(self, epoch: int) -> None:
        """Shuffle the cells of each condition into sets, then the sets."""
        if epoch == self._epoch:
            return
        rng = np.random.default_rng([self._seed, TRAIN_STREAM, epoch])
        planned: list[np.ndarray] = []
        for condition, count in zip(self._conditions, self._sets_in, strict=True):
            shuffled = rng.permutation(condition.rows)
            short = count * self._set_len - len(shuffled)
            # The last set is filled from the first ones, or by repeats in a small condition.
            fill = shuffled[:short] if count > 1 else rng.choice(shuffled, short)
            planned.append(np.concatenate([shuffled, fill]).reshape(count, self._set_len))
        order = rng.permutation(self.sets_per_epoch)
        self._rows = np.concatenate(planned)[order]
        self._owner = np.repeat(np.arange(len(planned)), self._sets_in)[order]
        self._epoch = epoch


def fixed_sets(data: TrialData, split: str, set_len: int, seed: int) -> CellSets:
    """One set per condition of `split`, always the same: what validation is measured on."""
    conditions: Sequence[Condition] = data.conditions(split)
    if not conditions:
        raise UserError(f"the split file has no {split} condition")
    pool = ControlPool(data.store)
    rows, controls = [], []
    for number, condition in enumerate(conditions):
        rng = np.random.default_rng([seed, FIXED_STREAM, number])
        rows.append(draw(rng, condition.rows, set_len))
        controls.append(pool.pair(rows[-1], condition, rng))
    codes = np.array([condition.pert for condition in conditions], np.int64)
    return CellSets(np.stack(rows), np.stack(controls), codes)


def read_batch(data: TrialData, sets: CellSets) -> dict[str, torch.Tensor]:
    """Tensors of `sets`, float32.

    `control_emb` [sets, cells, embed_dim], `pert_emb` [sets, pert_dim],
    `target` [sets, cells, genes] (log1p expression).
    """
    count, length = sets.pert_rows.shape
    controls = data.controls
    embeddings = controls.matrix[controls.row_of_cell[sets.control_rows.ravel()]]
    target = data.store.dense(sets.pert_rows.ravel())
    return {
        "control_emb": torch.from_numpy(embeddings).view(count, length, -1),
        "pert_emb": torch.from_numpy(data.features[sets.pert_codes]),
        "target": torch.from_numpy(target).view(count, length, -1),
    }
