"""What came of a sweep: the leaderboard, each trial's verdict, the finals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sesttune.config.load import Points
from sesttune.config.schema import Config
from sesttune.errors import UserError
from sesttune.search.finals import Standing, difference, standings
from sesttune.search.recorded import read_schedule, read_states, reports
from sesttune.search.verdict import Verdict, judge
from sesttune.training.records import DATA, Line, TrialRecord, list_trials, read_data


@dataclass(frozen=True)
class Row:
    """A trial on the leaderboard; its best is nan before the first validation."""

    id: str
    best_val_loss: float
    best_step: int
    step: int
    status: str
    stop_reason: str | None
    params: dict[str, Any]
    verdict: Verdict | None
    shares: str | None
    """The trial whose training is its own, too; that one has the checkpoints."""


@dataclass(frozen=True)
class SweepOutcome:
    """The trials of a sweep by rank; `best` is None where no trial has a result.

    `verdict` and `evidence` are of the best. `finals`: finalists by their means over several
    seeds, `difference` says whether the first two differ by more than noise.
    """

    leaderboard: tuple[Row, ...]
    best: Row | None
    verdict: str | None
    evidence: str
    remedy: str | None = None
    finals: tuple[Standing, ...] = ()
    difference: str | None = None


def read_outcome(folder: Path, config: Config) -> SweepOutcome:
    """The outcome of the sweep in `folder`, from its trial folders.

    The best is the trial with the best mean over its seeds, where finalists were repeated.
    """
    records = [r for r in list_trials(folder) if "repeats" not in read_schedule(r.folder)]
    board = leaderboard(records, config, min(read_baselines(folder).values(), default=None))
    finals = _finals(folder, config)
    if finals:  # the finalists first, in the order of their means
        place = {standing.trial: rank for rank, standing in enumerate(finals)}
        board.sort(key=lambda row: place.get(row.id, len(place)))
    best = board[0] if board and math.isfinite(board[0].best_val_loss) else None
    if best is None or best.verdict is None:
        return SweepOutcome(tuple(board), best, None, "no trial has a result")
    return SweepOutcome(
        tuple(board),
        best,
        best.verdict.label,
        best.verdict.evidence,
        best.verdict.remedy,
        tuple(finals),
        difference(finals[0], finals[1]) if len(finals) > 1 else None,
    )


def _finals(folder: Path, config: Config) -> list[Standing]:
    trials = {trial.id: trial for trial in read_states(folder, config)}
    repeated = trials.keys() & {trial.repeats for trial in trials.values()}
    if not repeated:
        return []
    for report in reports(folder, trials.values()):
        trials[report.trial_id].take(report.step, report.best_val_loss)
    return standings([trials[name] for name in sorted(repeated)], trials.values())


def read_baselines(folder: Path) -> dict[str, float]:
    """The val_loss of each baseline, as measured when the data were prepared."""
    return dict(read_data(folder).get("baselines", {})) if (folder / DATA).exists() else {}


def leaderboard(
    records: Sequence[TrialRecord], config: Config, baseline: float | None = None
) -> list[Row]:
    """A row per trial, the lowest best_val_loss first, those without one last.

    Of trials that are one training the one that was trained comes first where they are equal.
    """
    settings = Points(config)
    rows = [_row(record, settings, baseline) for record in records]
    return sorted(
        rows,
        key=lambda row: (
            not math.isfinite(row.best_val_loss),
            row.best_val_loss if math.isfinite(row.best_val_loss) else 0.0,
            row.shares is not None,
        ),
    )


def _row(record: TrialRecord, settings: Points, baseline: float | None) -> Row:
    lines = record.metrics()
    last: Line = lines[-1] if lines else {}
    return Row(
        record.id,
        last.get("best_val_loss", math.nan),
        int(last.get("best_step", 0)),
        int(last.get("step", 0)),
        record.status,
        record.stop_reason,
        record.params,
        _verdict(record, lines, settings, baseline),
        read_schedule(record.folder).get("shares"),
    )


def _verdict(
    record: TrialRecord, lines: Sequence[Line], settings: Points, baseline: float | None
) -> Verdict | None:
    if not lines:
        return None
    longer = {"training.max_steps": int(max(1, lines[-1].get("max_steps", lines[-1]["step"])))}
    try:
        own = settings.at(record.params | longer)
    except UserError:  # it failed on its own settings
        return None
    return judge(lines, own, record.stop_reason, baseline)
