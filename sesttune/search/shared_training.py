"""Which trials are one training, kept up to date while it goes on.

A trial whose training is another one's, too, never takes a GPU: it ends when that one passes its
budget, or where that one ends. A longer one waits while the shorter one runs, then takes the
training over, with its checkpoints and its places at the rungs; the shorter one shares it then.
"""

import math
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

from sesttune.search.asha import Report, Rungs, Stop
from sesttune.search.trial_state import BEHIND, ENDED, WAITING, TrialState
from sesttune.training.records import MAX_STEPS, NAN, PATIENCE

MAX_STEPS_KEY, LR_SCHEDULE_KEY = "training.max_steps", "training.lr_schedule"
BestUntil = Callable[[str, int], tuple[int, float]]
"""Step of a trial's last validation up to a step, and its best val_loss by then."""


def trajectory(point: Mapping[str, Any], lr_schedule: str) -> Hashable:
    """What all trials of one training have in common; `lr_schedule` is of points that name none.

    At a constant rate trials equal but for max_steps are one training (a "stage" of Hippo,
    arXiv:2006.11972); under `cosine` and `wsd` the rate depends on max_steps.
    """
    longer = may_be_longer(point, lr_schedule)
    parts = [(k, v) for k, v in point.items() if k != MAX_STEPS_KEY or not longer]
    return tuple(sorted(parts))


def may_be_longer(point: Mapping[str, Any], lr_schedule: str) -> bool:
    """Whether a training to a larger max_steps begins as one of `point` does."""
    return bool(point.get(LR_SCHEDULE_KEY, lr_schedule) == "constant")


