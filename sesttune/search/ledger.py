"""The state of a sweep, without an engine: the schedule's decisions and the folders they live in.

Everything is read from the trial folders and written back at once, so a new ledger on
the same folder goes on where a killed one stopped. Ray only carries trials to machines; it is
not asked to remember.
"""

import math
from pathlib import Path

from sesttune.config.schema import Config
from sesttune.search.budget import Spending
from sesttune.search.protocol import Job
from sesttune.search.recorded import (
    RecordedCurves,
    folder_of,
    read_states,
    reports,
    write_state,
)
from sesttune.search.rules import rules_of, trial_count
from sesttune.search.schedule import Schedule
from sesttune.search.searcher import Suggester
from sesttune.search.space import SearchSpace
from sesttune.search.trial_state import ERROR, RUNNING, WAITING
from sesttune.search.warm_start import read_earlier
from sesttune.training.records import TrialRecord, read_trial

INTERRUPTED = "interrupted"


class TrialLedger:
    """Hands out the trials of the sweep in `folder` and takes in what becomes of them.

    `gpus`: what a running trial takes, for `sweep.gpu_hours`. Raises UserError where `space` does
    not go with `config`, or `sweep.warm_start` with either.
    """

    def __init__(self, folder: Path, config: Config, space: SearchSpace, gpus: float = 0.0) -> None:
        space.check(config)
        space = space.on(config)
        self.folder, self._config = folder, config
        self.total = trial_count(config, space)
        kind = config.sweep.searcher or space.searcher
        suggester = Suggester(space, kind, config.sweep.seed, self.total)
        self.spending = Spending(folder, config.sweep, gpus)
        self.schedule = Schedule(
            rules_of(config, space),
            suggester,
            RecordedCurves(folder, config),
            *read_earlier(folder, config, space),
        )
        self._ended: list[TrialRecord] = []
        trials = read_states(folder, config)
        self.schedule.restore(trials, reports(folder, trials))
        self._check_limits()
        self._write()

    @property
    def done(self) -> bool:
        """Whether no trial will be handed out any more."""
        return self.schedule.done

    @property
    def closed(self) -> str | None:
        """Why no trial is handed out any more before all is done: `interrupted`, or a limit."""
        return self.schedule.closed

    def next(self) -> Job | None:
        """The next trial to run, its record written; None when there is none now."""
        self._check_limits()
        job = self.schedule.next()
        self._write()
        return job

    def report(self, trial_id: str, step: int, best_val_loss: float) -> bool:
        """Take in a validation of a running trial; returns whether it must stop here."""
        stop = self.schedule.report(trial_id, step, best_val_loss)
        self._check_limits()
        self._write()
        return stop is not None

    def end(self, trial_id: str, crash: str | None = None) -> None:
        """Settle the record of a trial whose worker has let go of it.

        `crash`: why the engine lost it, None where the worker returned or was stopped.
        """
        found = read_trial(folder_of(self.folder, trial_id))
        if found is not None and found.finished:
            self.schedule.end(trial_id, str(found.stop_reason))
        elif self.schedule.must_stop(trial_id):
            self.schedule.end(trial_id, "stopped")
        else:
            self.schedule.end(trial_id, ERROR + (crash or "the worker ended without a result"))
        self._write()
        self.spending.tick(self._running())

    def put_back(self, trial_id: str) -> None:
        """Hand a trial out again that no worker has begun."""
        self.schedule.put_back(trial_id)
        self._write()

    def take_ended(self) -> list[TrialRecord]:
        """The trials that have ended since the last call, those that never had a GPU, too."""
        ended, self._ended = self._ended, []
        return ended

    def interrupt(self) -> None:
        """Let every running trial finish its validation and stop; a resumed sweep goes on."""
        self.schedule.close(INTERRUPTED)

    def settle(self) -> None:
        """Write what is decided again, after the last worker is gone and can write no more.

        What an earlier driver had begun and a limit leaves no time for is stopped by the limit.
        """
        if self.closed is not None and self.closed != INTERRUPTED:
            for trial in list(self.schedule.trials.values()):
                if trial.state == WAITING:
                    self.schedule.end(trial.id, self.closed)
        ended = {i: trial for i, trial in self.schedule.trials.items() if not trial.active}
        self.schedule.changed.update(ended)
        self._write()
        self._ended.clear()
        self.spending.tick(0)
        self.spending.save()

    def tick(self) -> None:
        """Count time; called a few times a second while trials run."""
        self.spending.tick(self._running())

    def _running(self) -> int:
        return sum(trial.state == RUNNING for trial in self.schedule.trials.values())

    def _check_limits(self) -> None:
        self.spending.tick(self._running())
        best = min((t.best for t in self.schedule.trials.values()), default=math.inf)
        why = self.spending.exceeded(best)
        if why is not None:
            self.schedule.close(why)

    def _write(self) -> None:
        """Bring the folders up to date."""
        changed = list(self.schedule.changed.values())
        self.schedule.changed.clear()
        for trial in changed:
            if trial.reason == INTERRUPTED:
                continue  # on disk it is still under way
            record = write_state(self.folder, trial)
            if not trial.active:
                self._ended.append(record)
