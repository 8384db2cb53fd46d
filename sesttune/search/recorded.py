"""Trials of the schedule, on disk: `schedule.json` in each trial's folder, beside its curve.

Only the driver writes `schedule.json`; `trial.json` and the metrics are the trial's own, so no two
processes ever write the same file.
"""

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sesttune.config.load import parse_override, with_point
from sesttune.config.schema import Config
from sesttune.search.asha import Report
from sesttune.search.shared_training import MAX_STEPS_KEY
from sesttune.search.trial_state import BEHIND, BUDGET, ENDED, ERROR, WAITING, TrialState
from sesttune.search.verdict import UNSTABLE, judge
from sesttune.system.atomic import replacing, write_text
from sesttune.training.records import (
    LAST,
    MAX_STEPS,
    METRICS,
    NAN,
    SCHEDULE,
    TrialRecord,
    cut_metrics,
    list_trials,
    metrics_bytes,
    read_metrics,
    read_object,
    read_trial,
    trial_folder,
    update_trial,
    write_trial,
)


class RecordedCurves:
    """Curves of the sweep in `folder` (and of the earlier one, as `SWEEP/ID`) for the schedule."""

    def __init__(self, folder: Path, config: Config) -> None:
        self._folder, self._config = folder, config

    def lines(self, trial_id: str, until: float) -> list[dict[str, float]]:
        """The report lines of a trial up to a step."""
        lines = read_metrics(folder_of(self._folder, trial_id))
        return [line for line in lines if line["step"] <= until]

    def best_until(self, trial_id: str, step: int) -> tuple[int, float]:
        lines = self.lines(trial_id, step)
        return (int(lines[-1]["step"]), lines[-1]["best_val_loss"]) if lines else (-1, float("inf"))

    def still_falling(self, trial: TrialState) -> bool:
        lines = self._of_trial(trial)
        return bool(lines) and judge(lines, self._of(trial), trial.reason).still_falling

    def remedy(self, trial: TrialState) -> dict[str, Any] | None:
        lines = self._of_trial(trial)
        found = judge(lines, self._of(trial), trial.reason) if lines else None
        if found is None or found.label != UNSTABLE or found.remedy is None:
            return None
        return dict(parse_override(text) for text in found.remedy.split())

    def _of_trial(self, trial: TrialState) -> list[dict[str, float]]:
        """Its lines, those of the trial it goes on from where they are not yet copied."""
        names = (trial.id, trial.continues)
        found = (self.lines(name, trial.max_steps) for name in names if name is not None)
        return next((lines for lines in found if lines), [])

    def _of(self, trial: TrialState) -> Config:
        return with_point(self._config, trial.point | {MAX_STEPS_KEY: trial.max_steps})


def folder_of(sweep: Path, trial_id: str) -> Path:
    """The folder of a trial of the sweep in `sweep`, or of the earlier sweep's `SWEEP/ID`."""
    earlier, _, own = trial_id.rpartition("/")
    return trial_folder(earlier_folder(sweep) if earlier else sweep, own)


def earlier_folder(sweep: Path) -> Path:
    """What the sweep in `sweep` keeps of the one that it was begun with (`sweep.warm_start`)."""
    return sweep / "earlier"


def trained_before(sweep: Path, trial_id: str) -> int:
    """The last step of a trial's training that an earlier sweep has made; -1 where none has."""
    source = trial_id
    while source and "/" not in source:
        source = read_schedule(folder_of(sweep, source)).get("continues") or ""
    lines = read_metrics(folder_of(sweep, source)) if source else []
    return int(lines[-1]["step"]) if lines else -1


def read_states(sweep: Path, config: Config) -> list[TrialState]:
    """The trials of the sweep in `sweep` by id, their curves not yet taken in."""
    return [_state(record, config) for record in list_trials(sweep)]


def _state(record: TrialRecord, config: Config) -> TrialState:
    budget = int(record.params.get(MAX_STEPS_KEY, config.training.max_steps))
    trial = TrialState.remembered(record.id, record.params, budget, read_schedule(record.folder))
    if record.finished:
        trial.state, trial.reason = ENDED, record.stop_reason
    trial.under_way = record.status == "running"
    return trial


