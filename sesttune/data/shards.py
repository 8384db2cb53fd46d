"""Shards of control cells: the pieces in which embeddings are computed, kept and checked.

A shard's name is a digest of what its cells hold and of the encoder, not of where they
lie: a file that was moved, or a sweep that adds a dataset, finds what is there already.
"""

import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from scipy import sparse

from sesttune.cached_folder import Progress, cached_folder, digest, is_intact
from sesttune.data.h5ad import H5adFile
from sesttune.errors import UserError

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
class Shard:
    """Control cells of one file; `rows` is int64, ascending, `folder` their place in the cache."""

    file: Path
    rows: np.ndarray
    folder: Path

    def is_ready(self) -> bool:
        """Whether it is in the cache, byte for byte as it was written."""
        return is_intact(self.folder)

    def read(self) -> np.ndarray:
        """Embeddings float32 [cells, width]."""
        return np.load(self.folder / "embeddings.npy")


Runner = Callable[[Sequence[Shard], Encoder, Progress], None]
"""Sees to it that every shard is in the cache."""


class ShardEncoder:
    """Encodes shards, from several threads at once; each keeps open the file it reads from."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._thread = threading.local()

    def encode(self, shard: Shard) -> int:
        """Compute the shard unless another process has; returns its cells.

        Raises UserError for NaN.
        """
        cached_folder(shard.folder, lambda draft: self._write(draft, shard), is_intact)
        return len(shard.rows)

    def _write(self, draft: Path, shard: Shard) -> None:
        file, match = self._opened(shard.file)
        encoded = self._encoder.encode(file.read_rows(shard.rows), match)
        if not np.isfinite(encoded).all():
            raise UserError(f"{shard.file}: the encoder gave NaN for a control cell")
        np.save(draft / "embeddings.npy", encoded)

    def _opened(self, path: Path) -> tuple[H5adFile, GeneMatch]:
        opened: tuple[H5adFile, GeneMatch] | None = getattr(self._thread, "opened", None)
        if opened is not None and opened[0].path == path:
            return opened
        if opened is not None:
            opened[0].close()
        file = H5adFile(path)
        match = self._encoder.match(file.var_names, file.var_columns())
        self._thread.opened = file, match
        return file, match


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
    files: Sequence[tuple[Path, np.ndarray]], encoder: Encoder, cache: Path
) -> tuple[list[Shard], dict[str, str]]:
    """The shards of `files` (path, rows to encode) in order, and a gene report for each file.

    Raises UserError where a file's genes do not match the encoder's.
    """
    shards: list[Shard] = []
    reports: dict[str, str] = {}
    for path, rows in files:
        with H5adFile(path) as file:
            names, columns = file.var_names, file.var_columns()
            reports[str(path)] = encoder.match(names, columns).report
            genes = digest(names, columns)
            for start in range(0, len(rows), SHARD_CELLS):
                part = rows[start : start + SHARD_CELLS]
                content = _content(file.read_rows(part))
                shards.append(Shard(path, part, cache / digest(content, genes, encoder.key)))
    return shards, reports


def _content(x: sparse.csr_matrix) -> str:
    """sha256 of the values of some cells."""
    sha = hashlib.sha256()
    for part, dtype in ((x.indptr, np.int64), (x.indices, np.int64), (x.data, np.float32)):
        sha.update(np.ascontiguousarray(part, dtype).tobytes())
    return sha.hexdigest()
