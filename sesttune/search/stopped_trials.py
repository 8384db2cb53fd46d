"""Trials that were stopped at a rung and wait there with their checkpoints: which one goes on next.

Highest rung first, the best of it first, so a free GPU brings the leaders to their ends before it
begins anything new, and the sweep has an incumbent early. A heap per rung, so that ten thousand
waiting trials cost no more than ten.
"""

import heapq
from collections.abc import Mapping

from sesttune.search.asha import Rungs
from sesttune.search.trial_state import TrialState


class StoppedTrials:
    """Those of `trials` that stand at the rungs of `rungs`."""

    def __init__(self, trials: Mapping[str, TrialState], rungs: Rungs) -> None:
        self._trials, self._rungs = trials, rungs
        self._heaps: dict[int, list[tuple[float, str]]] = {rung: [] for rung in rungs.recorded}

    def see(self, trial: TrialState) -> None:
        """Take in that the state of `trial` may have changed."""
        found = self._rungs.highest(trial.id)
        if found is not None and self._stands(trial.id, *found):
            heapq.heappush(self._heaps[found[0]], (found[1], trial.id))

    def promoted(self) -> TrialState | None:
        """One that would pass its rung by what is recorded there now."""
        for rung in reversed(self._heaps):
            if (found := self._best(rung, self._rungs.cutoff(rung))) is not None:
                return found
        return None

    def left_over(self, count: int, reached: float) -> TrialState | None:
        """One of the best `count` of a rung that no trial will come to any more.

        `reached`: the step that every active trial is at or past. Without this a rung that one or
        two trials reach would keep them for ever: half of them, rounded down, may be none.
        """
        for rung in reversed(self._heaps):
            if rung <= reached:
                found = self._best(rung, self._rungs.cutoff(rung, count))
                if found is not None:
                    return found
        return None

    def _best(self, rung: int, cutoff: float) -> TrialState | None:
        heap = self._heaps[rung]
        while heap and not self._stands(heap[0][1], rung, heap[0][0]):
            heapq.heappop(heap)  # it has gone on since, or another has its training
        return self._trials[heap[0][1]] if heap and heap[0][0] <= cutoff else None

    def _stands(self, trial_id: str, rung: int, value: float) -> bool:
        trial = self._trials[trial_id]
        at_rung = trial.stopped_by_rung and not trial.shares
        return at_rung and self._rungs.highest(trial_id) == (rung, value)
