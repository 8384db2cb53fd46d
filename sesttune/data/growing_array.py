"""Arrays written to disk piece by piece, for a store that is larger than memory."""

from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

CHUNK = 16_000_000


class ArrayFile:
    """A `.npy` file that grows, by values or by rows [width]; its header is written on exit."""

    HEADER_BYTES = 128

    def __init__(self, path: Path, dtype: np.dtype, width: int | None = None) -> None:
        self._dtype, self._length = dtype, 0
        self._row = () if width is None else (width,)
        self._file = path.open("wb")
        self._file.write(b"\0" * self.HEADER_BYTES)

    def append(self, values: np.ndarray) -> None:
        self._file.write(np.ascontiguousarray(values, self._dtype).data)
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
        about += f"'shape': {(self._length, *self._row)}, }}"
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
