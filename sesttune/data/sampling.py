"""Cell sets: perturbed cells of one condition, each paired with a control of its context.

Training sets form one endless stream that is a pure function of the seed: set t
belongs to epoch t // sets_per_epoch, an epoch uses every perturbed cell once, and
the whole state is the number of sets drawn. So a resumed trial, or one with another
batch size, sees the same sets in the same order. A whole epoch is planned at once by
sorting (0.1 s for 200,000 cells) and the next one in a thread meanwhile, so that drawing sets
is taking slices.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

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
        contexts = store.context
        batches = contexts * len(store.names["batch"]) + store.batch
        controls = np.flatnonzero(store.is_control)
        in_batch, batch_of = np.unique(batches[controls], return_inverse=True)
        in_context, context_of = np.unique(contexts[controls], return_inverse=True)
        # Each control is in two pools: its batch's, and its context's (numbered after those).
        pool = np.concatenate([batch_of, len(in_batch) + context_of])
        order = np.argsort(pool, kind="stable")
        self._rows = np.concatenate([controls, controls])[order]
        self._pool = pool[order]
        self._size = np.bincount(pool)
        self._start = np.cumsum(self._size) - self._size
        self._pool_of_cell = np.where(
            np.isin(batches, in_batch),
            np.searchsorted(in_batch, batches),
            len(in_batch) + np.searchsorted(in_context, contexts),
        )

    def pair(self, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A control for each of `rows` (int64 [sets, cells]): same batch, else same context.

        Each pool is shuffled once and dealt round, so that controls serve equally often and
        none twice in a set unless its pool is smaller than the set needs.
        """
        flat = rows.ravel()
        pool = self._pool_of_cell[flat]
        order = np.argsort(pool, kind="stable")
        sizes = np.bincount(pool, minlength=len(self._size))
        turn = np.empty_like(flat)
        turn[order] = np.arange(len(flat)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        shuffled = self._rows[np.argsort(self._pool + rng.random(len(self._pool)))]
        return shuffled[self._start[pool] + turn % self._size[pool]].reshape(rows.shape)


class CellSetSampler:
    """The training sets of one seed, in order.

    Raises UserError where no condition is for training.
    """

    def __init__(self, data: TrialData, set_len: int, seed: int) -> None:
        conditions = data.conditions("train")
        if not conditions:
            raise UserError("the split file leaves no training condition")
        self._set_len, self._seed = set_len, seed
        self._pool = ControlPool(data.store)
        self._cells = np.concatenate([c.rows for c in conditions])
        self._counts = np.array([len(c.rows) for c in conditions])
        self._perts = np.array([c.pert for c in conditions], np.int64)
        self._sets_in = -(-self._counts // set_len)
        self.sets_per_epoch = int(self._sets_in.sum())
        self.drawn = 0
        self._thread = ThreadPoolExecutor(1, "epoch")
        self._plans: dict[int, Future[CellSets]] = {}

    def state_dict(self) -> dict[str, int]:
        return {"sets": self.drawn}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.drawn = int(state["sets"])

    def next_sets(self, count: int) -> CellSets:
        """The next `count` sets of the stream."""
        parts: list[CellSets] = []
        while count:
            epoch, start = divmod(self.drawn, self.sets_per_epoch)
            part = self._planned(epoch).part(start, start + count)
            parts.append(part)
            self.drawn += len(part)
            count -= len(part)
        if len(parts) == 1:
            return parts[0]
        fields = ("pert_rows", "control_rows", "pert_codes")
        return CellSets(*(np.concatenate([getattr(p, name) for p in parts]) for name in fields))

    def close(self) -> None:
        """Let go of the planning thread."""
        self._thread.shutdown(cancel_futures=True)

    def _planned(self, epoch: int) -> CellSets:
        """The sets of `epoch`; the next epoch is planned from here on."""
        for number in (epoch, epoch + 1):
            if number not in self._plans:
                self._plans[number] = self._thread.submit(self._plan, number)
        self._plans = {number: self._plans[number] for number in (epoch, epoch + 1)}
        return self._plans[epoch].result()

    def _plan(self, epoch: int) -> CellSets:
        """Shuffle the cells of each condition into sets, then the sets, and pair controls."""
        rng = np.random.default_rng([self._seed, TRAIN_STREAM, epoch])
        condition = np.repeat(np.arange(len(self._counts)), self._counts)
        shuffled = self._cells[np.argsort(condition + rng.random(len(condition)))]
        # The last set of a condition is filled from its first cells: places go round.
        places = self._sets_in * self._set_len
        place = np.arange(places.sum()) - np.repeat(np.cumsum(places) - places, places)
        first = np.repeat(np.cumsum(self._counts) - self._counts, places)
        rows = shuffled[first + place % np.repeat(self._counts, places)].reshape(-1, self._set_len)
        order = rng.permutation(self.sets_per_epoch)
        rows = rows[order]
        paired = self._pool.pair(rows, np.random.default_rng([self._seed, CONTROL_STREAM, epoch]))
        return CellSets(rows, paired, np.repeat(self._perts, self._sets_in)[order])


def fixed_sets(data: TrialData, split: str, set_len: int, seed: int) -> CellSets:
    """One set per condition of `split`, always the same: what validation is measured on.

    Raises UserError where there is no such condition.
    """
    conditions: Sequence[Condition] = data.conditions(split)
    if not conditions:
        raise UserError(f"the split file has no {split} condition")
    rng = np.random.default_rng([seed, FIXED_STREAM])
    rows = np.stack([draw(rng, condition.rows, set_len) for condition in conditions])
    codes = np.array([condition.pert for condition in conditions], np.int64)
    return CellSets(rows, ControlPool(data.store).pair(rows, rng), codes)


def draw(rng: np.random.Generator, pool: np.ndarray, count: int) -> np.ndarray:
    """`count` of `pool`, each at most once unless the pool is too small."""
    if len(pool) >= count:
        return rng.choice(pool, count, replace=False)
    return np.concatenate([pool, rng.choice(pool, count - len(pool))])
