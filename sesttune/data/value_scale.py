"""What the values of a file are: raw counts, or log1p of counts scaled to some sum a cell.

Raw counts are scaled here (`data.kwargs.target_sum`); log1p values come as they were made, and
scanpy's default is the file's own median. Files on other scales differ by a factor that a head
would learn as biology, so the sum is measured, on the first cells, and said.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import sparse

from sesttune.errors import UserError

LOG1P_LIMIT = 35.0
"""No log1p of counts is larger: exp(35) exceeds every sequencing depth."""
BINARY = "X holds 0 and 1 alone, as if counts had been made yes or no; give counts"
MOST_COUNTS = 5_000_000
"""Counts a cell above which the encoder, as the public one, takes log1p values for counts."""
UNLIKE = 1.5
"""Factor between sums that is told of; genes left out after scaling lose some of theirs, too."""


class ValueScale:
    """Told of a file's values block by block, float32 CSR without stored zeros."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.kind = ""
        """`raw` or `log1p`, once decided."""
        self._largest, self._whole = 0.0, True
        self._log1p_sum: float | None = None

    def add(self, block: sparse.csr_matrix) -> None:
        if not block.nnz:
            return
        self._largest = max(self._largest, float(block.data.max()))
        self._whole = self._whole and bool((block.data == np.rint(block.data)).all())
        if self._log1p_sum is None and not self._whole and self._largest <= LOG1P_LIMIT:
            counts = np.add.reduceat(np.expm1(block.data, dtype=np.float64), _starts(block))
            self._log1p_sum = float(np.median(counts))

    def decide(self, setting: str, elsewhere: str = "") -> str:
        """`kind`, by `data.kwargs.counts`; raises UserError where the values cannot be that.

        `elsewhere`: where counts may lie, as `H5adFile.elsewhere` says it.
        """
        if setting == "log1p" and self._largest > LOG1P_LIMIT:
            raise UserError(
                f"{self.path}: data.kwargs.counts=log1p, but X has the value {self._largest:g}; "
                "no log1p count is that large, set data.kwargs.counts=raw"
            )
        if setting == "auto" and not self._whole and self._largest > LOG1P_LIMIT:
            raise UserError(
                f"{self.path}: X is neither whole counts nor log1p (largest value "
                f"{self._largest:g}); set data.kwargs.counts=raw if these are counts{elsewhere}"
            )
        found = "raw" if self._whole else "log1p"
        self.kind = found if setting == "auto" else setting
        return self.kind

    @property
    def binary(self) -> bool:
        return self._whole and self._largest == 1

    def odd(self) -> str | None:
        """What is to be said of values that are hardly those of `kind`."""
        if self.kind == "raw" and self.binary:
            return BINARY
        if self.kind == "log1p" and (self._log1p_sum or 0) > MOST_COUNTS:
            return (
                f"{self} are more than cells have, and the encoder takes such for counts; give "
                "natural logarithms (not log2), or counts"
            )
        return None

    def sum_of_a_cell(self, target_sum: float) -> float | None:
        """Counts of a cell behind the values of the store; None where that is not known."""
        return target_sum if self.kind == "raw" else self._log1p_sum

    def __str__(self) -> str:
        if self.kind == "raw":
            return "raw counts"
        known = self._log1p_sum is not None
        return f"log1p values of {self._log1p_sum:,.0f} counts a cell" if known else "log1p values"


def scale_notes(files: Sequence[ValueScale], target_sum: float) -> list[str]:
    """A line where the files lie on other scales."""
    sums = [(found, f.path.name) for f in files if (found := f.sum_of_a_cell(target_sum))]
    if not sums or max(sums)[0] <= UNLIKE * min(sums)[0]:
        return []
    (least, one), (most, other) = min(sums), max(sums)
    return [
        f"files are on other scales: {other} of {most:,.0f} counts a cell, {one} of {least:,.0f}; "
        "give raw counts of all, or log1p values of one sum (data.kwargs.target_sum is that of raw)"
    ]


def unlike_training(here: Sequence[float], trained: Sequence[float]) -> str | None:
    """What is to be said where cells lie on another scale than those that a model learnt from.

    Both are `CellStore.counts_a_cell`, empty where it is not known.
    """
    if not here or not trained:
        return None
    if here[-1] <= UNLIKE * trained[-1] and UNLIKE * here[0] >= trained[0]:
        return None
    other = here[-1] if here[-1] > UNLIKE * trained[-1] else here[0]
    own = " to ".join(f"{counts:,.0f}" for counts in dict.fromkeys(trained))
    return (
        f"these cells are on another scale: {other:,.0f} counts a cell, where the model was "
        f"trained on {own}, and predicts such; give log1p values of as many"
    )


def _starts(block: sparse.csr_matrix) -> np.ndarray:
    """Where the rows that hold anything begin."""
    starts: np.ndarray = block.indptr[:-1][np.diff(block.indptr) > 0]
    return starts
