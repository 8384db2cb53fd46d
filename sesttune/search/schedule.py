"""The rules of a sweep: which trial runs next and until when, and which one must stop.

Plain state over recorded results, without clock, files or engine: Ray, the simulator and a resumed
driver get the same answers from the same records. In this order a free GPU gets
1. a trial that was under way when the driver died;
2. a trial stopped by a rung that would pass it by what was recorded there since (`stopped_trials`);
3. a new point of the searcher, unless its training is another trial's, too (`shared_training`);
4. at the end, the best stopped trials of each rung, until there are as many finalists as wanted;
5. the remedy of an unstable winner (on request), then repeats of the finalists with other seeds;
6. the winner again, with a larger budget, as long as it is still falling at its end.
"""

import math
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, Protocol

from sesttune.search.asha import Report, Rungs
from sesttune.search.finals import (
    REPLICATE,
    finalists,
    missing_draw,
    standings,
    untried_remedy,
)
from sesttune.search.protocol import Job
from sesttune.search.rules import Rules
from sesttune.search.searcher import Observed
from sesttune.search.shared_training import MAX_STEPS_KEY, SharedTraining, may_be_longer
from sesttune.search.stopped_trials import StoppedTrials
from sesttune.search.trial_state import ENDED, RUNNING, WAITING, TrialState
from sesttune.search.verdict import next_budget
from sesttune.training.records import MAX_STEPS

_ID_DIGITS = 3


class Searcher(Protocol):
    """Proposes points (`Suggester`)."""

    def ask(self, history: Sequence[Observed]) -> dict[str, Any] | None: ...

    def may_propose(self, point: dict[str, Any]) -> bool: ...


class Curves(Protocol):
    """What is recorded of a trial beyond its last validation."""

    def best_until(self, trial_id: str, step: int) -> tuple[int, float]:
        """Step of the last validation up to `step` (-1: none), and the best val_loss by then."""

    def still_falling(self, trial: TrialState) -> bool:
        """Whether more steps would pay."""

    def remedy(self, trial: TrialState) -> dict[str, Any] | None:
        """Settings to change, where the curve is unstable."""


