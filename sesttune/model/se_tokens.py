"""Turn count rows into the tokens the SE transformer reads.

Behaviour of the public tokeniser, vectorised over cells and straight from CSR, with one
difference: where it draws genes at random (ties at the cut, filler for sparse cells), here
the draw is a hash of the cell's own content and a seed. The same cell gets the same tokens
in any batch, order or process; in distribution the two are equal.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse

from sesttune.errors import UserError
from sesttune.model.hashing import shuffled, splitmix64
from sesttune.model.se_genes import GeneMatch

RAW_MAX = 35.0
"""A larger value cannot be a log1p count."""
RAW_TOTAL = 5_000_000
"""Counts in a cell above which the values, read as log1p, must be raw."""
COUNT_SCALE = 100.0


@dataclass(frozen=True)
class Tokens:
    """Tokens of some cells: vocabulary rows int64 [cells, P-1], count values float32 [cells, P].

    Count 0 belongs to CLS, count 1 + j to gene slot j.
    """

    ids: np.ndarray
    counts: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, cells: slice) -> "Tokens":
        return Tokens(self.ids[cells], self.counts[cells])


@dataclass(frozen=True)
class _Expressed:
    """The expressed known genes of some cells, CSR-like.

    `cell`, `gene` (local index) and `value` are [entries]; `starts` is [cells + 1]; `key`
    is the hash of each cell's content, uint64 [cells].
    """

    cell: np.ndarray
    gene: np.ndarray
    value: np.ndarray
    starts: np.ndarray
    key: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.starts)


def tokenize(
    x: sparse.csr_matrix, match: GeneMatch, pad_length: int, cls_token_idx: int, seed: int
) -> Tokens:
    """Tokens of the cells of `x` (file values, [cells, file genes]).

    Raises UserError for NaN, fewer known genes than the CLS slot reads, and cells that
    express every known gene of a vocabulary smaller than the sequence.
    """
    slots, known = pad_length - 1, len(match.columns)
    if known <= cls_token_idx:
        raise UserError(f"the encoder needs more than {cls_token_idx} known genes, found {known}")
    if not np.isfinite(x.data).all():
        raise UserError("a cell holds NaN or infinity: the encoder cannot read it")
    cells = _expressed(x, match, seed)
    total = np.bincount(cells.cell, cells.value, minlength=x.shape[0])
    share = (cells.value / total[cells.cell]).astype(np.float32)
    genes = np.empty((x.shape[0], slots), np.int64)  # local indices
    counts = np.zeros((x.shape[0], pad_length), np.float32)
    many = cells.lengths > slots
    if many.any():
        _take_the_largest(cells, share, match, many, genes, counts)
    if not many.all():
        _take_all_and_fill(cells, share, known, ~many, genes, counts)
    is_cls = cells.gene == cls_token_idx
    counts[cells.cell[is_cls], 0] = share[is_cls]
    counts[total == 0] = 1 / known
    counts *= COUNT_SCALE
    return Tokens(match.ids[genes], counts)


def _expressed(x: sparse.csr_matrix, match: GeneMatch, seed: int) -> _Expressed:
    """Known genes above zero, log1p where the cell is raw, judged over all its genes."""
    if not x.has_canonical_format:
        x = x.copy()
        x.sum_duplicates()
    data = np.maximum(x.data, 0).astype(np.float32, copy=False)
    raw = _raw_cells(data, x.indptr)
    local = np.full(x.shape[1], -1, np.int32)
    local[match.columns] = np.arange(len(match.columns), dtype=np.int32)
    gene = local[x.indices]
    kept = np.flatnonzero((gene >= 0) & (data > 0))
    starts = np.searchsorted(kept, x.indptr)
    gene, data = gene[kept], data[kept]
    cell = np.repeat(np.arange(x.shape[0]), np.diff(starts))
    # Sums wrap around and do not depend on the order of the entries.
    bits = data.view(np.uint32).astype(np.uint64)
    entries = splitmix64(bits ^ (match.ids[gene].astype(np.uint64) << np.uint64(32)))
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(entries, dtype=np.uint64)])
    key = splitmix64(sums[starts[1:]] - sums[starts[:-1]] + np.uint64(seed))
    logged = torch.from_numpy(data).log1p().numpy()  # ten times as fast as numpy's without AVX-512
    value = logged if raw.all() else np.where(raw[cell], logged, data)
    return _Expressed(cell, gene, value, starts, key)


def _raw_cells(data: np.ndarray, indptr: np.ndarray) -> np.ndarray:
    """bool [cells]: whether a cell's values are counts rather than their log1p."""
    raw = np.zeros(len(indptr) - 1, bool)
    some = np.flatnonzero(np.diff(indptr))  # reduceat has no empty rows
    if not len(some):
        return raw
    raw[some] = np.maximum.reduceat(data, indptr[some]) > RAW_MAX
    if not raw[some].all():
        counts = torch.from_numpy(data).clamp(max=RAW_MAX + 1).double().expm1_().numpy()
        raw[some] |= np.floor(np.add.reduceat(counts, indptr[some])) > RAW_TOTAL
    return raw