def read_schedule(folder: Path) -> dict[str, Any]:
    """What the schedule remembers of the trial in `folder` (see `TrialState.state_dict`)."""
    cure = f"restore it, or move {folder} away to leave this trial out"
    return read_object(folder / SCHEDULE, cure) or {}


def write_state(sweep: Path, trial: TrialState) -> TrialRecord:
    """Bring the folder of a trial up to date with what the schedule decided."""
    folder = folder_of(sweep, trial.id)
    known = read_trial(folder)
    if known is None:
        known = write_trial(TrialRecord(trial.id, folder, trial.point))
    if trial.state in (WAITING, BEHIND) and trial.step < 0 and metrics_bytes(folder):
        cut_metrics(folder, -1)  # it is begun anew: its curve is of a training that is gone
    kept = trial.state_dict()
    if kept != read_schedule(folder):
        write_text(folder / SCHEDULE, json.dumps(kept))
    source = trial.shares or trial.continues
    if source is not None and trial.step >= 0:
        _copy_curve(folder_of(sweep, source), folder, trial.step)
        if trial.shares is None:
            begin_with(sweep, trial.id, source)
    if trial.active and known.finished:
        return update_trial(folder, "pending", None)
    if not trial.active and (known.status, known.stop_reason) != (status_of(trial), trial.reason):
        return update_trial(folder, status_of(trial), trial.reason)
    return known


def status_of(trial: TrialState) -> str:
    """The status of an ended trial's record."""
    if trial.reason == MAX_STEPS:
        return "done"
    return "failed" if (trial.reason or ERROR).startswith((NAN, ERROR)) else "stopped"


def begin_with(sweep: Path, trial_id: str, source_id: str) -> None:
    """Give a trial without checkpoints those of another to go on from.

    Files are linked, not copied, where the file system can: a trial replaces its files, it never
    writes into them. A trial of this sweep hands them over, one of an earlier sweep keeps its own.
    """
    target = folder_of(sweep, trial_id) / "checkpoints"
    source = None if (target / LAST).exists() else _holder(sweep, source_id)
    if source is None:
        return
    target.mkdir(exist_ok=True)
    others = sorted(path.name for path in source.glob("[!.]*.ckpt") if path.name != LAST)
    for name in (*others, LAST):  # the last one says that all is there
        with replacing(target / name) as draft:
            try:
                os.link(source / name, draft)
            except OSError:
                shutil.copyfile(source / name, draft)
    if "/" not in source_id:
        for name in (LAST, *others):
            (source / name).unlink()


def _holder(sweep: Path, source_id: str) -> Path | None:
    """Where the checkpoints of a training lie: with a trial, or with one that took it over."""
    takers = (
        record.folder
        for record in list_trials(sweep)
        if "/" not in source_id and read_schedule(record.folder).get("continues") == source_id
    )
    for folder in (folder_of(sweep, source_id), *takers):
        if (folder / "checkpoints" / LAST).exists():
            return folder / "checkpoints"
    return None


def _copy_curve(source: Path, target: Path, until: float) -> None:
    lines = [line for line in read_metrics(source) if line["step"] <= until]
    if len(lines) > len(read_metrics(target)):
        write_text(target / METRICS, "".join(json.dumps(line) + "\n" for line in lines))


def reports(sweep: Path, trials: Iterable[TrialState]) -> list[Report]:
    """All validations of `trials`, in the order they were made."""
    made = []
    for trial in trials:
        at = 0.0
        for line in read_metrics(folder_of(sweep, trial.id)):
            at = max(at, line["time"])  # the clock may have been set back: a curve keeps its order
            step = int(line["step"])
            last = step >= trial.budget
            made.append((at, Report(trial.id, step, line["best_val_loss"], last)))
    return [report for _, report in sorted(made, key=lambda pair: pair[0])]


def try_again(sweep: Path) -> None:
    """Open trials again that failed with an error, or were stopped by a limit of the sweep."""
    for record in list_trials(sweep):
        if (record.stop_reason or "").startswith((ERROR, BUDGET)):
            update_trial(record.folder, "pending", None)
