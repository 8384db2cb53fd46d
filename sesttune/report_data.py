"""Read a run folder into what its report shows.

The GPU-hours are those of the trainings' own report lines: a training that several trials share
counts once, the beginning that an earlier sweep has trained not at all, and a process's start-up is
left out, for it is known only where a trial came as far as its first step.
"""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from sesttune.config.schema import Config
from sesttune.plan_run import read_plan, trained_steps
from sesttune.reporting.values import (
    DONE,
    FAILED,
    LIMIT,
    OPEN,
    RUNG,
    Axis,
    Moment,
    ReportData,
    TimeSpent,
    Trial,
)
from sesttune.reporting.values import PATIENCE as SPENT_PATIENCE
from sesttune.result import board_cells, closing_lines, cost_unit
from sesttune.run_setup import Run
from sesttune.search.importance import Importance, importance
from sesttune.search.outcome import SweepOutcome
from sesttune.search.parameter import Parameter
from sesttune.search.recorded import read_schedule, trained_before
from sesttune.search.rules import rules_of
from sesttune.search.searcher import Observed
from sesttune.search.shared_training import MAX_STEPS_KEY
from sesttune.search.space import SearchSpace
from sesttune.search.space_file import parse_space
from sesttune.search.trial_state import ASHA, BUDGET
from sesttune.tracking.describe import short_key, trial_name
from sesttune.training.records import (
    MAX_STEPS,
    PACKING,
    PATIENCE,
    SETTINGS,
    Line,
    TrialRecord,
    list_trials,
    read_data,
)
from sesttune.training.time_spent import Interval, intervals

_LARGEST_GRID = 100_000
"""Points beyond which nobody would train them all."""
_ENDS = {MAX_STEPS: DONE, PATIENCE: SPENT_PATIENCE}

Made = tuple[Line, Interval]
"""A report line with the time that it took."""


def read_report(run: Run, outcome: SweepOutcome, ended: bool) -> ReportData:
    """What a report of `run` shows; `ended`: nothing more will come of it."""
    folder, config = run.folder, run.config
    records = list_trials(folder)
    own = {record.id: own_lines(record, run) for record in records}
    trials = _ranked([_trial(record, own[record.id]) for record in records], outcome)
    space = None if run.space is None else parse_space(run.space, str(folder / SETTINGS))
    weights = _importance(space, trials)
    columns, rows = board_cells(outcome)
    unit = cost_unit(line for made in own.values() for line, _ in made)
    progress, found = _progress(own, trials, gpu_share(run) if unit == "GPU-hours" else 1.0)
    plan = read_plan(folder)
    return ReportData(
        name=folder.name,
        ended=ended,
        summary=tuple(closing_lines(run, outcome)),
        cost=tuple(_cost(space, config, trials, trained_steps(folder))),
        columns=tuple(columns),
        rows=tuple(map(tuple, rows)),
        trials=trials,
        unit=unit,
        rungs=_rungs(plan.rungs if plan else None, space, config),
        baselines=read_data(folder)["baselines"],
        progress=progress,
        found=found,
        axes=() if space is None else _axes(space, trials),
        importance=weights.shares,
        importance_missing=weights.why_not,
    )


def _trial(record: TrialRecord, own: Sequence[Made]) -> Trial:
    lines = record.metrics()
    kept = read_schedule(record.folder)
    best = lines[-1]["best_val_loss"] if lines else math.nan
    return Trial(
        record.id,
        trial_name(record).partition(" ")[2],
        record.params,
        tuple(int(line["step"]) for line in lines),
        tuple(line["val_loss"] for line in lines),
        best if math.isfinite(best) else math.nan,
        int(lines[-1]["best_step"]) if lines else 0,
        _ended(record),
        kept.get("shares"),
        kept.get("repeats"),
        _time_spent(own),
    )


def _ended(record: TrialRecord) -> str:
    reason = record.stop_reason or ""
    if not record.finished:
        return OPEN
    if reason.startswith(ASHA):
        return RUNG
    return LIMIT if reason.startswith(BUDGET) else _ENDS.get(reason, FAILED)


def _ranked(trials: Sequence[Trial], outcome: SweepOutcome) -> tuple[Trial, ...]:
    place = {row.id: rank for rank, row in enumerate(outcome.leaderboard)}
    return tuple(sorted(trials, key=lambda trial: place.get(trial.id, len(place))))


def own_lines(record: TrialRecord, run: Run) -> list[Made]:
    """The report lines that a trial itself has made, each with the time that it took.

    None of a trial that shares another's training, and none of an earlier sweep.
    """
    if read_schedule(record.folder).get("shares"):
        return []
    lines, before = record.metrics(), trained_before(run.folder, record.id)
    pairs = zip(lines, intervals(lines), strict=True)
    return [(line, spent) for line, spent in pairs if line["step"] > before]


def _time_spent(own: Sequence[Made]) -> TimeSpent | None:
    rates = [line["steps_per_s"] for line, _ in own if line["steps_per_s"] > 0]
    if not rates:
        return None
    parts = [spent for _, spent in own]
    return TimeSpent(
        sum(part.computing_s for part in parts),
        sum(part.waiting_s for part in parts),
        sum(part.validating_s for part in parts),
        sum(part.startup_s for part in parts),
        statistics.median(rates),
    )


