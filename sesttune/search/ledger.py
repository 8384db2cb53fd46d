"""The state of a sweep, without an engine: the schedule's decisions and the folders they live in.

Everything is read from the trial folders and written back at once, so a new ledger on
the same folder goes on where a killed one stopped. Ray only carries trials to machines; it is
not asked to remember.
"""

import math
from pathlib import Path

from sesttune.config.schema import Config
from sesttune.search.asha import geometric
from sesttune.search.budget import Spending
from sesttune.search.protocol import Job
from sesttune.search.recorded import (
    RecordedCurves,
    begin_with,
    folder_of,
    read_states,
    reports,
    write_state,
)
from sesttune.search.schedule import Rules, Schedule
from sesttune.search.searcher import Suggester
from sesttune.search.shared_training import MAX_STEPS_KEY
from sesttune.search.space import SearchSpace
from sesttune.search.trial_state import ERROR, RUNNING
from sesttune.search.warm_start import read_earlier
from sesttune.training.records import TrialRecord, list_trials, read_trial

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

    def trials(self) -> list[TrialRecord]:
        """Every trial handed out so far, by id."""
        return list_trials(self.folder)

    def next(self) -> Job | None:
        """The next trial to run, its record written; None when there is none now."""
        self._check_limits()
        job = self.schedule.next()
        self._write()
        if job is not None and job.continues is not None:
            begin_with(self.folder, job.id, job.continues)
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

    def take_ended(self) -> list[TrialRecord]:
        """The trials that have ended since the last call, those that never had a GPU, too."""
        ended, self._ended = self._ended, []
        return ended

    def interrupt(self) -> None:
        """Let every running trial finish its validation and stop; a resumed sweep goes on."""
        self.schedule.close(INTERRUPTED)

    def settle(self) -> None:
        """Write what is decided again, after the last worker is gone and can write no more."""
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


def rules_of(config: Config, space: SearchSpace) -> Rules:
    """The schedule's rules as the settings have them."""
    sweep = config.sweep
    longest = space.longest(config)
    rungs: list[int] = []
    if sweep.asha:
        rungs = sweep.rungs or geometric(grace_period(config), sweep.reduction_factor, longest)
    return Rules(
        trials=trial_count(config, space),
        rungs=tuple(rung for rung in rungs if rung < longest),
        eta=sweep.reduction_factor,
        max_steps=config.training.max_steps,
        longest=longest if MAX_STEPS_KEY in space.parameters else None,
        lr_schedule=config.training.lr_schedule,
        continue_stopped=sweep.continue_stopped,
        extend_to=tuple(sweep.extend_to),
        finalists=sweep.finalists,
        seeds=sweep.seeds,
        try_remedies=sweep.try_remedies,
    )


def grace_period(config: Config) -> int:
    """Steps before ASHA may stop a trial: as set, else as many as patience would wait."""
    return config.sweep.grace_period or (
        config.training.patience * config.training.val_check_interval
    )


def trial_count(config: Config, space: SearchSpace) -> int:
    """Trials of the sweep: as asked for, but all of a grid and no more than a space holds."""
    points = space.size()
    if (config.sweep.searcher or space.searcher) == "grid" and math.isfinite(points):
        return int(points)
    return int(min(config.sweep.num_trials or space.num_trials, points))
