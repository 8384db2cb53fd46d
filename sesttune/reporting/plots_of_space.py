"""Figures over the searched keys: parallel coordinates, importance, and a map of two of them."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import Normal, Stroke
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from sesttune.reporting.style import BLUE, DARK, LOSSES, label, new_figure, number
from sesttune.reporting.values import Axis, ReportData, Trial

NOT_SEARCHED = -0.12
"""Where a trial lies on the axis of a key that its conditions left out."""
SPREAD = 0.08
"""Of an axis, over which the trials of one choice lie."""
LR, BATCH = "training.lr", "training.batch_size"
BINS = 6
"""Of a range in the heat map."""
_CELLS = 12
"""Values of a whole-number key up to which each is a cell of its own."""


def parallel_coordinates(data: ReportData) -> Figure:
    """A line a trial through the values of its keys, coloured by its best val_loss."""
    figure, axes = new_figure(4.8, max(9.0, 1.6 * len(data.axes) + 2))
    norm = _norm([trial.best for trial in data.ranked])
    colour = colormaps[LOSSES]
    places = range(len(data.axes))
    many = len(data.ranked) > 30
    for rank, trial in reversed(list(enumerate(data.ranked))):
        heights = [_height(axis, trial, rank / len(data.ranked)) for axis in data.axes]
        (line,) = axes.plot(
            places,
            heights,
            color=colour(norm(trial.best)),
            linewidth=3.0 if rank == 0 else 0.8 if many else 1.4,
            alpha=1.0 if rank == 0 else 0.75,
            label=trial.id,
        )
        if rank == 0:
            line.set_path_effects([Stroke(linewidth=5.0, foreground="white"), Normal()])
    skipped = [a for a in data.axes if any(a.key not in t.params for t in data.ranked)]
    for place, axis in enumerate(data.axes):
        axes.axvline(place, color=DARK, linewidth=0.9, zorder=1)
        for height, text in _ticks(axis, axis in skipped):
            _write(axes, place, height, text)
    axes.set_xticks(places, [axis.name for axis in data.axes], fontsize=10)
    axes.tick_params(axis="x", length=0)
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.set_xlim(-0.25, len(data.axes) - 0.85)
    axes.set_ylim(-0.2 if skipped else -0.07, 1.07)
    label(figure, axes, f"Settings of {data.name}, each line a trial, the best one thick", "", "")
    _colour_bar(figure, axes, norm)
    return figure


def _height(axis: Axis, trial: Trial, rank: float) -> float:
    """Trials with the same choice lie beside each other, the best (`rank` 0 of 1) above."""
    place = axis.place(trial.params[axis.key]) if axis.key in trial.params else NOT_SEARCHED
    if not axis.values and axis.key in trial.params:
        return place
    return place + (0.5 - rank) * min(SPREAD, 0.5 / max(1, len(axis.values) - 1))


def _write(axes: Axes, place: float, height: float, text: str) -> None:
    box = {"boxstyle": "round,pad=0.12", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
    axes.text(place - 0.025, height, text, ha="right", va="center", fontsize=9, bbox=box, zorder=20)


def _ticks(axis: Axis, skipped: bool) -> list[tuple[float, str]]:
    ticks = [(NOT_SEARCHED, "not searched")] if skipped else []
    if axis.values:
        every = max(1, math.ceil(len(axis.values) / _CELLS))
        return ticks + [(axis.place(value), number(value)) for value in axis.values[::every]]
    if not axis.log:
        round_ones = MaxNLocator(4).tick_values(axis.low, axis.high)
        inside = [float(v) for v in round_ones if axis.low <= v <= axis.high]
        return ticks + [(axis.place(value), number(value)) for value in inside]
    powers = range(math.ceil(math.log10(axis.low)), math.floor(math.log10(axis.high)) + 1)
    inner = [10.0**power for power in powers]
    ends = [end for end in (axis.low, axis.high) if all(_far(axis, end, tick) for tick in inner)]
    return ticks + [(axis.place(value), number(value)) for value in (*inner, *ends)]


def _far(axis: Axis, one: float, other: float) -> bool:
    return abs(axis.place(one) - axis.place(other)) > 0.06


def _norm(losses: Sequence[float]) -> Normalize:
    """From the best to the 90 % quantile, so that a few poor trials leave colours to the others."""
    low, high = min(losses), float(np.quantile(losses, 0.9))
    if high <= low:
        high = low + 1e-9 + abs(low) * 1e-3
    return LogNorm(low, high) if 0 < 10 * low <= high else Normalize(low, high)


def _colour_bar(figure: Figure, axes: Axes, norm: Normalize) -> None:
    bar = figure.colorbar(
        ScalarMappable(norm, LOSSES), ax=axes, extend="max", pad=0.02, fraction=0.05
    )
    bar.set_label("best val_loss (dark is better)", fontsize=10)
    bar.ax.tick_params(labelsize=9)
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    bar.ax.yaxis.set_minor_formatter(NullFormatter())


def parameter_importance(data: ReportData) -> Figure:
    """The share of each key in how much the losses differ."""
    names = {axis.key: axis.name for axis in data.axes}
    keys = sorted(data.importance, key=lambda key: data.importance[key])
    shares = [100 * data.importance[key] for key in keys]
    figure, axes = new_figure(1.3 + 0.42 * len(keys))
    bars = axes.barh([names.get(key, key) for key in keys], shares, color=BLUE, height=0.65)
    axes.bar_label(bars, [f" {share:.0f} %" for share in shares], fontsize=9)
    axes.set_xlim(0, 1.1 * max(shares))
    title = f"Importance of the searched keys of {data.name}"
    label(figure, axes, title, "share of the variance of val_loss (%)", "")
    return figure


def heat_map_axes(data: ReportData) -> tuple[Axis, Axis] | None:
    """lr and batch size; where they are not searched the two most important keys of numbers."""
    axes = {axis.key: axis for axis in data.axes if axis.numeric}
    first = [key for key in (LR, BATCH) if key in axes]
    rest = sorted(axes, key=lambda key: -data.importance.get(key, 0.0))
    chosen = [*first, *(key for key in rest if key not in first)][:2]
    return (axes[chosen[0]], axes[chosen[1]]) if len(chosen) == 2 else None


def heat_map(data: ReportData, across: Axis, up: Axis) -> Figure:
    """The best val_loss of the trials in each cell of two keys, and how many there are."""
    figure, axes = new_figure(4.6)
    found: dict[tuple[int, int], list[float]] = {}
    for trial in data.ranked:
        if across.key in trial.params and up.key in trial.params:
            cell = tuple(_cell(axis, trial.params[axis.key]) for axis in (across, up))
            found.setdefault((cell[0], cell[1]), []).append(trial.best)
    best = np.full((_cells(up), _cells(across)), np.nan)
    for (column, row), losses in found.items():
        best[row, column] = min(losses)
    norm = _norm([min(losses) for losses in found.values()])
    axes.pcolormesh(np.ma.masked_invalid(best), cmap=LOSSES, norm=norm, edgecolors="white", lw=2)
    for (column, row), losses in found.items():
        dark = norm(min(losses)) < 0.6
        axes.text(
            column + 0.5,
            row + 0.5,
            f"{number(min(losses))}\nn={len(losses)}",
            ha="center",
            va="center",
            fontsize=9,
            color="white" if dark else "black",
        )
    axes.set_facecolor("#f2f2f2")
    axes.set_xticks(*_cell_ticks(across))
    axes.set_yticks(*_cell_ticks(up))
    label(figure, axes, f"Best val_loss by {across.name} and {up.name}", across.name, up.name)
    _colour_bar(figure, axes, norm)
    return figure


def _cells(axis: Axis) -> int:
    return len(axis.values) if 0 < len(axis.values) <= _CELLS else BINS


def _cell(axis: Axis, value: float) -> int:
    if 0 < len(axis.values) <= _CELLS:
        return axis.values.index(value)
    return min(BINS - 1, int(axis.place(value) * BINS))


def _cell_ticks(axis: Axis) -> tuple[list[float], list[str]]:
    """The values under their cells, or the ends of bins between them."""
    if 0 < len(axis.values) <= _CELLS:
        return [k + 0.5 for k in range(len(axis.values))], [number(v) for v in axis.values]
    if axis.values:
        last = len(axis.values) - 1
        return list(range(BINS + 1)), [
            number(axis.values[round(k / BINS * last)]) for k in range(BINS + 1)
        ]
    return list(range(BINS + 1)), [_two_digits(axis.value_at(k / BINS)) for k in range(BINS + 1)]


def _two_digits(value: float) -> str:
    return number(float(f"{value:.2g}"))