class SharedTraining:
    """The trainings of a sweep, with its `trials` by id, and of `earlier` ones."""

    def __init__(
        self,
        lr_schedule: str,
        rungs: Rungs,
        trials: Mapping[str, TrialState],
        earlier: Iterable[TrialState],
        best_until: BestUntil,
        note: Callable[[TrialState], None],
    ) -> None:
        self._lr_schedule, self._rungs = lr_schedule, rungs
        self._trials, self._best_until, self._note = trials, best_until, note
        self._trunks: dict[Hashable, list[TrialState]] = {}
        self._behind: dict[str, list[TrialState]] = {}
        self._earlier = {trial.id: trial for trial in earlier}
        for trial in sorted(self._earlier.values(), key=lambda trial: trial.step):
            self._trunks.setdefault(self.key(trial.point), []).append(trial)

    def key(self, point: Mapping[str, Any]) -> Hashable:
        return trajectory(point, self._lr_schedule)

    def place(self, trial: TrialState) -> None:
        """Let a new trial share the training of another, or continue it, where there is one."""
        trunks = self._trunks.setdefault(self.key(trial.point), [])
        trunk = trunks[-1] if trunks else None
        if trunk is not None and _covers(trunk, trial.budget):
            trial.shares = trunk.id
        else:
            trial.continues = None if trunk is None else trunk.id
            trunks.append(trial)
        if trunk is not None:
            trial.state = BEHIND
            self._behind.setdefault(trunk.id, []).append(trial)
            self.follow(trunk)

    def mend(self) -> None:
        """Complete what a kill between the files of two trials left half written."""
        for trial in self._trials.values():
            trunk = self._trials.get(trial.continues or "")
            if trunk is not None and trial.step >= 0 and trunk.shares is None:
                trunk.shares = trial.id
                self._note(trunk)
        for trial in self._trials.values():
            ahead = self._trials.get(trial.shares or trial.continues or "")
            taker = self._trials.get((ahead and ahead.shares) or "")
            if taker is None or taker is trial or (trial.step >= 0 and not trial.shares):
                continue
            trial.shares, trial.continues = taker.id, None
            if trial.budget > taker.budget:
                trial.shares, trial.continues = None, taker.id
            self._note(trial)

    def without_their_training(self) -> dict[str, TrialState]:
        """Trials to be placed again, by id, and begun anew: who had their training is gone.

        A user may move a damaged trial's folder away, and its checkpoints go with it.
        """
        known, anew = self._trials.keys() | self._earlier.keys() | {None}, {}
        for trial in self._trials.values():
            if trial.shares in known and trial.continues in known:
                continue
            if trial.shares not in known:
                trial.state, trial.reason, trial.shares, trial.passed = WAITING, None, None, []
                trial.step, trial.best, trial.settled = -1, math.inf, math.inf
                anew[trial.id] = trial
            trial.continues = None
            self._note(trial)
        return anew

    def restore(self, trial: TrialState) -> None:
        """Take in a trial that was placed before."""
        if trial.shares is None and trial.repeats is None:
            self._trunks.setdefault(self.key(trial.point), []).append(trial)
        ahead = trial.shares or trial.continues
        if ahead is not None:
            if trial.state == WAITING and (trial.shares or trial.step < 0):
                trial.state = BEHIND
            self._behind.setdefault(ahead, []).append(trial)

    def follow_all(self) -> None:
        """Bring all up to date after a restart."""
        for trial_id in list(self._behind):
            self.follow(self._known(trial_id))

    def follow(self, trunk: TrialState) -> None:
        """Bring those up to date that share the training of `trunk` or wait for its end."""
        for trial in list(self._behind.get(trunk.id, ())):
            if trial.shares == trunk.id:
                if trial.active or trial.budget <= trunk.budget:
                    self._follow(trial, trunk)
            elif trial.state == BEHIND and (not trunk.active or trunk.shares == trial.id):
                self._go_beyond(trial, trunk)

    def _follow(self, trial: TrialState, trunk: TrialState) -> None:
        """The result of `trial` is in the curve of `trunk`."""
        reason = trunk.reason
        if trunk.step >= trial.budget:
            reason = MAX_STEPS
        elif trunk.active:
            reason = None
        if reason == trial.reason and trial.active == (reason is None):
            return
        if trunk.step <= trial.budget:
            trial.take(trunk.step, trunk.best)
        else:
            trial.take(*self._best(trunk, trial.budget))
        trial.reason, trial.state = reason, BEHIND if reason is None else ENDED
        self._note(trial)

    def _go_beyond(self, trial: TrialState, trunk: TrialState) -> None:
        """`trunk` stands still before the budget of `trial`, which waited for it."""
        if trunk.earlier:
            self._continue(trial, trunk)
        elif trunk.reason in (PATIENCE, NAN):  # it would have ended there, too
            trial.shares, trial.continues = trunk.id, None
            self._trunks[self.key(trial.point)].remove(trial)
            trial.take(trunk.step, trunk.best)
            trial.reason, trial.state = trunk.reason, ENDED
            self._note(trial)
        else:
            self._take_over(trial, trunk)
        self.follow(trial)

    def _take_over(self, trial: TrialState, trunk: TrialState) -> None:
        """From now on `trunk`, and all that share its training, share that of `trial`."""
        if trunk.continues is not None and trunk.step <= self._known(trunk.continues).step:
            trial.continues = trunk.continues  # `trunk` has not begun itself
        behind = self._behind[trunk.id]
        sharing = [trunk, *(other for other in behind if other.shares)]
        self._behind[trunk.id] = [other for other in behind if not other.shares]
        for other in sharing:
            other.shares = trial.id
            self._behind.setdefault(trial.id, []).append(other)
        trunks = self._trunks[self.key(trial.point)]
        self._trunks[self.key(trial.point)] = [other for other in trunks if other is not trunk]
        stop = self._rungs.hand_over(trunk.id, trial.id)
        trial.take(trunk.step, trunk.best)
        if trunk.stopped_by_rung:
            trial.state, trial.reason = ENDED, trunk.reason
        else:
            self._stand(trial, stop)
        trial.passed = self._passed(trial)
        for changed in (trial, *sharing):  # written in this order: see `mend`
            self._note(changed)

    def _continue(self, trial: TrialState, trunk: TrialState) -> None:
        """The curve of `trunk`, of an earlier sweep, is the beginning of that of `trial`.

        It may be all of it, or more: then `trial` has ended, with checkpoints of its own.
        """
        stop = None
        for rung in self._rungs.recorded:
            if rung <= min(trunk.step, trial.budget):
                _, best = self._best(trunk, rung)
                stop = self._rungs.report(Report(trial.id, rung, best, False))
        trial.take(*self._best(trunk, trial.budget))
        trial.take(trunk.step, trunk.best)
        self._stand(trial, stop)
        if trunk.step >= trial.budget or trunk.reason in (PATIENCE, NAN):
            trial.state = ENDED
            trial.reason = MAX_STEPS if trunk.step >= trial.budget else trunk.reason
        trial.passed = self._passed(trial)
        self._note(trial)

    def _stand(self, trial: TrialState, stop: Stop | None) -> None:
        trial.state, trial.reason = (WAITING, None) if stop is None else (ENDED, str(stop))

    def _passed(self, trial: TrialState) -> list[int]:
        """The rungs behind a trial that has taken over a training."""
        rungs = [rung for rung, seen in self._rungs.recorded.items() if trial.id in seen]
        return rungs if trial.active else rungs[:-1]

    def _best(self, trial: TrialState, step: int) -> tuple[int, float]:
        found = self._best_until(trial.id, step)
        ahead = trial.shares or trial.continues
        if found[0] >= 0 or ahead is None:
            return found
        return self._best(self._known(ahead), step)  # it has not trained a step of its own yet

    def _known(self, trial_id: str) -> TrialState:
        return self._trials.get(trial_id) or self._earlier[trial_id]


def _covers(trunk: TrialState, steps: int) -> bool:
    """Whether a trial of `steps` on the same training needs no step that `trunk` has not.

    A trial of this sweep; what is of an earlier one becomes this one's own.
    """
    return not trunk.earlier and steps <= max(trunk.step, trunk.budget)
