"""Arrays written to disk piece by piece, for a store that is larger than memory."""

from pathlib import Path
from typing import Self

import numpy as np

from sesttune.system.cached_folder import Progress, no_progress

CHUNK = 16_000_000
SHRINKING = "halving whole counts"


class ArrayFile:
    """A `.npy` file that grows, by values or by rows [width]; its header is written on exit."""

    def __init__(self, path: Path, dtype: np.dtype, width: int | None = None) -> None:
        self._dtype, self._length = dtype, 0
        self._row = () if width is None else (width,)
        self._file = path.open("wb")
        self._write_header()

    def append(self, values: np.ndarray) -> None:
        self._file.write(np.ascontiguousarray(values, self._dtype).data)
        self._length += len(values)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.seek(0)
        self._write_header()
        self._file.close()

    def _write_header(self) -> None:
        """numpy leaves room in it for any number of rows, so it is as long whatever there are."""
        about = {"descr": self._dtype.str, "fortran_order": False}
        about["shape"] = (self._length, *self._row)
        np.lib.format.write_array_header_1_0(self._file, about)


def shrink_values(path: Path, progress: Progress = no_progress) -> None:
    """Rewrite float32 values as uint16, half the size, where all are whole and small enough.

    Of 5 million cells they are 60 GB, read twice: `progress` is told of each piece.
    """
    values = np.load(path, mmap_mode="r")
    pieces = [values[i : i + CHUNK] for i in range(0, len(values), CHUNK)]
    for done, piece in enumerate(pieces, 1):
        if not ((piece <= 65_535).all() and (piece == np.rint(piece)).all()):
            return
        progress(SHRINKING, done, 2 * len(pieces))
    with ArrayFile(path.with_suffix(".half"), np.dtype(np.uint16)) as half:
        for done, piece in enumerate(pieces, 1 + len(pieces)):
            half.append(piece)
            progress(SHRINKING, done, 2 * len(pieces))
    path.with_suffix(".half").replace(path)
