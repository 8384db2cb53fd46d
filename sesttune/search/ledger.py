"""The state of a sweep, without an engine: which trial is next, which must stop, how each ended.

Everything is read from the trial folders and written back at once, so a new ledger on
the same folder goes on where a killed one stopped: unfinished trials come first, under
their own ids. Ray only carries trials to machines; it is not asked to remember.
"""

import math
from dataclasses import replace
from pathlib import Path

from sesttune.config.schema import Config
from sesttune.search.asha import Report, Rungs, Stop
from sesttune.search.searcher import Observed, Suggester
from sesttune.search.space import SearchSpace
from sesttune.training.records import (
    TrialRecord,
    list_trials,
    read_trial,
    trial_folder,
    update_trial,
    write_trial,
)

ERROR = "error: "
"""How the stop reason of a trial begins that failed for another reason than its loss."""
_ID_DIGITS = 3


class TrialLedger:
    """Hands out the trials of the sweep in `folder` and takes in what becomes of them.

    Raises UserError where `space` does not go with `config`.
    """

    def __init__(self, folder: Path, config: Config, space: SearchSpace) -> None:
        space.check(config)
        sweep = config.sweep
        kind = sweep.searcher or space.searcher
        self.folder, self._config, self._space = folder, config, space
        self.total = trial_count(config, space)
        self._suggester = Suggester(space, kind, sweep.seed, self.total)
        self._rungs = Rungs(grace_period(config), sweep.reduction_factor, space.longest(config))
        self._stops: dict[str, Stop] = {}
        if not sweep.asha:
            self._rungs.recorded.clear()
        self._replay()
        self._waiting = [record for record in self.trials() if not record.finished]

    def trials(self) -> list[TrialRecord]:
        """Every trial handed out so far, by id."""
        return list_trials(self.folder)

    def remaining(self) -> int:
        """How many trials `next` can still hand out."""
        return len(self._waiting) + max(0, self.total - len(self.trials()))

    def next(self) -> TrialRecord | None:
        """The next trial to run, its record written; None when there is none left."""
        if self._waiting:
            return self._waiting.pop(0)
        known = self.trials()
        if len(known) >= self.total:
            return None
        point = self._suggester.ask([observed(record) for record in known])
        if point is None:
            return None
        number = 1 + max((int(record.id) for record in known), default=0)
        trial_id = f"{number:0{_ID_DIGITS}d}"
        return write_trial(TrialRecord(trial_id, trial_folder(self.folder, trial_id), point))

    def report(self, record: TrialRecord, step: int, best_val_loss: float) -> bool:
        """Take in a validation of a running trial; returns whether it must stop here."""
        last = step >= self.max_steps(record)
        stop = self._rungs.report(Report(record.id, step, best_val_loss, last))
        if stop is not None:
            self._stops[record.id] = stop
        return stop is not None

    def end(self, record: TrialRecord, crash: str | None = None) -> TrialRecord:
        """Settle the record of a trial whose worker has let go of it.

        `crash`: why the engine lost it, None where the worker returned or was stopped.
        """
        found = read_trial(record.folder)
        if found is not None and found.finished:
            return found
        if record.id in self._stops:
            return update_trial(record.folder, "stopped", str(self._stops[record.id]))
        reason = crash or "the worker ended without a result"
        return update_trial(record.folder, "failed", f"{ERROR}{reason}")

    def settle(self) -> None:
        """Write the stops again, after the last worker is gone and can write no more."""
        for record in self.trials():
            if record.id in self._stops and not record.finished:
                self.end(record)

    def max_steps(self, record: TrialRecord) -> int:
        """The budget of a trial in optimizer steps."""
        return int(record.params.get("training.max_steps", self._config.training.max_steps))

    def _replay(self) -> None:
        lines = []
        for record in self.trials():
            budget = self.max_steps(record)
            for line in record.metrics():
                step = int(line["step"])
                report = Report(record.id, step, line["best_val_loss"], step >= budget)
                lines.append((line["time"], report))
        due = self._rungs.replay(report for _, report in sorted(lines, key=lambda line: line[0]))
        for record in self.trials():
            if record.id in due and not record.finished:
                self._stops[record.id] = due[record.id]
                self.end(record)


def try_again(folder: Path) -> None:
    """Open the trials that failed with an error again; they go on from their last checkpoint."""
    for record in list_trials(folder):
        if record.status == "failed" and (record.stop_reason or "").startswith(ERROR):
            update_trial(record.folder, "pending", None)


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


def observed(record: TrialRecord) -> Observed:
    """What the searcher may know of a trial."""
    lines = record.metrics()
    seen = Observed(record.params, _state(record))
    if not lines:
        return seen
    return replace(seen, value=lines[-1]["best_val_loss"], step=int(lines[-1]["step"]))


def _state(record: TrialRecord) -> str:
    if record.status == "failed":
        return "failed"
    if not record.finished:
        return "running"
    return "pruned" if (record.stop_reason or "").startswith("asha") else "complete"
