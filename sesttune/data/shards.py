"""Shards of control cells: the pieces in which embeddings are computed, kept and checked.

A shard's name is a digest of what its cells hold and of the encoder, not of where they
lie: a file that was moved, or a sweep that adds a dataset, finds what is there already.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from scipy import sparse

from sesttune.data.cell_content import cell_digests
from sesttune.data.h5ad import H5adFile
from sesttune.errors import UserError
from sesttune.system.cached_folder import Progress, cached_folder, digest, is_intact, mark_used

SHARD_CELLS = 256
"""Cells a shard: what a kill can cost at most, a second or two of a large GPU."""
ENCODING = "encoding control cells"


class GeneMatch(Protocol):
    """Which genes of a file the encoder knows."""

    @property
    def report(self) -> str: ...


class Encoder(Protocol):
    """What the cache needs of an encoder; `key` is known before its weights are loaded."""

    min_matched: float
    """Least share of a file's genes it must know."""
    calls_at_once: int
    """Calls of `encode` to make side by side, so that its device does not wait while the host
    reads and writes shards."""

    @property
    def key(self) -> str: ...

    @property
    def identity(self) -> dict[str, str]: ...

    def match(
        self, gene_names: Sequence[str], var_columns: Mapping[str, Sequence[str]]
    ) -> GeneMatch: ...

    def encode(self, x: sparse.csr_matrix, match: Any) -> np.ndarray: ...


@dataclass(frozen=True)
class Controls:
    """The control cells of a file: `rows` and `digests` as in a `Shard`."""

    file: Path
    rows: np.ndarray
    digests: np.ndarray


@dataclass(frozen=True)
class Shard:
    """Control cells of one file.

    `rows` is int64 [cells], ascending; `digests` uint8 [cells, 16], what they must hold (see
    `cell_digests`); `folder` their place in the cache.
    """

    file: Path
    rows: np.ndarray
    digests: np.ndarray
    folder: Path

    def is_ready(self) -> bool:
        """Whether it is in the cache, byte for byte as it was written."""
        if not is_intact(self.folder):
            return False
        mark_used(self.folder)
        return True

    def read(self) -> np.ndarray:
        """Embeddings float32 [cells, width]."""
        return np.load(self.folder / "embeddings.npy")


Runner = Callable[[Sequence[Shard], Encoder, Progress], None]
"""Sees to it that every shard is in the cache."""


class ShardEncoder:
    """Encodes shards, from several threads at once; keeps open the file it read from last."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._reading = threading.Lock()  # HDF5 serves one thread at a time anyway
        self._opened: tuple[H5adFile, GeneMatch] | None = None

    def encode(self, shard: Shard) -> int:
        """Compute the shard unless another process has; returns its cells.

        Raises UserError for NaN, and where the cells are no longer what they were.
        """
        cached_folder(shard.folder, lambda draft: self._write(draft, shard), is_intact)
        return len(shard.rows)

    def _write(self, draft: Path, shard: Shard) -> None:
        with self._reading:
            file, match = self._open(shard.file)
            cells = file.read_rows(shard.rows)
        if not np.array_equal(cell_digests(cells), shard.digests):
            raise UserError(
                f"{shard.file}: its cells have changed since the cell store was built of them; "
                "start again (`touch` the file first, if its time was set back)"
            )
        try:
            encoded = self._encoder.encode(cells, match)
        except UserError as error:
            raise UserError(f"{shard.file}: {error}") from None
        if not np.isfinite(encoded).all():
            raise UserError(f"{shard.file}: the encoder gave NaN for a control cell")
        np.save(draft / "embeddings.npy", encoded)

    def _open(self, path: Path) -> tuple[H5adFile, GeneMatch]:
        if self._opened is None or self._opened[0].path != path:
            if self._opened is not None:
                self._opened[0].close()
                self._opened = None
            file = H5adFile(path)
            self._opened = file, self._encoder.match(file.var_names, file.var_columns())
        return self._opened


def encode_here(shards: Sequence[Shard], encoder: Encoder, progress: Progress) -> None:
    """The `Runner` of a single device: in this process."""
    done, total = 0, sum(len(shard.rows) for shard in shards)
    progress(ENCODING, 0, total)
    pool = ThreadPoolExecutor(encoder.calls_at_once, "shards")
    try:
        for cells in pool.map(ShardEncoder(encoder).encode, shards):
            done += cells
            progress(ENCODING, done, total)
    finally:
        pool.shutdown(cancel_futures=True)


def plan_shards(
    files: Sequence[Controls], encoder: Encoder, cache: Path
) -> tuple[list[Shard], dict[str, str]]:
    """The shards of `files` in order, and a gene report for each file. Reads no cell.

    Raises UserError where a file's genes do not match the encoder's.
    """
    shards: list[Shard] = []
    reports: dict[str, str] = {}
    for controls in files:
        with H5adFile(controls.file) as file:
            names, columns = file.var_names, file.var_columns()
        try:
            reports[str(controls.file)] = encoder.match(names, columns).report
        except UserError as error:
            raise UserError(f"{controls.file}: {error}") from None
        genes = digest(names, columns)
        for start in range(0, len(controls.rows), SHARD_CELLS):
            part = slice(start, start + SHARD_CELLS)
            digests = controls.digests[part]
            folder = cache / digest(digests.tobytes().hex(), genes, encoder.key)
            shards.append(Shard(controls.file, controls.rows[part], digests, folder))
    return shards, reports
