"""Fit a batch into memory: out of memory makes the pieces smaller, never the batch.

The sets of an optimizer step stay the same ones, in the same order, so the trial means what
it meant before.
"""

from dataclasses import dataclass

from sesttune.errors import UserError


@dataclass(frozen=True)
class MicroBatch:
    """`accumulate` passes of `sets` cell sets make one optimizer step."""

    sets: int
    accumulate: int

    def smaller(self) -> "MicroBatch":
        """The next smaller piece, at most half. Raises UserError below one cell set."""
        if self.sets == 1:
            raise UserError(
                "out of memory with a single cell set a pass: lower model.kwargs.st_cell_set_len "
                "or hidden_dim, or take a device with more memory"
            )
        whole = self.sets * self.accumulate
        sets = next(n for n in range(self.sets // 2, 0, -1) if whole % n == 0)
        return MicroBatch(sets, whole // sets)
