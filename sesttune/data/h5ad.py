"""Read AnnData files block by block, whatever encoding they were written in.

obs and var are read column by column (`h5ad_frame.py`), obsm by anndata's own reader. X is
streamed in row blocks so that a file larger than memory costs one block (a CSC matrix is the
exception: it is read whole, because its rows are not contiguous).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np
import pandas as pd
from scipy import sparse

from sesttune.data.h5ad_frame import (
    check_frame,
    column_names,
    read_column,
    read_frame,
    read_index,
)
from sesttune.data.hdf5 import described, open_hdf5, other_file
from sesttune.data.labels import nearest
from sesttune.errors import UserError

BLOCK_ROWS = 4_096


class H5adFile:
    """An open `.h5ad`/`.h5` file; use as a context manager.

    Raises UserError naming the file for a missing, foreign or damaged file, a
    missing column, duplicate genes, and NaN in X.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file = open_hdf5(self.path)
        missing = [name for name in ("X", "obs", "var") if name not in self._file]
        if missing:
            elsewhere = self.elsewhere() or described(self._file)
            self._file.close()
            raise UserError(
                f"{self.path} is not an AnnData file: it lacks {', '.join(missing)}{elsewhere}"
            )
        try:
            self._refuse_elsewhere()
            self._x = self._file["X"]
            self._encoding = _encoding(self._x, self.path)
            self._check_sizes()
        except UserError:
            self._file.close()
            raise
        self._csc: sparse.csr_matrix | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; the frames read from it stay."""
        self._file.close()

    @property
    def shape(self) -> tuple[int, int]:
        """(cells, genes)."""
        about = self._x.attrs  # of before anndata 0.7, whose obs is refused, by another name
        sparse_shape = about.get("shape", about.get("h5sparse_shape"))
        shape = self._x.shape if self._encoding == "dense" else sparse_shape
        return int(shape[0]), int(shape[1])

    @property
    def n_cells(self) -> int:
        return self.shape[0]

    @property
    def var_names(self) -> list[str]:
        """Gene names of the var index, in column order."""
        return [str(name) for name in read_index(self._file["var"], self.shape[1], self.path)]

    def unique_genes(self) -> list[str]:
        """`var_names`; raises UserError where a name occurs twice."""
        names = self.var_names
        if len(set(names)) < len(names):
            index = pd.Index(names)
            twice = index[index.duplicated()].unique()
            raise UserError(
                f"{self.path}: {len(twice)} gene names occur more than once in var "
                f"(e.g. '{twice[0]}'); make them unique (adata.var_names_make_unique())"
            )
        return names

    def var_columns(self) -> dict[str, list[str]]:
        """The string columns of var that can be read: name -> one value a gene."""
        return self._read_var()[0]

    def unreadable_var(self) -> list[str]:
        """A line for each column of var that cannot be read."""
        return self._read_var()[1]

    def _read_var(self) -> tuple[dict[str, list[str]], list[str]]:
        texts: dict[str, list[str]] = {}
        complaints: list[str] = []
        for name in column_names(self._file["var"]):
            try:
                column = pd.Series(read_column(self._file["var"], name, self.shape[1], self.path))
            except UserError as error:
                complaints.append(str(error))
                continue
            if not pd.api.types.is_numeric_dtype(column):
                texts[name] = [str(value) for value in column]
        return texts, complaints

    @property
    def obs_columns(self) -> list[str]:
        return column_names(self._file["obs"])

    def obs(self, column: str, setting: str = "") -> np.ndarray:
        """An obs column as strings, object [cells]; a whole number 3.0 reads as `3`.

        `setting` is what names the column, for the line that there is none.
        """
        if column not in self.obs_columns:
            fix = f"; set {setting}" if setting else ""
            raise UserError(
                f"{self.path}: obs has no column '{column}'{fix}{nearest(column, self.obs_columns)}"
            )
        values = pd.Series(read_column(self._file["obs"], column, self.n_cells, self.path))
        empty = int((values.isna() | (values == "")).sum())
        if empty:
            raise UserError(
                f"{self.path}: obs column '{column}' is empty for {empty} cells; label them, or "
                "leave them out"
            )
        if isinstance(values.dtype, pd.CategoricalDtype):
            values = values.astype(values.cat.categories.dtype)
        if pd.api.types.is_float_dtype(values):
            if np.isinf(values).any():
                raise UserError(f"{self.path}: obs column '{column}' holds infinity")
            if (values == values.round()).all() and values.abs().max() < 2**53:
                values = values.astype(np.int64)
        return values.astype(str).to_numpy(dtype=object)

    def obsm(self, key: str) -> np.ndarray | None:
        """A cell embedding [cells, width], or None where the file has none of that name.

        Raises UserError where it is no matrix of numbers, one row a cell.
        """
        from anndata.io import read_elem

        if "obsm" not in self._file or key not in self._file["obsm"]:
            return None
        try:
            if (other := other_file(self._file["obsm"], key)) is not None:
                raise ValueError(f"it lies in another file, {other}")
            held = read_elem(self._file["obsm"][key])
        except Exception as error:
            raise UserError(f"{self.path}: cannot read obsm['{key}']: {error}") from None
        held = np.asarray(held.toarray() if sparse.issparse(held) else held)
        if held.ndim != 2 or held.dtype.kind not in "fiu":
            raise UserError(f"{self.path}: obsm['{key}'] is no matrix of numbers")
        if len(held) != self.n_cells:
            raise UserError(f"{self.path}: obsm['{key}'] has {len(held)} rows, X {self.n_cells}")
        return held

    def iter_csr(
        self, rows: np.ndarray | None = None, block_rows: int = BLOCK_ROWS
    ) -> Iterator[sparse.csr_matrix]:
        """The file's values in blocks of rows (all, or the sorted `rows`), float32 CSR."""
        n_cells, _ = self.shape
        for first in range(0, n_cells, block_rows):
            start, stop = first, min(first + block_rows, n_cells)
            picked: np.ndarray | None = None
            if rows is not None:
                picked = rows[slice(*np.searchsorted(rows, [start, stop]))]
                if not len(picked):
                    continue
                start, stop = int(picked[0]), int(picked[-1]) + 1  # what lies around costs as much
            block = self._read(start, stop)
            block = block if picked is None else block[picked - start]
            self._check_values(block, start)
            yield block

    def read_rows(self, rows: np.ndarray) -> sparse.csr_matrix:
        """The sorted `rows` (int64, at least one) as one float32 CSR matrix."""
        return sparse.vstack(list(self.iter_csr(rows)), format="csr")

    def _read(self, start: int, stop: int) -> sparse.csr_matrix:
        """Rows of X, each gene of a row once, in order, and above or below zero."""
        try:
            if self._encoding == "dense":
                return sparse.csr_matrix(np.asarray(self._x[start:stop], dtype=np.float32))
            if self._encoding == "csc":
                return self._whole()[start:stop]
            block = self._compressed(start, stop, self.shape[1])
        except (OSError, ValueError, TypeError) as error:  # a damaged chunk, text for numbers
            raise UserError(f"{self.path}: X cannot be read: {error}") from None
        return _canonical(block)

    def _compressed(self, start: int, stop: int, width: int) -> sparse.csr_matrix:
        """Rows (of CSC: columns) of a compressed X; SciPy checks no index and would crash."""
        indptr = self._x["indptr"][start : stop + 1].astype(np.int64, copy=False)
        low, high = int(indptr[0]), int(indptr[-1])
        if low < 0 or high > len(self._x["indices"]) or (np.diff(indptr) < 0).any():
            raise UserError(f"{self.path}: X/indptr is damaged near {start}: write the file again")
        indices = self._x["indices"][low:high]
        if len(indices) and (indices.min() < 0 or indices.max() >= width):
            raise UserError(
                f"{self.path}: X/indices names {int(indices.max())} near {start}, of {width}: "
                "write the file again"
            )
        values = self._x["data"][low:high].astype(np.float32, copy=False)
        parts = (values, indices.astype(np.int32, copy=False), indptr - low)
        return sparse.csr_matrix(parts, shape=(stop - start, width))

    def _whole(self) -> sparse.csr_matrix:
        """A CSC matrix as rows, kept for the next block."""
        if self._csc is None:
            cells, genes = self.shape
            self._csc = _canonical(self._compressed(0, genes, cells).T.tocsr())
        return self._csc

    def _refuse_elsewhere(self) -> None:
        """X must be in the file itself, and obs and var; their columns are looked at when read."""
        for name, depth in (("X", 1), ("obs", 0), ("var", 0)):
            if (other := other_file(self._file, name, depth)) is not None:
                raise UserError(
                    f"{self.path}: {name} lies in another file, {other}, whose changes or absence "
                    "nobody would see: write both as one file "
                    "(anndata.read_h5ad(FILE).write_h5ad(NEW))"
                )

    def _check_sizes(self) -> None:
        """X, obs and var must be of one size, and the parts of a compressed X too."""
        if self._encoding == "dense":
            if self._x.ndim != 2:
                raise UserError(f"{self.path}: X has {self._x.ndim} dimensions, not 2")
        else:
            lacking = [part for part in ("data", "indices", "indptr") if part not in self._x]
            if lacking or not {"shape", "h5sparse_shape"} & set(self._x.attrs):
                raise UserError(f"{self.path}: X lacks its {', '.join(lacking) or 'shape'}")
            lines = self.shape[0 if self._encoding == "csr" else 1]
            sizes = {part: len(self._x[part]) for part in ("data", "indices", "indptr")}
            if sizes["data"] != sizes["indices"] or sizes["indptr"] != lines + 1:
                raise UserError(f"{self.path}: X is damaged, its parts do not fit: {sizes}")
        held = (self._x if self._encoding == "dense" else self._x["data"]).dtype
        if held.kind not in "biuf":  # of complex numbers, h5py would give the real parts
            raise UserError(f"{self.path}: X holds values of type {held}, not real numbers")
        for axis, (which, held) in enumerate({"obs": "cell", "var": "gene"}.items()):
            check_frame(self._file[which], self.shape[axis], self.path)
            if not self.shape[axis]:
                raise UserError(f"{self.path} holds no {held}: leave the file out")

    def refuse_negative(self, block: sparse.csr_matrix) -> None:
        """Raise UserError where a count is below zero (the encoder alone tolerates them)."""
        if block.nnz and block.data.min() < 0:
            raise UserError(
                f"{self.path}: X holds negative values; sesttune needs counts or log1p counts"
                f"{self.elsewhere()}"
            )

    def elsewhere(self) -> str:
        """Where counts may lie when X does not hold them, as scaled files have it."""
        found = [f"layers['{name}']" for name in self._file.get("layers", ())]
        found += ["raw.X"] if "raw/X" in self._file else []
        return f" (copy them into X, if {' or '.join(found)} has them)" if found else ""

    def _check_values(self, block: sparse.csr_matrix, start: int) -> None:
        if not np.isfinite(block.data).all():
            raise UserError(f"{self.path}: X holds NaN or infinity near row {start}")

    def frame(self, which: str) -> pd.DataFrame:
        """All of `obs` or `var`."""
        return read_frame(self._file[which], self.shape[which == "var"], self.path)


def _canonical(block: sparse.csr_matrix) -> sparse.csr_matrix:
    """The same values in the one form that cells are known by: some writers store zeros, too."""
    block.sum_duplicates()
    block.eliminate_zeros()
    return block


def _encoding(x: Any, path: Path) -> str:
    if isinstance(x, h5py.Dataset):
        return "dense"
    encoding = str(x.attrs.get("encoding-type", x.attrs.get("h5sparse_format", "")))
    if "csr" in encoding:
        return "csr"
    if "csc" in encoding:
        return "csc"
    raise UserError(f"{path}: X has the unknown encoding '{encoding}'; write it with anndata")
