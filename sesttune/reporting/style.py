"""How the report's figures look: Okabe-Ito colours, text of 9 pt and more, no pyplot.

Colours are told apart with the common forms of colour blindness (Okabe and Ito, 2008), and nothing
is said by colour alone. `Figure` objects are used as they are, so that nothing is global and a
sweep's process keeps no figure alive.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from matplotlib.transforms import blended_transform_factory

BLUE, ORANGE, GREEN, RED, PINK, SKY = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
)
GREY, DARK, LIGHT = "#8a8a8a", "#333333", "#dddddd"
LOSSES = "viridis"
"""Even steps of lightness; low losses are dark."""
WIDTH = 9.0
"""Inches; 864 pixels of a page, where 9 pt are 12 pixels."""
_LOG_FROM = 5.0
"""Largest over smallest loss from which an axis is logarithmic."""
_APART = 0.05
"""Of an axis: the least distance between two labels."""


def new_figure(height: float = 4.5, width: float = WIDTH) -> tuple[Figure, Axes]:
    """A figure of one plot, in inches."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    axes = figure.subplots()
    axes.tick_params(labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def label(figure: Figure, axes: Axes, title: str, x: str, y: str) -> None:
    """Title at the left edge, above whatever the axes have beside them, and names of both axes."""
    figure.suptitle(title, fontsize=12, x=0.005, ha="left", fontweight="bold")
    axes.set_xlabel(x, fontsize=10)
    axes.set_ylabel(y, fontsize=10)


def loss_scale(axes: Axes, low: float, high: float) -> None:
    """A y axis of losses from `low` to `high`, logarithmic where that spans much."""
    if low > 0 and high >= _LOG_FROM * low:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(low / 1.07, high * 1.05)
    else:
        room = 0.04 * (high - low) or 0.05 * abs(high) or 1.0
        axes.set_ylim(low - room, high + room)
    axes.grid(axis="y", color=LIGHT, linewidth=0.6)
    axes.set_axisbelow(True)


def steps_axis(axes: Axes) -> None:
    """Optimizer steps along x, with commas."""
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def label_lines(axes: Axes, lines: Sequence[tuple[str, float]], color: str) -> None:
    """Dotted horizontal lines, named at the right end, the names apart from each other."""
    for _, height in lines:
        axes.axhline(height, color=color, linestyle=":", linewidth=1.4, zorder=2)
    lowest = -math.inf
    for name, height in sorted(lines, key=lambda line: line[1]):
        at = axes.transAxes.inverted().transform(axes.transData.transform((0, height)))[1]
        lowest = max(float(at), lowest + _APART)
        text = f" {name} {number(height)}"
        axes.text(1.0, lowest, text, transform=axes.transAxes, fontsize=9, color=color, va="center")


def mark_rungs(axes: Axes, rungs: Sequence[int]) -> None:
    """Dashed vertical lines, each with its step above the plot."""
    left, right = axes.get_xlim()
    above = blended_transform_factory(axes.transData, axes.transAxes)
    close = any(b - a < 0.11 * (right - left) for a, b in pairwise(rungs))
    named = -math.inf
    for rung in rungs:
        axes.axvline(rung, color=DARK, linestyle="--", linewidth=0.9, zorder=1)
        if close and rung - named < 0.025 * (right - left):
            continue  # its line is there; its name would lie on that of the one before
        named = rung
        axes.text(
            rung,
            1.01,
            f"rung {rung:,}",
            transform=above,
            fontsize=9,
            color=DARK,
            ha="left" if close else "center",
            va="bottom",
            rotation=45 if close else 0,
        )


def shortened(text: str, most: int = 44) -> str:
    """`text` cut to so many characters, with an ellipsis where it was longer."""
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def number(value: Any) -> str:
    """A value as short as it can be read: `1e-4`, `0.25`, `20k`, `cosine`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "none" if value is None else str(value)
    if value and (abs(value) < 1e-3 or abs(value) >= 1e6):
        mantissa, _, power = f"{value:.1e}".partition("e")
        return f"{mantissa.removesuffix('.0')}e{int(power)}"
    if abs(value) >= 1e4 and value % 1_000 == 0:
        return f"{value / 1e3:.0f}k"
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.3g}" if value % 1 else f"{value:.0f}"
