"""Show a running sweep: a table that redraws itself, or one line per trial where nobody watches.

A pipe or a log file gets only finished trials, so a night of training is a page to read.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sesttune.search.listener import SweepListener
from sesttune.search.recorded import read_schedule
from sesttune.training.records import TrialRecord, in_order

_COLUMNS = ("trial", "config", "step", "val_loss", "best", "it/s", "state", "ETA")
_REDRAW_S = 0.5


@dataclass
class _Trial:
    params: Mapping[str, Any]
    max_steps: int
    state: str = "starting"
    line: Mapping[str, float] = field(default_factory=dict)
    shares: str | None = None
    """The trial whose training is its own, too."""

    def best(self) -> float:
        return self.line.get("best_val_loss", math.nan)

    @property
    def under_way(self) -> bool:
        return self.state in ("running", "starting")

    def rank(self) -> tuple[bool, float]:
        """What there is most reason to show comes first: what runs, then what is best."""
        best = self.best()
        return not self.under_way, math.inf if math.isnan(best) else best

    def eta_s(self) -> float:
        """Seconds to the end of its budget, at its present speed (nan while unknown)."""
        speed = self.line.get("steps_per_s", math.nan)
        running = self.state == "running" and speed > 0
        return (self.max_steps - self.line["step"]) / speed if running else math.nan


class LiveTable(SweepListener):
    """A context manager around the sweep: `with LiveTable(console, total, records) as live`.

    `total` trials will have been run in the end; `records` are those known before (a resumed
    sweep), `steps` what all trials are expected to take. `clock` returns seconds.
    """

    def __init__(
        self,
        console: Console,
        total: int,
        records: Sequence[TrialRecord] = (),
        steps: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console, self._total, self._clock = console, total, clock
        self._trials = {record.id: _known(record) for record in records if record.finished}
        self._live: Live | None = None
        self._steps, self._steps_made = steps, 0.0
        self._started = self._drawn = clock()

    def __enter__(self) -> "LiveTable":
        if self._console.is_terminal:
            self._live = Live(self._fitting(), console=self._console, auto_refresh=False)
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.update(self.table(), refresh=True)
            self._live.stop()

    def on_note(self, text: str) -> None:
        self._console.print(text)

    def on_start(self, record: TrialRecord, max_steps: int) -> None:
        # It may go on from where it, or one whose training it takes over, has stopped.
        self._trials[record.id] = _Trial(record.params, max_steps, line=_last_line(record))
        taken_over = self._trials.get(read_schedule(record.folder).get("continues", ""))
        if taken_over is not None:
            taken_over.shares = record.id

    def on_report(self, trial_id: str, metrics: Mapping[str, float]) -> None:
        trial = self._trials[trial_id]
        self._steps_made += metrics["step"] - trial.line.get("step", 0)
        trial.line, trial.state = dict(metrics), "running"

    def on_end(self, record: TrialRecord) -> None:
        trial = self._trials.setdefault(record.id, _known(record))
        trial.state = f"{record.status}: {record.stop_reason}"
        trial.shares = _shared_with(record)
        if self._live is None:
            told = f"best val_loss {_number(trial.best())}"
            said = f", {told}" if told not in trial.state else ""  # ASHA names it
            self._console.print(f"trial {record.id} {trial.state}{said} [{describe(trial.params)}]")

    def on_tick(self) -> None:
        if self._live is not None and self._clock() - self._drawn >= _REDRAW_S:
            self._live.update(self._fitting(), refresh=True)
            self._drawn = self._clock()

    def _fitting(self) -> Table:
        """As many trials as the terminal shows: it would be the last ones that are cut off.

        Those are the ones that run; and drawing a thousand took most of the driver's time.
        """
        rows = room = self._console.height
        while True:
            table = self.table(rows)
            lines = len(self._console.render_lines(table))
            if lines <= room or rows <= 1:
                return table
            rows = max(1, min(rows - 1, rows * room // lines))

    def table(self, rows: int | None = None) -> Table:
        """The trials by id, those running in bold; of more than `rows` those and the best."""
        shown = sorted(self._trials.items(), key=lambda pair: in_order(pair[0]))
        if rows is not None and len(shown) > rows:
            first = sorted(shown, key=lambda pair: pair[1].rank())[:rows]
            kept = {trial_id for trial_id, _ in first}
            shown = [pair for pair in shown if pair[0] in kept]
        more = len(self._trials) - len(shown)
        # Wrapped, which the lines that are printed above it are not.
        title = Text(self._title(), "table.title", overflow="fold", no_wrap=False)
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        for name in _COLUMNS:
            words = name in ("config", "state")  # which a narrow terminal breaks, and no number
            table.add_column(name, justify="left" if words else "right", no_wrap=not words)
        if more:
            table.caption = Text(f"and {more:,} more", "table.caption", justify="left")
            table.caption_justify = "left"
        for trial_id, trial in shown:
            line = trial.line
            table.add_row(
                trial_id,
                describe(trial.params),
                f"{line.get('step', 0):,.0f}/{trial.max_steps:,}" if trial.max_steps else "",
                _number(line.get("val_loss", math.nan)),
                _number(trial.best()),
                _number(line.get("steps_per_s", math.nan)),
                trial.state.partition(", ")[0],
                duration(trial.eta_s()),
                style="bold" if trial.under_way else None,
            )
        return table

    def _steps_done(self) -> float:
        """Steps behind the sweep, an earlier sweep's too; those of a shared training once."""
        trainings = (trial for trial in self._trials.values() if trial.shares not in self._trials)
        return sum(trial.line.get("step", 0) for trial in trainings)

    def _left(self) -> str:
        """How long the rest will take, by the plan's steps and the speed of this sweep so far."""
        made, passed = self._steps_made, self._clock() - self._started
        if self._steps is None or made <= 0:
            return ""
        left = (self._steps - self._steps_done()) * passed / made
        return f", about {duration(left)} left" if left > 0 else ", longer than planned"

    def _title(self) -> str:
        ended = sum(":" in trial.state for trial in self._trials.values())
        best = min(
            ((t.best(), i) for i, t in self._trials.items() if not math.isnan(t.best())),
            default=None,
        )
        leader = f", best val_loss {_number(best[0])} (trial {best[1]})" if best else ""
        total = max(self._total, len(self._trials))  # repeats of the finalists come on top
        passed = duration(self._clock() - self._started)
        return f"{ended}/{total} trials, {passed}{self._left()}{leader}"


def describe(params: Mapping[str, Any]) -> str:
    """The searched settings in short: `lr=0.0001 batch_size=16`."""
    return " ".join(
        f"{key.rpartition('.')[2]}={_number(v) if isinstance(v, float) else v}"
        for key, v in params.items()
    )


def duration(seconds: float) -> str:
    """`1:02:03`, or nothing where it is not known."""
    if not math.isfinite(seconds):
        return ""
    minutes, rest = divmod(round(max(seconds, 0)), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "-"


def _known(record: TrialRecord) -> _Trial:
    line = _last_line(record)
    budget = int(record.params.get("training.max_steps", line.get("max_steps", 0)))
    state = f"{record.status}: {record.stop_reason}"
    return _Trial(record.params, budget, state, line, _shared_with(record))


def _last_line(record: TrialRecord) -> Mapping[str, float]:
    lines = record.metrics()
    return lines[-1] if lines else {}


def _shared_with(record: TrialRecord) -> str | None:
    return read_schedule(record.folder).get("shares")
