"""What a sweep came to: the leaderboard, and a verdict on the best trial's curve.

The verdict follows the plan's rules: *converged* is less than 1 % change over the patience
window (5,000 steps in the plan) and asks for nothing; *still falling* asks for more steps;
*overfit* asks for the best earlier checkpoint, which is what `best.ckpt` is.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sesttune.config.schema import Config
from sesttune.training.records import TrialRecord, list_trials

DONE, STILL_FALLING, OVERFIT = "done", "still falling", "overfit"
CHANGE = 0.01
"""Smaller relative changes of val_loss count as no change (the plan's 1 %)."""
RISE = 0.05
"""How far val_loss must be above its best to have turned: validations are noisier than 1 %."""
GAP = 2.0
"""val_loss / train_loss from which they have come apart; the plan's example is 3.5 / 1.2."""

Line = Mapping[str, float]
"""One report line of a trial: step, train_loss, val_loss, ..."""


@dataclass(frozen=True)
class Row:
    """A trial on the leaderboard; losses are nan before the first validation."""

    id: str
    best_val_loss: float
    best_step: int
    val_loss: float
    train_loss: float
    step: int
    status: str
    stop_reason: str | None
    params: dict[str, Any]


@dataclass(frozen=True)
class SweepOutcome:
    """The trials of a sweep by rank; `best` is None where no trial has a result."""

    leaderboard: tuple[Row, ...]
    best: Row | None
    verdict: str | None
    evidence: str


def read_outcome(folder: Path, config: Config) -> SweepOutcome:
    """The outcome of the sweep in `folder`, from its trial folders."""
    records = list_trials(folder)
    board = tuple(leaderboard(records))
    best = board[0] if board and math.isfinite(board[0].best_val_loss) else None
    if best is None:
        return SweepOutcome(board, None, None, "no trial has a result")
    lines = next(record for record in records if record.id == best.id).metrics()
    window = config.training.patience * config.training.val_check_interval
    label, evidence = verdict(lines, window, best.stop_reason)
    return SweepOutcome(board, best, label, evidence)


def leaderboard(records: Sequence[TrialRecord]) -> list[Row]:
    """A row per trial, the lowest best_val_loss first, those without one last."""
    rows = [_row(record) for record in records]
    return sorted(rows, key=lambda row: (not math.isfinite(row.best_val_loss), row.best_val_loss))


def verdict(lines: Sequence[Line], window: int, stop_reason: str | None = None) -> tuple[str, str]:
    """Judge a learning curve: (`done` | `still falling` | `overfit`, the numbers behind it).

    `lines`: report lines with `step`, `train_loss`, `val_loss` in order, at least one.
    `window`: optimizer steps over which a change counts. `stop_reason`: why it ended; patience
    spent is converged by the plan's definition, unless it overfits.
    """
    last = lines[-1]
    best = min(lines, key=lambda line: line["val_loss"])
    over = _overfit(lines, best)
    if over is not None:
        return OVERFIT, over
    before = _best_until(lines, last["step"] - window)
    change = (before["val_loss"] - best["val_loss"]) / abs(before["val_loss"])
    moved = (
        f"val_loss fell {100 * change:.1f} % over the last "
        f"{last['step'] - before['step']:,.0f} steps, to {best['val_loss']:.4g}"
    )
    if stop_reason == "patience":
        return DONE, f"patience is spent: best val_loss {best['val_loss']:.4g} at step {_at(best)}"
    if change >= CHANGE:
        return STILL_FALLING, moved
    return DONE, moved + f" (less than {100 * CHANGE:.0f} %)"


def _overfit(lines: Sequence[Line], best: Line) -> str | None:
    """The evidence that the end is worse than the best while training went on, or None."""
    last = lines[-1]
    risen = last["val_loss"] / best["val_loss"] - 1
    # Not ">": train_loss is nan at step 0, where there is nothing to compare with.
    train_fell = not last["train_loss"] > (1 - CHANGE) * best["train_loss"]
    if best is not last and risen >= RISE and train_fell:
        return (
            f"val_loss rose {100 * risen:.1f} % from its best {best['val_loss']:.4g} at step "
            f"{_at(best)} to {last['val_loss']:.4g}, train_loss is {last['train_loss']:.4g}"
        )
    flat = len(lines) == 1 or best is not last
    if flat and last["val_loss"] >= GAP * last["train_loss"]:
        return f"train_loss {last['train_loss']:.4g}, but val_loss {last['val_loss']:.4g}"
    return None


def _best_until(lines: Sequence[Line], step: float) -> Line:
    """The best line up to `step`; the first one where the run is shorter than that."""
    early = [line for line in lines if line["step"] <= step] or [lines[0]]
    return min(early, key=lambda line: line["val_loss"])


def _at(line: Line) -> str:
    return f"{line['step']:,.0f}"


def _row(record: TrialRecord) -> Row:
    lines = record.metrics()
    last: Line = lines[-1] if lines else {}
    return Row(
        record.id,
        last.get("best_val_loss", math.nan),
        int(last.get("best_step", 0)),
        last.get("val_loss", math.nan),
        last.get("train_loss", math.nan),
        int(last.get("step", 0)),
        record.status,
        record.stop_reason,
        record.params,
    )
