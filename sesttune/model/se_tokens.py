"""Turn count rows into the tokens the SE transformer reads.

Behaviour of the public tokeniser, vectorised over cells, with one difference: where
it draws genes at random (ties at the cut, filler for sparse cells), here the draw
is a hash of the cell's own content and a seed. The same cell gets the same tokens
in any batch, order or process; in distribution the two are equal.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from sesttune.errors import UserError

log = logging.getLogger(__name__)

RAW_MAX = 35.0
"""A larger value cannot be a log1p count."""
RAW_TOTAL = 5_000_000
"""Counts in a cell above which the values, read as log1p, must be raw."""
COUNT_SCALE = 100.0
MIN_MATCHED = 0.05
"""Refuse a file where fewer of its genes than this are in the vocabulary."""


@dataclass(frozen=True)
class GeneMatch:
    """Which columns of a file the encoder knows.

    `columns` int64 [known]: file columns in file order; `ids` int64 [known]: their
    vocabulary rows; `source`: `var index`, or the var column the names came from.
    """

    columns: np.ndarray
    ids: np.ndarray
    source: str
    total: int


@dataclass(frozen=True)
class Tokens:
    """Tokens of some cells: vocabulary rows int64 [cells, P-1], count values float32 [cells, P].

    Count 0 belongs to CLS, count 1 + j to gene slot j.
    """

    ids: np.ndarray
    counts: np.ndarray


def match_genes(
    names: Sequence[str], columns: Mapping[str, Sequence[str]], vocabulary: Mapping[str, int]
) -> GeneMatch:
    """Match a file's genes by exact name, as the public encoder does.

    The var index is used where it knows any name; else the var column that knows most.
    Raises UserError where nothing or too little matches, and where a stray symbol in the
    index would hide a column of symbols.
    """
    known = {"var index": _known(names, vocabulary)}
    known |= {f"var column '{name}'": _known(c, vocabulary) for name, c in columns.items()}
    sources = {"var index": names} | {f"var column '{n}'": c for n, c in columns.items()}
    best = max(known, key=lambda source: len({sources[source][i] for i in known[source]}))
    chosen = "var index" if len(known["var index"]) else best
    found, total = len(known[chosen]), len(names)
    if not found:
        raise UserError(
            f"none of the file's {total} genes is in the encoder's vocabulary (file: "
            f"{', '.join(list(names)[:3])}; encoder: {', '.join(list(vocabulary)[:3])}); "
            "put gene symbols in var.index or in a var column"
        )
    if len(known[best]) > 2 * found:
        raise UserError(
            f"the var index matches only {found} of {total} genes but {best} matches "
            f"{len(known[best])}: make that column the index (the public encoder would use "
            "the few)"
        )
    if found < MIN_MATCHED * total:
        unmatched = sorted(set(names) - set(vocabulary))[:3]
        raise UserError(
            f"only {found} of {total} genes ({found / total:.1%}) are in the encoder's vocabulary "
            f"(not: {', '.join(unmatched)}); the names must be the symbols it was trained on"
        )
    log.info("genes matched: %d of %d by %s", found, total, chosen)
    ids = np.array([vocabulary[sources[chosen][i]] for i in known[chosen]], np.int64)
    return GeneMatch(known[chosen], ids, chosen, total)


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
    clean = sparse.csr_matrix((np.maximum(x.data, 0), x.indices, x.indptr), shape=x.shape)
    clean.eliminate_zeros()
    logged = _log_where_raw(clean)
    values = np.asarray(logged[:, match.columns].toarray(), np.float32)  # [cells, known]
    total = values.sum(1, keepdims=True)
    share = np.divide(values, total, out=np.full_like(values, 1 / known), where=total > 0)
    noise = _noise(clean[:, match.columns], match.ids, seed)
    # Sort key: value first (the bits of a non-negative float sort like it), then the hash.
    keys = (values.view(np.uint32).astype(np.uint64) << np.uint64(32)) | (noise >> np.uint64(32))
    if known >= slots:
        picked = np.argpartition(keys, known - slots, axis=1)[:, known - slots :]
    else:
        picked = _with_filler(keys, values, noise, slots)
    counts = np.empty((len(values), pad_length), np.float32)
    counts[:, 0] = share[:, cls_token_idx]
    counts[:, 1:] = np.take_along_axis(share, picked, axis=1)
    counts *= COUNT_SCALE
    return Tokens(match.ids[picked], counts)


def _known(names: Sequence[str], vocabulary: Mapping[str, int]) -> np.ndarray:
    return np.array([i for i, name in enumerate(names) if name in vocabulary], np.int64)


def _log_where_raw(x: sparse.csr_matrix) -> sparse.csr_matrix:
    """log1p of the cells that hold raw counts, judged over all genes of each cell."""
    lengths = np.diff(x.indptr)
    cell = np.repeat(np.arange(x.shape[0]), lengths)
    largest = np.zeros(x.shape[0])
    np.maximum.at(largest, cell, x.data)
    safe = np.minimum(x.data, RAW_MAX + 1).astype(np.float64)
    total = np.bincount(cell, np.expm1(safe), minlength=x.shape[0])
    raw = (largest > RAW_MAX) | (np.floor(total) > RAW_TOTAL)
    data = np.where(raw[cell], np.log1p(x.data), x.data)
    return sparse.csr_matrix((data, x.indices, x.indptr), shape=x.shape)


def _with_filler(keys: np.ndarray, values: np.ndarray, noise: np.ndarray, slots: int) -> np.ndarray:
    """All expressed genes, then unexpressed ones drawn with replacement, [cells, slots]."""
    known = values.shape[1]
    order = np.argsort(keys, axis=1)[:, ::-1]  # expressed first
    expressed = (values > 0).sum(1, keepdims=True)
    if (expressed == known).any():
        raise UserError(
            f"a cell expresses all {known} genes the encoder knows, and there are fewer than its "
            f"{slots} slots: no unexpressed gene is left to fill them"
        )
    slot = np.arange(slots)[None, :]
    rolled = splitmix64(noise[:, :1] ^ splitmix64(slot.astype(np.uint64)))
    free = (known - expressed).astype(np.uint64)
    filler = expressed + (rolled % free).astype(np.int64)
    return np.take_along_axis(order, np.where(slot < expressed, slot, filler), axis=1)


def _noise(x: sparse.csr_matrix, ids: np.ndarray, seed: int) -> np.ndarray:
    """A 64-bit hash for each (cell, gene), [cells, known]: of content, gene and seed alone."""
    bits = np.ascontiguousarray(x.data, np.float32).view(np.uint32).astype(np.uint64)
    gene = ids[x.indices].astype(np.uint64)
    entries = splitmix64(bits ^ (gene << np.uint64(32)))
    # Sums wrap around and do not depend on the order of the entries.
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(entries, dtype=np.uint64)])
    cell = splitmix64(sums[x.indptr[1:]] - sums[x.indptr[:-1]] + np.uint64(seed))
    return splitmix64(cell[:, None] ^ splitmix64(ids.astype(np.uint64))[None, :])


def splitmix64(value: np.ndarray) -> np.ndarray:
    """The SplitMix64 finaliser (Steele, Lea and Flood, 2014) on uint64."""
    with np.errstate(over="ignore"):
        z = value + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
