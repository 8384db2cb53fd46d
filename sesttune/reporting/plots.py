"""Figures over steps and time: learning curves, the best so far, and what a step spends time on."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sesttune.reporting.style import (
    BLUE,
    DARK,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    RED,
    SKY,
    label,
    label_lines,
    loss_scale,
    mark_rungs,
    new_figure,
    number,
    shortened,
    steps_axis,
)
from sesttune.reporting.values import (
    DONE,
    FAILED,
    LIMIT,
    OPEN,
    PATIENCE,
    RUNG,
    ReportData,
    TimeSpent,
    Trial,
)

MARKERS = {DONE: "o", RUNG: "v", PATIENCE: "s", LIMIT: "D", FAILED: "X", OPEN: ">"}
COLOURS = (BLUE, ORANGE, GREEN, RED, PINK)
"""Of the best trials, in their order; the others are grey."""
_BEGINNING = 0.02
"""Share of all GPU-hours whose fall is left to run out of the top."""
BARS = 15
"""Trials that are shown with their times: more would not be read."""
_PARTS = (
    ("computing", "computing_s", BLUE),
    ("waiting for data", "waiting_s", ORANGE),
    ("validation and saving", "validating_s", SKY),
    ("start-up", "startup_s", GREY),
)


def learning_curves(data: ReportData) -> Figure:
    """val_loss over steps of every training, the best in colour, with rungs and ends."""
    figure, axes = new_figure(5.8)
    best = [trial for trial in data.ranked if trial.shares is None][: len(COLOURS)]
    coloured = {trial.id: colour for trial, colour in zip(best, COLOURS, strict=False)}
    thin = len(data.trials) > 30
    low, high = _worth_seeing(data)
    for trial in reversed(data.trials):
        colour = coloured.get(trial.id, GREY)
        _draw_curve(axes, trial, colour, trial.id in coloured, best[:1] == [trial], thin, high)
    label(figure, axes, f"Learning curves of {data.name}", "optimizer steps", "val_loss")
    loss_scale(axes, low, high)
    steps_axis(axes)
    axes.set_xlim(left=0)
    label_lines(axes, list(data.baselines.items()), DARK)
    mark_rungs(axes, data.rungs)
    _curve_legend(figure, data, best)
    return figure


def _worth_seeing(data: ReportData) -> tuple[float, float]:
    """Losses from the lowest to what one in twenty exceeds, and the baselines.

    An untrained head and a trial that diverges would else take all of the height.
    """
    pairs = [pair for trial in data.trials for pair in zip(trial.steps, trial.losses, strict=True)]
    finite = [(step, loss) for step, loss in pairs if math.isfinite(loss)]
    trained = [loss for step, loss in finite if step > 0] or [loss for _, loss in finite]
    high = max(float(np.quantile(trained, 0.95)), *data.baselines.values(), -math.inf)
    return min(*trained, *data.baselines.values(), math.inf), high


def _draw_curve(
    axes: Axes, trial: Trial, colour: str, coloured: bool, leads: bool, thin: bool, high: float
) -> None:
    """A training as a line, and how it ended as a marker; a shared training is drawn once.

    A marker above `high` is drawn there, so that it is seen.
    """
    width = 2.6 if leads else 1.6 if coloured else 0.6 if thin else 0.9
    above = 6 if leads else 5 if coloured else 3
    if trial.shares is None:
        axes.plot(
            trial.steps,
            trial.losses,
            color=colour,
            linewidth=width,
            alpha=1.0 if coloured else 0.55,
            linestyle="-" if trial.repeats is None else (0, (3, 2)),
            zorder=above,
            label=trial.id,
        )
    ends = [(s, v) for s, v in zip(trial.steps, trial.losses, strict=True) if math.isfinite(v)]
    if ends:
        axes.plot(
            ends[-1][0],
            min(ends[-1][1], high),
            marker=MARKERS[trial.ended],
            color=colour,
            markersize=8 if leads else 6 if coloured or not thin else 4.5,
            markeredgecolor="white",
            markeredgewidth=0.6,
            linestyle="none",
            zorder=above + 0.5,
        )


def _curve_legend(figure: Figure, data: ReportData, best: Sequence[Trial]) -> None:
    handles = [
        Line2D([], [], color=colour, linewidth=2.6 if rank == 0 else 1.6)
        for rank, (_, colour) in enumerate(zip(best, COLOURS, strict=False))
    ]
    ranks = ["" if rank else ", best" for rank in range(len(best))]
    names = [
        f"{trial.id}{rank}: {shortened(trial.label, 60)}"
        for trial, rank in zip(best, ranks, strict=True)
    ]
    if any(trial.repeats for trial in data.trials):
        handles.append(Line2D([], [], color=GREY, linestyle=(0, (3, 2))))
        names.append("repeats of finalists, other seeds")
    there = {trial.ended for trial in data.trials if trial.steps}
    for ended in (ended for ended in MARKERS if ended in there):
        handles.append(
            Line2D([], [], color=GREY, marker=MARKERS[ended], linestyle="none", markersize=7)
        )
        names.append(ended)
    figure.legend(handles, names, loc="outside lower center", ncols=2, fontsize=9, frameon=False)


def best_so_far(data: ReportData) -> Figure:
    """The best val_loss of all trials against what was spent, and when the winner was found."""
    figure, axes = new_figure(4.2)
    hours = [moment.hours for moment in data.progress]
    losses = [moment.best for moment in data.progress]
    axes.step(hours, losses, where="post", color=BLUE, linewidth=2.0, label="best so far")
    lines = [] if data.baseline is None else [data.baseline]
    # The fall from an untrained head is over at once and would take all of the height.
    later = [m.best for m in data.progress if m.hours >= _BEGINNING * hours[-1]]
    seen = [*later, *(height for _, height in lines)]
    loss_scale(axes, min(seen), max(seen))
    label(
        figure,
        axes,
        f"Best val_loss of {data.name} against {data.unit}",
        f"{data.unit} of training, over all trials",
        "best val_loss so far",
    )
    axes.set_xlim(left=0)
    label_lines(axes, lines, DARK)
    if data.found is not None:
        _mark_found(axes, data)
    return figure


def _mark_found(axes: Axes, data: ReportData) -> None:
    assert data.found is not None
    found, winner = data.found, data.ranked[0]
    axes.plot(found.hours, found.best, "*", color=RED, markersize=15, zorder=5, label="winner")
    late = found.hours > 0.5 * data.progress[-1].hours
    share = found.hours / data.progress[-1].hours
    axes.annotate(
        f"{winner.id} reaches {number(found.best)}\nafter {100 * share:.0f} % of the {data.unit}",
        (found.hours, found.best),
        xytext=(-12 if late else 12, 22),
        textcoords="offset points",
        ha="right" if late else "left",
        fontsize=9,
        color=RED,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0},
    )


def step_times(data: ReportData) -> Figure:
    """Seconds of the best trials by what they went to, as stacked bars."""
    shown = [(trial, trial.time) for trial in data.trials if trial.time is not None][:BARS]
    figure, axes = new_figure(1.7 + 0.34 * len(shown))
    longest = max(_total(spent) for _, spent in shown)
    unit, seconds = _unit(longest)
    heights = range(len(shown))
    left = [0.0] * len(shown)
    for name, part, colour in _PARTS:
        widths = [getattr(spent, part) / seconds for _, spent in shown]
        axes.barh(heights, widths, left=left, color=colour, label=name, height=0.7)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    for height, (end, (_, spent)) in enumerate(zip(left, shown, strict=True)):
        axes.text(end, height, f" {number(spent.steps_per_s)} steps/s", va="center", fontsize=9)
    names = [f"{trial.id}  {shortened(trial.label)}" for trial, _ in shown]
    axes.set_yticks(heights, names, fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.25 * longest / seconds)
    title = f"Where the time of a trial went in {data.name}"
    label(figure, axes, title, f"time of a trial ({unit})", "")
    figure.legend(loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    return figure


def _total(spent: TimeSpent) -> float:
    return spent.computing_s + spent.waiting_s + spent.validating_s + spent.startup_s


def _unit(longest_s: float) -> tuple[str, float]:
    for unit, seconds in (("hours", 3600.0), ("minutes", 60.0)):
        if longest_s >= 2 * seconds:
            return unit, seconds
    return "seconds", 1.0
