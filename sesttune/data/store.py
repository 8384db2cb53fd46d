"""The cell store: every cell of a sweep as memory-mapped CSR arrays.

Read from h5ad once, aligned to one gene list, then shared by all trials of a node
through the page cache. Values stay as the files have them (whole counts fit
uint16 without loss, half the size) and become log1p of library-normalised
expression when cells are densified (`rows.py`), which is the only thing training asks for.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import sparse

from sesttune.cached_folder import Progress, cached_folder, digest, no_progress
from sesttune.config.schema import DataKwargs
from sesttune.data.h5ad import H5adFile, refuse_negative
from sesttune.data.rows import dense_rows
from sesttune.errors import UserError

STORE_VERSION = 2
LOG1P_LIMIT = 35.0
"""No log1p of counts is larger: exp(35) exceeds every sequencing depth."""
OBS_COLUMNS = ("pert", "cell_type", "batch", "dataset")


@dataclass(frozen=True)
class SourceFile:
    """One h5ad file of a named dataset."""

    path: Path
    dataset: str

    def identity(self) -> tuple[str, str, int, int]:
        """What makes this the same file as last time: path, dataset, size, mtime.

        Raises UserError where it cannot be read.
        """
        try:
            stat = self.path.stat()
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error.strerror})") from None
        return str(self.path.resolve()), self.dataset, stat.st_size, stat.st_mtime_ns


class CellStore:
    """A store opened from its folder; arrays are memory-mapped, read-only.

    Codes (`pert`, `cell_type`, `batch`, `dataset`) are int32 [cells] into the lists of
    `names`; a context is a (dataset, cell type).
    """

    def __init__(self, folder: Path) -> None:
        about = json.loads((folder / "store.json").read_text())
        self.folder = folder
        self.genes: list[str] = about["genes"]
        self.fingerprint: str = about["fingerprint"]
        self.control_pert: str = about["control_pert"]
        self.files: list[dict[str, object]] = about["files"]
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

    @cached_property
    def is_control(self) -> np.ndarray:
        """bool [cells]."""
        return self.pert == self.names["pert"].index(self.control_pert)

    @property
    def nbytes(self) -> int:
        """Bytes of the expression values and their gene indices."""
        return self.indices.nbytes + self.values.nbytes

    def dense(self, rows: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """log1p expression of `rows` (int64 [n]), float32 [n, genes], into `out` if given."""
        return dense_rows(self, rows, out)


def build_store(
    files: Sequence[SourceFile],
    kwargs: DataKwargs,
    cache_dir: Path,
    progress: Progress = no_progress,
    genes: list[str] | None = None,
) -> CellStore:
    """The store of `files`, from the cache where it is there, else built.

    `genes` fixes the store's genes and their order, as `data.kwargs.gene_list` does.

    Raises UserError for everything H5adFile refuses, negative values, values that are
    neither counts nor log1p, files without a common gene, and contexts without controls.
    """
    columns = (kwargs.pert_col, kwargs.cell_type_key, kwargs.batch_col, kwargs.control_pert)
    gene_list = genes or (_read_gene_list(kwargs.gene_list) if kwargs.gene_list else None)
    key = digest(
        STORE_VERSION,
        [source.identity() for source in files],
        columns,
        gene_list,
        kwargs.counts,
        kwargs.target_sum,
    )
    folder = cached_folder(
        cache_dir / "stores" / key,
        lambda draft: _write(draft, files, kwargs, gene_list, progress),
    )
    return CellStore(folder)


def _write(
    folder: Path,
    files: Sequence[SourceFile],
    kwargs: DataKwargs,
    gene_list: list[str] | None,
    progress: Progress,
) -> None:
    from sesttune.data.store_writer import ArrayFile, StoreHash, check_contexts, shrink_values

    genes, notes = _output_genes(files, gene_list)
    index_type = np.dtype(np.uint16 if len(genes) <= 2**16 else np.uint32)
    hashed = StoreHash(genes)
    described: list[dict[str, object]] = []
    frames: list[pd.DataFrame] = []
    lengths: list[np.ndarray] = []
    with (
        ArrayFile(folder / "indices.npy", index_type) as indices,
        ArrayFile(folder / "values.npy", np.dtype(np.float32)) as values,
    ):
        for number, source in enumerate(files):
            with H5adFile(source.path) as file:
                obs = _read_obs(file, source, kwargs, number)
                columns = _column_map(file.unique_genes(), genes)
                library: list[np.ndarray] = []
                largest, whole = 0.0, True
                for block in file.iter_csr():
                    refuse_negative(block, source.path)
                    library.append(np.asarray(block.sum(1), np.float64).ravel())
                    if block.nnz:
                        largest = max(largest, float(block.data.max()))
                        whole = whole and bool((block.data == np.rint(block.data)).all())
                    aligned = _align(block, columns, len(genes))
                    indices.append(aligned.indices)
                    values.append(aligned.data)
                    lengths.append(np.diff(aligned.indptr))
                    hashed.add(aligned)
                    progress(f"reading {source.path.name}", sum(map(len, library)), file.n_cells)
            kind = _kind_of_values(kwargs.counts, whole, largest, source.path)
            sums = np.concatenate(library) if library else np.zeros(0)
            raw_scale = np.where(sums > 0, kwargs.target_sum / np.maximum(sums, 1e-30), 1.0)
            obs["scale"] = (raw_scale if kind == "raw" else np.zeros_like(sums)).astype(np.float32)
            frames.append(obs)
            described.append({"path": str(source.path.resolve()), "values": kind})
            notes.append(f"{source.path.name}: {len(obs):,} cells, {_DESCRIBED[kind]}")
    obs = pd.concat(frames, ignore_index=True)
    check_contexts(obs, kwargs)
    for name in OBS_COLUMNS:
        obs[name] = pd.Categorical(obs[name], categories=sorted(obs[name].unique()))
    obs.to_parquet(folder / "obs.parquet", index=False)
    counts = np.concatenate(lengths) if lengths else np.zeros(0)
    np.save(folder / "indptr.npy", np.concatenate(([0], np.cumsum(counts, dtype=np.int64))))
    shrink_values(folder / "values.npy")
    about = {
        "genes": genes,
        "control_pert": kwargs.control_pert,
        "files": described,
        "notes": notes,
        "fingerprint": hashed.result(obs),
    }
    (folder / "store.json").write_text(json.dumps(about))


_DESCRIBED = {"raw": "raw counts", "log1p": "log1p values"}


def _read_obs(file: H5adFile, source: SourceFile, kwargs: DataKwargs, number: int) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "pert": file.obs(kwargs.pert_col),
            "cell_type": file.obs(kwargs.cell_type_key),
            "batch": file.obs(kwargs.batch_col),
            "dataset": source.dataset,
            "file": np.int32(number),
            "file_row": np.arange(file.n_cells, dtype=np.int64),
        }
    )


def _kind_of_values(setting: str, whole: bool, largest: float, path: Path) -> str:
    if setting != "auto":
        if setting == "log1p" and largest > LOG1P_LIMIT:
            raise UserError(
                f"{path}: data.kwargs.counts=log1p, but X has the value {largest:g}; "
                "no log1p count is that large, set data.kwargs.counts=raw"
            )
        return setting
    if whole:
        return "raw"
    if largest <= LOG1P_LIMIT:
        return "log1p"
    raise UserError(
        f"{path}: X is neither whole counts nor log1p (largest value {largest:g}); "
        "set data.kwargs.counts=raw if these are counts"
    )


def _read_gene_list(path: str) -> list[str]:
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"data.kwargs.gene_list: {file} does not exist")
    genes = [line.strip() for line in file.read_text().splitlines() if line.strip()]
    if not genes or len(set(genes)) < len(genes):
        raise UserError(f"data.kwargs.gene_list: {file} must list each gene once, one a line")
    return genes


def _output_genes(
    files: Sequence[SourceFile], gene_list: list[str] | None
) -> tuple[list[str], list[str]]:
    """The store's genes: those of the list, else those common to all, in first-file order."""
    per_file: list[list[str]] = []
    for source in files:
        with H5adFile(source.path) as file:
            per_file.append(file.unique_genes())
    if gene_list is not None:
        for source, names in zip(files, per_file, strict=True):
            lacking = sorted(set(gene_list) - set(names))
            if lacking:
                raise UserError(
                    f"{source.path} lacks {len(lacking)} of the {len(gene_list)} genes "
                    f"that are asked for (e.g. '{lacking[0]}')"
                )
        return gene_list, []
    common = set(per_file[0]).intersection(*per_file[1:])
    genes = [name for name in per_file[0] if name in common]
    if not genes:
        raise UserError(
            f"{files[0].path} and the other files have no gene name in common; "
            "use the same kind of gene names in var of each file"
        )
    largest = max(len(names) for names in per_file)
    if len(genes) == largest:
        return genes, []
    return genes, [
        f"{len(genes):,} genes common to all files are kept (the largest file has {largest:,})"
    ]


def _column_map(names: Sequence[str], genes: Sequence[str]) -> np.ndarray | None:
    """Store column of each file column (-1: left out), or None where they are the same."""
    if list(names) == list(genes):
        return None
    where = {gene: column for column, gene in enumerate(genes)}
    return np.array([where.get(name, -1) for name in names], dtype=np.int64)


def _align(block: sparse.csr_matrix, columns: np.ndarray | None, width: int) -> sparse.csr_matrix:
    if columns is None:
        return block
    entries = block.tocoo()
    mapped = columns[entries.col]
    kept = mapped >= 0
    aligned = sparse.csr_matrix(
        (entries.data[kept], (entries.row[kept], mapped[kept])), shape=(block.shape[0], width)
    )
    aligned.sort_indices()
    return aligned
