"""The SE embedding of every control cell, computed once and memory-mapped by all trials.

SE-600M costs about 2.4 TFLOP a cell: encoding the 2,048 controls of a step inside
the loop could not pass 0.2 steps/s on any GPU. Perturbed cells are targets and
are never encoded. Cells are encoded from their file with all of its genes, so a
row here equals the row `sesttune encode` writes for the same cell.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
from scipy import sparse

from sesttune.data.cache import Progress, cached_folder, digest, no_progress
from sesttune.data.h5ad import H5adFile
from sesttune.data.store import CellStore
from sesttune.errors import UserError

BLOCK_CELLS = 256


class Encoder(Protocol):
    """What the cache needs of an encoder; `key` is known before its weights are loaded."""

    @property
    def key(self) -> str: ...

    @property
    def embed_dim(self) -> int: ...

    @property
    def identity(self) -> dict[str, str]: ...

    def encode(
        self, x: sparse.csr_matrix, gene_names: list[str], var_columns: dict[str, list[str]]
    ) -> np.ndarray: ...


class ControlEmbeddings:
    """Embeddings opened from their folder.

    `matrix` is float32 [controls, embed_dim]; `row_of_cell` is int64 [cells], -1 for
    cells that are not controls.
    """

    def __init__(self, folder: Path, store: CellStore) -> None:
        self.folder = folder
        self.matrix = np.load(folder / "embeddings.npy", mmap_mode="r")
        self.encoder: dict[str, str] = json.loads((folder / "encoder.json").read_text())
        self.row_of_cell = np.full(store.n_cells, -1, np.int64)
        controls = np.flatnonzero(store.is_control)
        self.row_of_cell[controls] = np.arange(len(controls))

    @property
    def embed_dim(self) -> int:
        return int(self.matrix.shape[1])


def build_control_embeddings(
    store: CellStore, encoder: Encoder, cache_dir: Path, progress: Progress = no_progress
) -> ControlEmbeddings:
    """Embeddings of the store's controls, from the cache where they are there."""
    key = digest(store.key, encoder.key)
    folder = cached_folder(
        cache_dir / "embeddings" / key, lambda draft: _encode(draft, store, encoder, progress)
    )
    return ControlEmbeddings(folder, store)


def control_embeddings_from_obsm(store: CellStore, key: str, cache_dir: Path) -> ControlEmbeddings:
    """The embeddings the files already hold in `obsm[key]`.

    Raises UserError where a file has none, they differ in width, or a value is not finite.
    """
    folder = cached_folder(
        cache_dir / "embeddings" / digest(store.key, "obsm", key),
        lambda draft: _copy_obsm(draft, store, key),
    )
    return ControlEmbeddings(folder, store)


def _encode(folder: Path, store: CellStore, encoder: Encoder, progress: Progress) -> None:
    total = int(store.is_control.sum())
    matrix = np.lib.format.open_memmap(
        folder / "embeddings.npy", "w+", np.float32, (total, encoder.embed_dim)
    )
    done = 0
    for path, rows in _controls_by_file(store):
        with H5adFile(path) as file:
            genes, columns = file.var_names, file.var_columns()
            for block in file.iter_csr(rows, block_rows=4 * BLOCK_CELLS):
                for start in range(0, block.shape[0], BLOCK_CELLS):
                    part = block[start : start + BLOCK_CELLS]
                    encoded = encoder.encode(part, genes, columns)
                    if not np.isfinite(encoded).all():
                        raise UserError(f"{path}: the encoder gave NaN for a control cell")
                    matrix[done : done + len(encoded)] = encoded
                    done += len(encoded)
                    progress("encoding control cells", done, total)
    matrix.flush()
    (folder / "encoder.json").write_text(json.dumps({**encoder.identity, "key": encoder.key}))


def _copy_obsm(folder: Path, store: CellStore, key: str) -> None:
    parts: list[np.ndarray] = []
    for path, rows in _controls_by_file(store):
        with H5adFile(path) as file:
            held = file.obsm(key)
        if held is None:
            raise UserError(
                f"{path}: obsm has no '{key}'; write it with `sesttune encode`, "
                "or set data.kwargs.embed_key=null to compute the embeddings"
            )
        if held.ndim != 2 or (parts and held.shape[1] != parts[0].shape[1]):
            raise UserError(f"{path}: obsm['{key}'] has the shape {held.shape}, unlike the others")
        picked = held[rows].astype(np.float32)
        if not np.isfinite(picked).all():
            raise UserError(f"{path}: obsm['{key}'] holds NaN or infinity in control cells")
        parts.append(picked)
    np.save(folder / "embeddings.npy", np.concatenate(parts))
    identity = {"path": f"obsm['{key}']", "sha256": "", "label": f"obsm['{key}'] of the files"}
    (folder / "encoder.json").write_text(json.dumps({**identity, "key": f"obsm:{key}"}))


def _controls_by_file(store: CellStore) -> Iterator[tuple[Path, np.ndarray]]:
    """(file, its control rows), in store order: files in turn, rows ascending."""
    for number, about in enumerate(store.files):
        rows = store.file_row[(store.file == number) & store.is_control]
        if len(rows):
            yield Path(str(about["path"])), rows
