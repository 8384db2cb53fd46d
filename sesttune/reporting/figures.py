"""Which figures a report has, what each is called, and how it is read."""

import io
from collections.abc import Callable
from dataclasses import dataclass

from matplotlib import rc_context
from matplotlib.figure import Figure

from sesttune.reporting.plots import best_so_far, learning_curves, step_times
from sesttune.reporting.plots_of_space import (
    BATCH,
    LR,
    heat_map,
    heat_map_axes,
    parallel_coordinates,
    parameter_importance,
)
from sesttune.reporting.values import ReportData

DPI = 150


@dataclass(frozen=True)
class Shown:
    """A figure as PNG, or `why_not`. `alt` says what is in it, `reading` how to read it."""

    name: str
    title: str
    reading: str
    alt: str = ""
    png: bytes | None = None
    why_not: str | None = None


def draw_all(data: ReportData) -> list[Shown]:
    """The figures of a report in the order of its page."""
    return [
        _learning_curves(data),
        _best_so_far(data),
        _parallel(data),
        _importance(data),
        _heat_map(data),
        _step_times(data),
    ]


def _learning_curves(data: ReportData) -> Shown:
    count = sum(trial.shares is None and bool(trial.steps) for trial in data.trials)
    return _shown(
        "learning-curves",
        "Learning curves",
        "Lower is better. The best trials are coloured, the others grey; a marker says how each "
        "ended, a dashed line where trials are compared, a dotted one what a prediction without a "
        "model reaches. Trials that are one training are drawn once; what is far above is cut off.",
        f"Validation loss against optimizer steps of {count} trainings, "
        f"{len(data.rungs)} rungs and {len(data.baselines)} baselines.",
        lambda: learning_curves(data),
        None if data.ranked else "no trial has been validated yet",
    )


def _best_so_far(data: ReportData) -> Shown:
    spent = f"{data.progress[-1].hours:.3g}" if data.progress else "0"
    return _shown(
        "best-so-far",
        f"Best so far against {data.unit}",
        "A line that is flat for long at its end says that the sweep could have been shorter; the "
        "star is where the winner reached its best. Repeats of finalists cost time here, but do "
        "not lower the line; start-up is not counted.",
        f"Best validation loss so far against {spent} {data.unit} of training.",
        lambda: best_so_far(data),
        None if data.progress[1:] and data.progress[-1].hours > 0 else "fewer than two validations",
    )


def _parallel(data: ReportData) -> Shown:
    why_not = None
    if len(data.axes) < 2:
        why_not = "fewer than two keys are searched"
    elif len(data.ranked) < 2:
        why_not = "fewer than two trials have a result"
    return _shown(
        "parallel-coordinates",
        "Parallel coordinates",
        "Follow the dark lines: where they meet on an axis, that setting is good; where they "
        "spread, it does not matter. Colours end at the worst tenth of the trials.",
        f"{len(data.ranked)} trials over {', '.join(axis.name for axis in data.axes)}, coloured "
        "by best validation loss.",
        lambda: parallel_coordinates(data),
        why_not,
    )


def _importance(data: ReportData) -> Shown:
    names = {axis.key: axis.name for axis in data.axes}
    listed = ", ".join(f"{names.get(k, k)} {100 * v:.0f} %" for k, v in data.importance.items())
    return _shown(
        "parameter-importance",
        "Parameter importance",
        f"What share of the differences in val_loss each key explains (Optuna's fANOVA over "
        f"{len(data.ranked)} trials). A trial stopped by a rung counts with its loss there; under "
        "some 20 trials this is a hint, no more.",
        f"Importance by key: {listed}.",
        lambda: parameter_importance(data),
        data.importance_missing,
    )


def _heat_map(data: ReportData) -> Shown:
    pair = heat_map_axes(data)
    why_not = None
    if pair is None:
        why_not = "fewer than two keys of numbers are searched"
    elif len(data.ranked) < 2:
        why_not = "fewer than two trials have a result"
    title = " × ".join(axis.name for axis in pair) if pair else "lr × batch"
    instead = ""
    if pair and {axis.key for axis in pair} != {LR, BATCH}:
        instead = " (lr and batch size are not both searched; these two stand in for them)"
    return _shown(
        "heat-map",
        f"Heat map: {title}",
        "Each cell holds the best val_loss of its trials and how many they are; grey is untried. "
        f"A best cell at the rim asks for a wider space{instead}.",
        f"Best validation loss by {title}.",
        lambda: heat_map(data, *pair) if pair else Figure(),
        why_not,
    )


def _step_times(data: ReportData) -> Shown:
    timed = sum(trial.time is not None for trial in data.trials)
    return _shown(
        "step-times",
        "Where the time went",
        "Blue is work. Much orange: the data are the bottleneck; much light blue: validate less "
        "often; much grey: trials are too short for their start-up. The best trials first.",
        f"Time of {min(timed, 15)} trials by computing, waiting for data, validation and start-up.",
        lambda: step_times(data),
        None if timed else "no trial has been trained for an interval yet",
    )


def _shown(
    name: str,
    title: str,
    reading: str,
    alt: str,
    draw: Callable[[], Figure],
    why_not: str | None,
) -> Shown:
    png = None
    if why_not is None:
        content = io.BytesIO()
        with rc_context({"text.parse_math": False}):  # `$` in a name begins no formula
            draw().savefig(content, format="png", dpi=DPI)
        png = content.getvalue()
    return Shown(name, title, reading, alt, png, why_not)
