"""What cells hold, as digests: the same values give the same digest, wherever they lie."""

import hashlib
import itertools
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import sparse

DIGEST_BYTES = 16


def cell_digests(x: sparse.csr_matrix) -> np.ndarray:
    """uint8 [cells, 16]: of each row's stored columns, in ascending order, and values."""
    columns = np.ascontiguousarray(x.indices, np.int32).data
    values = np.ascontiguousarray(x.data, np.float32).data
    digests = []
    for start, stop in itertools.pairwise(x.indptr.tolist()):
        sha = hashlib.sha256(columns[start:stop])
        sha.update(values[start:stop])
        digests.append(sha.digest()[:DIGEST_BYTES])
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, DIGEST_BYTES)


def held_twice(digests: np.ndarray, files: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of files of which one holds most of the other's cells.

    `digests` as `cell_digests` gives them, uint8 [cells, 16]; `files` int [cells], ascending. Cells
    of next to no counts may be alike by chance, so a few are no sign.
    """
    keys = np.ascontiguousarray(digests).view(np.uint64)[:, 0]
    _, first, which = np.unique(keys, return_index=True, return_inverse=True)
    holder = files[first][which]  # the first file that has the cell
    again = np.stack([holder, files])[:, holder != files]
    pairs, shared = np.unique(again, axis=1, return_counts=True)
    sizes = np.bincount(files)
    least = sizes[pairs].min(0)
    return [(int(one), int(other)) for one, other in pairs[:, 2 * shared > least].T]


class StoreHash:
    """sha256 over genes, values and labels: the same cells give the same fingerprint."""

    def __init__(self, genes: Sequence[str]) -> None:
        self._sha = hashlib.sha256("\n".join(genes).encode())

    def add(self, block: sparse.csr_matrix) -> None:
        for part, dtype in ((block.indptr, np.int64), (block.indices, np.int64)):
            self._sha.update(np.ascontiguousarray(part, dtype).data)
        self._sha.update(np.ascontiguousarray(block.data, np.float32).data)

    def result(self, obs: pd.DataFrame) -> str:
        labels = obs[["pert", "cell_type", "batch", "dataset"]].astype(str)
        self._sha.update(pd.util.hash_pandas_object(labels, index=False).to_numpy().tobytes())
        return self._sha.hexdigest()