def _progress(
    own: Mapping[str, Sequence[Made]], trials: Sequence[Trial], share: float
) -> tuple[tuple[Moment, ...], Moment | None]:
    """The best over GPU-hours, each trial on `share` GPUs, and when the winner came to its own.

    Repeats cost, but do not count for the best: their luck is in the finalist's mean.
    """
    leads = next((t for t in trials if t.repeats is None and math.isfinite(t.best)), None)
    repeats = {trial.id for trial in trials if trial.repeats is not None}
    made = [(line, spent, name) for name, lines in own.items() for line, spent in lines]
    hours, best, found = 0.0, math.inf, None
    moments = []
    for line, spent, name in sorted(made, key=lambda report: report[0]["time"]):
        hours += share * spent.elapsed_s / 3600
        if math.isfinite(line["val_loss"]) and name not in repeats:
            best = min(best, line["val_loss"])
        if leads is not None and (name, line["step"]) == (leads.id, leads.best_step):
            found = Moment(hours, leads.best)
        if math.isfinite(best):
            moments.append(Moment(hours, best))
    return tuple(moments), found


def gpu_share(run: Run) -> float:
    """GPUs of a running trial."""
    packing = run.folder / PACKING
    if run.config.sweep.gpus_per_trial == "auto" and packing.exists():
        return 1.0 / int(json.loads(packing.read_text())["trials_per_gpu"])
    return run.config.sweep.gpu_share


def _rungs(
    planned: tuple[int, ...] | None, space: SearchSpace | None, config: Config
) -> tuple[int, ...]:
    if planned is not None:
        return planned
    return () if space is None else rules_of(config, space).rungs


def _cost(
    space: SearchSpace | None, config: Config, trials: Sequence[Trial], trained: int
) -> list[str]:
    """Steps really trained against those of the whole grid, in words."""
    if space is None or not trained:
        return [f"{trained:,} steps are trained."]
    budgets = grid_budgets(space, config)
    whole, why_none = f"all {len(budgets or ()):,} points of the space", ""
    if budgets is None:
        budgets = [_budget(trial.params, config) for trial in trials if trial.repeats is None]
        whole = f"the {len(budgets):,} trials that were searched"
        ranges = [short_key(key) for key, p in space.parameters.items() if p.grid() is None]
        endless = f"of a range ({', '.join(ranges)})" if ranges else "that could be trained"
        why_none = f" There is no full grid {endless}."
    full = sum(budgets)
    told = [
        f"Trained {trained:,} steps, where {whole}, each to its max_steps, would take {full:,}: "
        f"{_times(full, trained)}.{why_none}"
    ]
    repeats = sum(trial.steps[-1] for trial in trials if trial.repeats and trial.steps)
    if 0 < repeats < trained:
        search = trained - repeats
        told.append(
            f"{repeats:,} of these steps repeated the finalists with other seeds; the search alone "
            f"took {search:,}, {_times(full, search)}."
        )
    return told


def _times(full: int, trained: int) -> str:
    less = full / trained
    return f"{less:.1f} times less" if less >= 1 else f"{1 / less:.1f} times more"


def grid_budgets(space: SearchSpace, config: Config) -> list[int] | None:
    """max_steps of every point of the grid; None where there is none, or no end of it."""
    points = space.on(config).grid()
    if points is None:
        return None
    budgets = [_budget(point, config) for point in islice(points, _LARGEST_GRID + 1)]
    return budgets if len(budgets) <= _LARGEST_GRID else None


def _budget(params: Mapping[str, Any], config: Config) -> int:
    return int(params.get(MAX_STEPS_KEY, config.training.max_steps))


def _importance(space: SearchSpace | None, trials: Sequence[Trial]) -> Importance:
    if space is None:
        return Importance(why_not="a single training searches nothing")
    searched = [t for t in trials if t.repeats is None and math.isfinite(t.best)]
    return importance(space, [Observed(dict(t.params), "complete", t.best) for t in searched])


def _axes(space: SearchSpace, trials: Sequence[Trial]) -> tuple[Axis, ...]:
    """The keys that take more than one value; values outside of the space (a remedy's) fit in."""
    axes = []
    for key, parameter in space.parameters.items():
        seen = [trial.params[key] for trial in trials if key in trial.params]
        axis = _axis(key, parameter, seen)
        if len(axis.values) != 1:
            axes.append(axis)
    return tuple(axes)


def _axis(key: str, parameter: Parameter, seen: Sequence[Any]) -> Axis:
    if parameter.kind == "choice":
        values = [*parameter.values, *(v for v in seen if v not in parameter.values)]
        values = list(dict.fromkeys(values))
        if all(type(value) in (int, float) for value in values):
            values = sorted(values)
        return Axis(key, short_key(key), tuple(values))
    low, high = min([parameter.low, *seen]), max([parameter.high, *seen])
    return Axis(key, short_key(key), (), low, high, parameter.kind == "loguniform")