class Schedule:
    """A `Scheduler` (see `protocol`) with all of sesttune's rules.

    `earlier`: trainings of an earlier sweep on the same data, with ids `SWEEP/ID`; the best of
    them are continued first. `learnt`: results of that sweep for the searcher.
    """

    def __init__(
        self,
        rules: Rules,
        searcher: Searcher,
        curves: Curves,
        earlier: Sequence[TrialState] = (),
        learnt: Sequence[Observed] = (),
    ) -> None:
        self.rules, self._searcher, self._curves = rules, searcher, curves
        self.rungs = Rungs(rules.rungs, rules.eta, pausing=rules.continue_stopped)
        self.trials: dict[str, TrialState] = {}
        self.changed: dict[str, TrialState] = {}
        """Trials to be written to disk; whoever has written them empties it."""
        self.closed: str | None = None
        self._stops: dict[str, str] = {}
        self._stopped = StoppedTrials(self.trials, self.rungs)
        self._learnt = list(learnt)
        self._shared = SharedTraining(
            rules.lr_schedule, self.rungs, self.trials, earlier, curves.best_until, self._note
        )
        self._first = self._best_earlier(earlier)
        self._searched: list[TrialState] = []
        self._observed: dict[str, Observed] = {}
        self._exhausted = self._idle = False

    @property
    def done(self) -> bool:
        idle = self._idle or self.closed is not None
        return idle and not any(trial.state == RUNNING for trial in self.trials.values())

    def next(self) -> Job | None:
        trial = None
        if self.closed is None and not self._idle:
            trial = (
                self._under_way()
                or self._promoted()
                or self._new()
                or self._left_over()
                or self._last_rounds()
            )
        self._idle = trial is None
        if trial is None:
            return None
        trial.state, trial.reason = RUNNING, None
        self._note(trial)
        return Job(trial.id, trial.point, trial.max_steps, trial.continues)

    def report(self, job_id: str, step: int, best_val_loss: float) -> str | None:
        trial = self.trials[job_id]
        trial.take(step, best_val_loss)
        self._observed.pop(job_id, None)
        self._shared.follow(trial)
        why = self._judge(trial) or self.closed
        if why is not None:
            self._stops[job_id] = why
        return why

    def end(self, job_id: str, reason: str) -> None:
        trial = self.trials[job_id]
        trial.state = ENDED
        why = self._stops.pop(job_id, None)
        trial.reason = why if reason == "stopped" else reason
        self._idle = False
        self._note(trial)
        self._shared.follow(trial)

    def put_back(self, job_id: str) -> None:
        """Hand a job out again that nobody has begun."""
        self.trials[job_id].state = WAITING
        self._note(self.trials[job_id])

    def must_stop(self, job_id: str) -> bool:
        """Whether its last report was answered with a stop."""
        return job_id in self._stops

    def close(self, why: str) -> None:
        """Hand out nothing more, and stop every trial at its next validation."""
        self.closed = self.closed or why

    def restore(self, trials: Iterable[TrialState], reports: Iterable[Report]) -> None:
        """Take in recorded trials, by id, and all their validations in the order they were made."""
        for trial in trials:
            self.trials[trial.id] = trial
            if trial.repeats is None and trial.remedies is None:
                self._searched.append(trial)
        lines = list(reports)
        for line in lines:
            self.trials[line.trial_id].take(line.step, line.best_val_loss)
        self._shared.mend()
        anew = self._shared.without_their_training()
        for trial in self.trials.values():
            if trial.id not in anew:
                self._shared.restore(trial)
        kept = (line for line in lines if line.trial_id not in anew)
        due = self.rungs.replay(line for line in kept if self._judged(line))
        for trial_id, stop in due.items():
            trial = self.trials[trial_id]
            if trial.active and stop.rung not in trial.passed:
                self._stops[trial_id] = str(stop)
                self.end(trial_id, "stopped")
        self._shared.follow_all()
        for trial in anew.values():
            self._shared.place(trial)
        for trial in self.trials.values():
            self._stopped.see(trial)

    def winner(self) -> TrialState | None:
        """The trial with the best mean over its draws, of those trained to their end."""
        finals = self._finalists()
        ranked = standings(finals, self.trials.values())
        return self.trials[ranked[0].trial] if ranked else None

    def _under_way(self) -> TrialState | None:
        waiting = [trial for trial in self.trials.values() if trial.state == WAITING]
        return min(waiting, key=lambda trial: not trial.under_way, default=None)

    def _new(self) -> TrialState | None:
        while len(self._searched) < self.rules.trials and not self._exhausted:
            point = self._propose()
            if point is None:
                self._exhausted = True
                break
            trial = self._add(point)
            self._searched.append(trial)
            if trial.state == WAITING:
                return trial
        return None

    def _propose(self) -> dict[str, Any] | None:
        if len(self._searched) < len(self._first):
            return self._first[len(self._searched)]
        own = [self._seen(trial) for trial in self._searched]
        better_known = {seen.key for seen in own if seen.state != "running"}
        learnt = [seen for seen in self._learnt if seen.key not in better_known]
        return self._searcher.ask(learnt + own)

    def _seen(self, trial: TrialState) -> Observed:
        """Made again only where something has changed."""
        known = self._observed.get(trial.id)
        if known is None:
            known = self._observed[trial.id] = Observed.of(trial)
        return known

    def _best_earlier(self, earlier: Sequence[TrialState]) -> list[dict[str, Any]]:
        """The best 1/eta of the earlier trainings, the best first, to be gone on with.

        But for those outside what is searched now.
        """
        best: dict[Hashable, dict[str, Any]] = {}
        longest = {} if self.rules.longest is None else {MAX_STEPS_KEY: self.rules.longest}
        for trial in sorted(earlier, key=lambda trial: (trial.best, trial.id)):
            best.setdefault(self._shared.key(trial.point), trial.point | longest)
        leaders = list(best.values())[: -(-len(best) // self.rules.eta)]
        return [point for point in leaders if self._searcher.may_propose(point)]

    def _add(self, point: dict[str, Any], **about: Any) -> TrialState:
        number = 1 + max(map(int, self.trials), default=0)  # a folder may have been taken away
        budget = int(point.get(MAX_STEPS_KEY, self.rules.max_steps))
        trial = TrialState(f"{number:0{_ID_DIGITS}d}", point, budget, budget, **about)
        self.trials[trial.id] = trial
        self._note(trial)
        if trial.repeats is None:
            self._shared.place(trial)
        return trial

    def _judge(self, trial: TrialState) -> str | None:
        line = Report(trial.id, trial.step, trial.best, trial.step >= trial.max_steps)
        if not self._judged(line):
            return None
        stop = self.rungs.report(line)
        self._idle = False  # what is recorded at a rung may let another trial pass it
        return None if stop is None else str(stop)

    def _judged(self, line: Report) -> bool:
        """Repeats are not compared at rungs, nor an extension, nor a training twice."""
        trial = self.trials[line.trial_id]
        return not trial.repeats and not trial.shares and line.step <= trial.budget

    def _promoted(self) -> TrialState | None:
        if not self.rules.continue_stopped:
            return None
        return self._go_on(self._stopped.promoted())

    def _left_over(self) -> TrialState | None:
        if not self.rules.continue_stopped:
            return None
        active = [trial.step for trial in self._searched if trial.active and not trial.shares]
        reached = min(active, default=math.inf)
        return self._go_on(self._stopped.left_over(self.rules.finalists, reached))

    def _go_on(self, trial: TrialState | None) -> TrialState | None:
        """Let a stopped trial pass its rung."""
        found = None if trial is None else self.rungs.highest(trial.id)
        if trial is not None and found is not None:
            trial.passed = sorted({*trial.passed, found[0]})
            trial.state, trial.reason = WAITING, None
            self._shared.follow(trial)
        return trial

    def _last_rounds(self) -> TrialState | None:
        """Remedy, repeats and extension; each waits for what went before."""
        active = [trial for trial in self.trials.values() if trial.active]
        if not all(trial.repeats for trial in active):
            return None
        if self.rules.try_remedies:
            found = untried_remedy(self.trials, self._curves.remedy)
            if found is not None:
                trial = self._add(found[0].point | found[1], remedies=found[0].id)
                if trial.state == WAITING:  # else the sweep has trained that already
                    return trial
        draw = missing_draw(self._finalists(), self.trials.values(), self.rules.seeds)
        if draw is not None:
            return self._add(draw[0].point | {REPLICATE: draw[1]}, repeats=draw[0].id)
        winner = None if active else self.winner()
        if winner is None or winner.reason != MAX_STEPS:
            return None
        if not may_be_longer(winner.point, self.rules.lr_schedule):
            return None
        further = next_budget(winner.max_steps, self.rules.extend_to)
        if further is None or not self._curves.still_falling(winner):
            return None
        winner.max_steps = further
        return winner

    def _finalists(self) -> list[TrialState]:
        return finalists(
            self.trials.values(), self.rules.finalists, lambda t: self._shared.key(t.point)
        )

    def _note(self, trial: TrialState) -> None:
        self.changed.pop(trial.id, None)
        self.changed[trial.id] = trial  # the last noted is the last written
        self._observed.pop(trial.id, None)
        self._stopped.see(trial)
        self._idle = False