def _take_the_largest(
    cells: _Expressed,
    share: np.ndarray,
    match: GeneMatch,
    chosen: np.ndarray,
    genes: np.ndarray,
    counts: np.ndarray,
) -> None:
    """Cells with more expressed genes than slots: the largest values, ties by hash."""
    slots, rows = genes.shape[1], np.flatnonzero(chosen)
    entry = np.flatnonzero(chosen[cells.cell])
    cell = cells.cell[entry]
    noise = splitmix64(cells.key[cell] ^ splitmix64(match.ids.astype(np.uint64))[cells.gene[entry]])
    # Value first (the bits of a non-negative float sort like it), then the hash.
    bits = cells.value[entry].view(np.uint32).astype(np.uint64)
    padded = np.zeros((len(rows), int(cells.lengths[rows].max())), np.uint64)
    position = entry - cells.starts[cell]
    padded[np.searchsorted(rows, cell), position] = (bits << np.uint64(32)) | (
        noise >> np.uint64(32)
    )
    picked = np.argpartition(padded, -slots, axis=1)[:, -slots:] + cells.starts[rows, None]
    genes[rows] = cells.gene[picked]
    counts[rows, 1:] = share[picked]


def _take_all_and_fill(
    cells: _Expressed,
    share: np.ndarray,
    known: int,
    chosen: np.ndarray,
    genes: np.ndarray,
    counts: np.ndarray,
) -> None:
    """Cells with room left: all expressed genes, then unexpressed ones drawn at random.

    Without replacement where the vocabulary has enough genes, else with, as in public.
    """
    slots, rows = genes.shape[1], np.flatnonzero(chosen)
    entry = np.flatnonzero(chosen[cells.cell])
    cell = cells.cell[entry]
    position = entry - cells.starts[cell]
    genes.reshape(-1)[cell * slots + position] = cells.gene[entry]
    counts.reshape(-1)[cell * (slots + 1) + 1 + position] = share[entry]
    used = cells.lengths[rows]
    if ((used == known) & (used < slots)).any():
        raise UserError(
            f"a cell expresses all {known} genes the encoder knows, and there are fewer than its "
            f"{slots} slots: no unexpressed gene is left to fill them"
        )
    unexpressed = np.ones((len(rows), known), bool)
    first = np.arange(0, unexpressed.size, known)  # of each row
    unexpressed.reshape(-1)[np.repeat(first, used) + cells.gene[entry]] = False
    free = np.flatnonzero(unexpressed)  # of all cells, one after another
    need, have = slots - used, known - used
    row = np.repeat(np.arange(len(rows)), need)
    number = np.arange(len(row)) - np.repeat(np.cumsum(need) - need, need)
    if known >= slots:
        drawn = shuffled(number, have, row, cells.key[rows])
    else:
        rolled = splitmix64(cells.key[rows][row] ^ splitmix64(number.astype(np.uint64)))
        drawn = (rolled % have[row].astype(np.uint64)).astype(np.int64)
    picked = free[(np.cumsum(have) - have)[row] + drawn] - first[row]
    genes[rows[row], used[row] + number] = picked
