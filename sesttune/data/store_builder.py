"""Builds the cell store of some h5ad files, or finds it in the cache.

Each file is read once, in blocks: its values are checked, aligned to the genes of the store and
appended, and its control cells get the digests their embeddings are kept under.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import sparse

from sesttune.config.schema import DataKwargs
from sesttune.data.cell_content import StoreHash, cell_digests, held_twice
from sesttune.data.growing_array import ArrayFile, shrink_values
from sesttune.data.h5ad import H5adFile
from sesttune.data.labels import alike, check_controls
from sesttune.data.store import OBS_COLUMNS, CellStore
from sesttune.data.target_genes import target_genes
from sesttune.data.value_scale import ValueScale, scale_notes
from sesttune.errors import UserError, check_file
from sesttune.system.cached_folder import Progress, cached_folder, digest, no_progress

STORE_VERSION = 8


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
    genes, notes = _output_genes(files, gene_list)
    index_type = np.dtype(np.uint16 if len(genes) <= 2**16 else np.uint32)
    hashed = StoreHash(genes)
    described: list[dict[str, object]] = []
    frames = [_read_obs(source, kwargs, number) for number, source in enumerate(files)]
    check_controls(pd.concat(frames, ignore_index=True), kwargs)
    lengths: list[np.ndarray] = []
    digests: list[np.ndarray] = []
    scales: list[ValueScale] = []
    with (
        ArrayFile(folder / "indices.npy", index_type) as indices,
        ArrayFile(folder / "values.npy", np.dtype(np.float32)) as values,
    ):
        for source, obs in zip(files, frames, strict=True):
            with H5adFile(source.path) as file:
                is_control = (obs["pert"] == kwargs.control_pert).to_numpy()
                columns = _column_map(file.unique_genes(), genes)
                library: list[np.ndarray] = []
                scale = ValueScale(source.path)
                for block in file.iter_csr():
                    file.refuse_negative(block)
                    start = sum(map(len, library))
                    controls = is_control[start : start + block.shape[0]]
                    digests.append(cell_digests(block[controls]))
                    library.append(np.asarray(block.sum(1), np.float64).ravel())
                    scale.add(block)
                    aligned = _align(block, columns, len(genes))
                    indices.append(aligned.indices)
                    values.append(aligned.data)
                    lengths.append(np.diff(aligned.indptr))
                    hashed.add(aligned)
                    progress(f"reading {source.path.name}", sum(map(len, library)), file.n_cells)
                elsewhere = file.elsewhere()
            kind = scale.decide(kwargs.counts, elsewhere)
            scales.append(scale)
            sums = np.concatenate(library)
            raw_scale = np.where(sums > 0, kwargs.target_sum / np.maximum(sums, 1e-30), 1.0)
            obs["scale"] = (raw_scale if kind == "raw" else np.zeros_like(sums)).astype(np.float32)
            about_file = {"path": str(source.path.resolve()), "values": kind}
            depth = scale.sum_of_a_cell(kwargs.target_sum)
            described.append({**about_file, "counts_a_cell": depth})
            empty = int((sums == 0).sum())
            cells = f"{len(obs):,} cells{f' ({empty:,} without a count)' if empty else ''}"
            notes.append(f"{source.path.name}: {cells}, {scale}")
            if (odd := scale.odd()) is not None:
                notes.append(f"{source.path.name}: {odd}{elsewhere}")
    notes += scale_notes(scales, kwargs.target_sum)
    obs = pd.concat(frames, ignore_index=True)
    notes += alike(kwargs.pert_col, obs["pert"].unique())
    notes += alike(kwargs.cell_type_key, obs["cell_type"].unique())
    for name in OBS_COLUMNS:
        obs[name] = pd.Categorical(obs[name], categories=sorted(obs[name].unique()))
    obs.to_parquet(folder / "obs.parquet", index=False)
    perturbed = obs.loc[obs["pert"] != kwargs.control_pert, "pert"].unique()
    targets, told = target_genes([source.path for source in files], genes, perturbed)
    notes += told
    ends = np.cumsum(np.concatenate(lengths), dtype=np.int64)
    np.save(folder / "indptr.npy", np.concatenate(([0], ends)))
    of_controls = np.concatenate(digests)
    np.save(folder / "control_digests.npy", of_controls)
    control_files = obs.loc[obs["pert"] == kwargs.control_pert, "file"].to_numpy()
    if twice := held_twice(of_controls, control_files):
        names = " and ".join(files[number].path.name for number in twice[0])
        more = f", as do {len(twice) - 1} more pairs of files" if len(twice) > 1 else ""
        notes.append(
            f"{names} hold the same control cells{more}: where the others are the same, too, they "
            "may be trained on and held out; name them once"
        )
    shrink_values(folder / "values.npy", progress)
    kinds = [file["values"] for file in described]
    target_sum = kwargs.target_sum if "raw" in kinds else None
    about = {
        "genes": genes,
        "control_pert": kwargs.control_pert,
        "target_genes": targets,
        "files": described,
        "notes": notes,
        "fingerprint": digest(hashed.result(obs), kinds, target_sum),
    }
    (folder / "store.json").write_text(json.dumps(about))


def _read_obs(source: SourceFile, kwargs: DataKwargs, number: int) -> pd.DataFrame:
    with H5adFile(source.path) as file:
        return pd.DataFrame(
            {
                "pert": file.obs(kwargs.pert_col, "data.kwargs.pert_col"),
                "cell_type": file.obs(kwargs.cell_type_key, "data.kwargs.cell_type_key"),
                "batch": file.obs(kwargs.batch_col, "data.kwargs.batch_col"),
                "dataset": source.dataset,
                "file": np.int32(number),
                "file_row": np.arange(file.n_cells, dtype=np.int64),
            }
        )


def _read_gene_list(path: str) -> list[str]:
    file = Path(path).expanduser()
    check_file(file, "data.kwargs.gene_list: ")
    try:
        lines = file.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"data.kwargs.gene_list: {file} is not text in UTF-8") from None
    genes = [line.strip() for line in lines if line.strip()]
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
                asked = set(gene_list)
                other = next((name for name in names if name not in asked), None)
                own = f"; others are there, e.g. '{other}'" if other else ""
                raise UserError(
                    f"{source.path} lacks {len(lacking)} of the {len(gene_list)} genes "
                    f"that are asked for (e.g. '{lacking[0]}'{own})"
                )
        return gene_list, []
    common = set(per_file[0]).intersection(*per_file[1:])
    genes = [name for name in per_file[0] if name in common]
    if not genes:
        raise UserError(_nothing_in_common(files, per_file))
    largest = max(len(names) for names in per_file)
    if len(genes) == largest:
        return genes, []
    return genes, [
        f"{len(genes):,} genes common to all files are kept (the largest file has {largest:,})"
    ]


def _nothing_in_common(files: Sequence[SourceFile], names: Sequence[list[str]]) -> str:
    """Two files that share no gene, with a gene of each: most often one of them names others."""
    first = set(names[0])
    other = next((n for n in range(1, len(files)) if first.isdisjoint(names[n])), len(files) - 1)
    shown = [f"{files[n].path} (e.g. {', '.join(names[n][:2])})" for n in (0, other)]
    return (
        f"no gene name is common to {' and '.join(dict.fromkeys(shown))}; use the same kind of "
        "gene names in var of each file"
    )


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
