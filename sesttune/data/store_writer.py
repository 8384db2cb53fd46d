"""What building a cell store needs beside reading: growing arrays, checks, the fingerprint."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pandas as pd
from scipy import sparse

from sesttune.config.schema import DataKwargs
from sesttune.data.splits import nearest
from sesttune.errors import UserError

CHUNK = 16_000_000


class ArrayFile:
    """A one-dimensional `.npy` file that grows; its header is written on exit."""

    HEADER_BYTES = 128

    def __init__(self, path: Path, dtype: np.dtype) -> None:
        self._path, self._dtype, self._length = path, dtype, 0
        self._file = path.open("wb")
        self._file.write(b"\0" * self.HEADER_BYTES)

    def append(self, values: np.ndarray) -> None:
        self._file.write(np.ascontiguousarray(values, self._dtype).tobytes())
        self._length += len(values)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        about = f"{{'descr': '{self._dtype.str}', 'fortran_order': False, "
        about += f"'shape': ({self._length},), }}"
        # npy format 1.0: magic, version, little-endian header length, padded header.
        magic = b"\x93NUMPY\x01\x00"
        space = self.HEADER_BYTES - len(magic) - 2
        self._file.seek(0)
        self._file.write(magic + space.to_bytes(2, "little"))
        self._file.write(about.encode().ljust(space - 1) + b"\n")
        self._file.close()


def shrink_values(path: Path) -> None:
    """Rewrite float32 values as uint16, half the size, where all are whole and small enough."""
    values = np.load(path, mmap_mode="r")
    pieces = [values[i : i + CHUNK] for i in range(0, len(values), CHUNK)]
    if not all((piece <= 65_535).all() and (piece == np.rint(piece)).all() for piece in pieces):
        return
    with ArrayFile(path.with_suffix(".half"), np.dtype(np.uint16)) as half:
        for piece in pieces:
            half.append(piece)
    path.with_suffix(".half").replace(path)


def check_contexts(obs: pd.DataFrame, kwargs: DataKwargs) -> None:
    """Every (dataset, cell type) needs control cells, or nothing can be paired in it."""
    names = obs["pert"].unique()
    if kwargs.control_pert not in names:
        raise UserError(
            f"no cell of obs column '{kwargs.pert_col}' is the control '{kwargs.control_pert}'; "
            f"set data.kwargs.control_pert{nearest(kwargs.control_pert, names)}"
        )
    control = obs["pert"] == kwargs.control_pert
    for (dataset, cell_type), group in obs.groupby(["dataset", "cell_type"], sort=True):
        if not control[group.index].any():
            raise UserError(
                f"dataset '{dataset}', cell type '{cell_type}' has no control cells "
                f"({kwargs.pert_col}={kwargs.control_pert}); leave it out of [datasets] or add some"
            )


class StoreHash:
    """sha256 over genes, values and labels: the same cells give the same fingerprint."""

    def __init__(self, genes: Sequence[str]) -> None:
        self._sha = hashlib.sha256("\n".join(genes).encode())

    def add(self, block: sparse.csr_matrix) -> None:
        for part, dtype in ((block.indptr, np.int64), (block.indices, np.int64)):
            self._sha.update(np.ascontiguousarray(part, dtype).tobytes())
        self._sha.update(np.ascontiguousarray(block.data, np.float32).tobytes())

    def result(self, obs: pd.DataFrame) -> str:
        labels = obs[["pert", "cell_type", "batch", "dataset"]].astype(str)
        self._sha.update(pd.util.hash_pandas_object(labels, index=False).to_numpy().tobytes())
        return self._sha.hexdigest()
