"""The cell store: every cell of a sweep as memory-mapped CSR arrays.

Read from h5ad once, aligned to one gene list (`store_builder.py`), then shared by all trials
of a node through the page cache. Values stay as the files have them (whole counts fit
uint16 without loss, half the size) and become log1p of library-normalised
expression when cells are densified (`rows.py`), which is the only thing training asks for.
"""

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sesttune.data.rows import dense_rows

OBS_COLUMNS = ("pert", "cell_type", "batch", "dataset")


class CellStore:
    """A store opened from its folder; arrays are memory-mapped, read-only.

    Codes (`pert`, `cell_type`, `batch`, `dataset`) are int32 [cells] into the lists of
    `names`; a context is a (dataset, cell type). Expression is CSR: `indptr` int64 [cells + 1],
    `indices` uint16 or uint32 and `values` uint16 or float32 [stored values]; `scale` float32
    [cells] is 0 where values are log1p. Cell i is row `file_row` of file number `file`.
    """

    def __init__(self, folder: Path) -> None:
        about = json.loads((folder / "store.json").read_text())
        self.folder = folder
        self.genes: list[str] = about["genes"]
        self.fingerprint: str = about["fingerprint"]
        self.control_pert: str = about["control_pert"]
        self.target_genes: dict[str, int] = about["target_genes"]
        """Perturbation -> the column of the gene it is named after, where it is one."""
        self.files: list[dict[str, Any]] = about["files"]
        self.notes: list[str] = about["notes"]
        self.n_genes = len(self.genes)
        self.indptr = np.load(folder / "indptr.npy")
        self.n_cells = len(self.indptr) - 1
        # Plain arrays over the mapped pages: slicing a np.memmap costs ten times as much.
        self.indices = np.load(folder / "indices.npy", mmap_mode="r").view(np.ndarray)
        self.values = np.load(folder / "values.npy", mmap_mode="r").view(np.ndarray)
        obs = pd.read_parquet(folder / "obs.parquet")
        self.scale = obs["scale"].to_numpy(np.float32)
        self.file = obs["file"].to_numpy(np.int32)
        self.file_row = obs["file_row"].to_numpy(np.int64)
        self.names = {name: [str(c) for c in obs[name].cat.categories] for name in OBS_COLUMNS}
        codes = {name: obs[name].cat.codes.to_numpy(np.int32) for name in OBS_COLUMNS}
        self.pert, self.cell_type = codes["pert"], codes["cell_type"]
        self.batch, self.dataset = codes["batch"], codes["dataset"]

    @property
    def key(self) -> str:
        """The name of the store's folder."""
        return self.folder.name

    @property
    def counts_a_cell(self) -> list[float]:
        """Least and most counts a cell behind the values of a file; [] where that is not known."""
        found = [float(sum_) for file in self.files if (sum_ := file.get("counts_a_cell"))]
        return [min(found), max(found)] if found else []

    @property
    def context(self) -> np.ndarray:
        """int64 [cells]: the number of each cell's context, by dataset, then cell type."""
        return self.dataset.astype(np.int64) * len(self.names["cell_type"]) + self.cell_type

    @cached_property
    def is_control(self) -> np.ndarray:
        """bool [cells]."""
        return self.pert == self.names["pert"].index(self.control_pert)

    @cached_property
    def control_digests(self) -> np.ndarray:
        """`cell_digests` of the control cells as their files have them, uint8 [controls, 16]."""
        return np.load(self.folder / "control_digests.npy")

    @property
    def nbytes(self) -> int:
        """Bytes of the expression values and their gene indices."""
        return self.indices.nbytes + self.values.nbytes

    @property
    def dense_nbytes(self) -> int:
        """Bytes of the expression values with all their zeros, as stored."""
        return self.n_cells * self.n_genes * int(self.values.itemsize)

    def dense(self, rows: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """log1p expression of `rows` (int64 [n]), float32 [n, genes], into `out` if given."""
        return dense_rows(self, rows, out)
