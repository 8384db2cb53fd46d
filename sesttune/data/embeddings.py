"""The SE embedding of every control cell, computed once and memory-mapped by all trials.

SE-600M costs about 2 TFLOP a cell: encoding the 2,048 controls of a step inside the loop
would take a GPU of 1 PFLOP/s, fully used, 4 s a step. Perturbed cells are targets and
are never encoded. Cells are encoded from their file with all of its genes, so a
row here equals the row `sesttune encode` writes for the same cell.

What is encoded is kept in shards named by the cells' own content (`shards.py`); a
store's matrix is put together from them. So an added dataset costs its new cells
only, and a killed sweep loses no finished shard.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sesttune.data.growing_array import ArrayFile
from sesttune.data.h5ad import H5adFile
from sesttune.data.shards import Controls, Encoder, Runner, encode_here, plan_shards
from sesttune.data.store import CellStore
from sesttune.errors import UserError
from sesttune.system.cached_folder import Progress, cached_folder, digest, is_intact, no_progress

UNIT_LENGTH_KEY, DATASET_VALUES, LENGTH_TOLERANCE = "X_state", 10, 0.05
"""State Embeddings have unit length, but for the dataset values at their end."""


class ControlEmbeddings:
    """Embeddings opened from their folder.

    `matrix` is float32 [controls, embed_dim]; `row_of_cell` is int64 [cells], -1 for
    cells that are not controls.
    """

    def __init__(self, folder: Path, store: CellStore) -> None:
        self.folder = folder
        self.matrix = np.load(folder / "embeddings.npy", mmap_mode="r")
        about = json.loads((folder / "encoder.json").read_text())
        self.gene_reports: dict[str, str] = about.pop("genes", {})
        """How the genes of each file matched the encoder's, one line each."""
        self.encoder: dict[str, str] = about
        """Its `path`, `sha256`, `label`, `key`; of embeddings in the files their `values` too."""
        self.row_of_cell = np.full(store.n_cells, -1, np.int64)
        controls = np.flatnonzero(store.is_control)
        self.row_of_cell[controls] = np.arange(len(controls))

    @property
    def embed_dim(self) -> int:
        return int(self.matrix.shape[1])


def build_control_embeddings(
    store: CellStore,
    encoder: Encoder,
    cache_dir: Path,
    progress: Progress = no_progress,
    runner: Runner = encode_here,
) -> ControlEmbeddings:
    """Embeddings of the store's controls, from the cache where they are there.

    `runner` encodes the shards that are not; on several GPUs, in parallel. Raises UserError
    where a file's genes do not match the encoder's, before anything is encoded.
    """

    def build(draft: Path) -> None:
        files = list(_controls_by_file(store))
        shards, reports = plan_shards(files, encoder, cache_dir / "shards")
        missing = [shard for shard in shards if not shard.is_ready()]
        if missing:
            runner(missing, encoder, progress)
        width = shards[0].read().shape[1]
        # Written, not mapped: a full disk is an error then, not a SIGBUS.
        with ArrayFile(draft / "embeddings.npy", np.dtype(np.float32), width) as matrix:
            for shard in shards:
                matrix.append(shard.read())
        about = {**encoder.identity, "key": encoder.key, "genes": reports}
        (draft / "encoder.json").write_text(json.dumps(about))

    # Another threshold asks again whether the genes match, and finds the shards.
    key = digest(store.key, encoder.key, encoder.min_matched)
    # By its sums, which costs a sweep a second at most: trials open what was checked here.
    folder = cached_folder(cache_dir / "embeddings" / key, build, is_intact)
    return ControlEmbeddings(folder, store)


def control_embeddings_from_obsm(store: CellStore, key: str, cache_dir: Path) -> ControlEmbeddings:
    """The embeddings the files already hold in `obsm[key]`.

    Raises UserError where a file has none, they differ in width, a value is not finite, a
    cell's values are all zero, or `X_state` has not the length of State Embeddings.
    """
    folder = cached_folder(
        cache_dir / "embeddings" / digest(store.key, "obsm", key),
        lambda draft: _copy_obsm(draft, store, key),
        is_intact,
    )
    return ControlEmbeddings(folder, store)


def _copy_obsm(folder: Path, store: CellStore, key: str) -> None:
    parts: list[np.ndarray] = []
    for controls in _controls_by_file(store):
        path, rows = controls.file, controls.rows
        with H5adFile(path) as file:
            held = file.obsm(key)
        if held is None:
            raise UserError(
                f"{path}: obsm has no '{key}'; write it with `sesttune encode`, "
                "or set data.kwargs.embed_key=null to compute the embeddings"
            )
        if parts and held.shape[1] != parts[0].shape[1]:
            raise UserError(f"{path}: obsm['{key}'] has the shape {held.shape}, unlike the others")
        picked = held[rows].astype(np.float32)
        if not np.isfinite(picked).all():
            raise UserError(f"{path}: obsm['{key}'] holds NaN or infinity in control cells")
        _check_lengths(picked, key, path)
        parts.append(picked)
    matrix = np.concatenate(parts)
    np.save(folder / "embeddings.npy", matrix)
    about = {
        "path": f"obsm['{key}']",
        "sha256": "",
        "label": f"obsm['{key}'] of the files",
        "key": f"obsm:{key}",
        "values": hashlib.sha256(matrix.tobytes()).hexdigest(),
    }
    (folder / "encoder.json").write_text(json.dumps(about))


def _check_lengths(picked: np.ndarray, key: str, path: Path) -> None:
    empty = int((~picked.any(1)).sum())
    if empty:
        raise UserError(f"{path}: obsm['{key}'] is all zero for {empty} control cells")
    if key == UNIT_LENGTH_KEY:
        lengths = np.linalg.norm(picked[:, :-DATASET_VALUES], axis=1)
        if abs(float(np.median(lengths)) - 1) > LENGTH_TOLERANCE:
            raise UserError(
                f"{path}: obsm['{key}'] holds no State Embeddings: those have length 1, these "
                f"{np.median(lengths):.3g}; write them with `sesttune encode`"
            )


def _controls_by_file(store: CellStore) -> Iterator[Controls]:
    """In store order: files in turn, rows ascending."""
    file_of_control = store.file[store.is_control]
    for number, about in enumerate(store.files):
        here = file_of_control == number
        if here.any():
            rows = store.file_row[store.is_control][here]
            yield Controls(Path(str(about["path"])), rows, store.control_digests[here])
