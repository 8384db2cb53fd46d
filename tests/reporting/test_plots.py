"""What is drawn: read back from matplotlib's own objects."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from sesttune.reporting.figures import draw_all
from sesttune.reporting.plots import COLOURS, MARKERS, best_so_far, learning_curves, step_times
from sesttune.reporting.plots_of_space import (
    BATCH,
    LR,
    heat_map,
    heat_map_axes,
    parallel_coordinates,
    parameter_importance,
)
from sesttune.reporting.style import GREY, number
from sesttune.reporting.values import (
    DONE,
    PATIENCE,
    RUNG,
    Axis,
    Moment,
    ReportData,
    TimeSpent,
    Trial,
)

AXES = (
    Axis(LR, "lr", low=1e-5, high=1e-3, log=True),
    Axis(BATCH, "batch", (8, 16, 32)),
    Axis("training.lr_schedule", "lr_schedule", ("constant", "wsd")),
)


def trial(name: str, losses: Sequence[float], ended: str = DONE, **more: object) -> Trial:
    best = min(losses)
    values = {
        "label": f"lr={name}",
        "params": {LR: 1e-4, BATCH: 16, "training.lr_schedule": "wsd"},
        "steps": tuple(100 * k for k in range(len(losses))),
        "best_step": 100 * list(losses).index(best),
        "time": TimeSpent(60.0, 20.0, 10.0, 5.0, 2.5),
        **more,
    }
    return Trial(id=name, losses=tuple(losses), best=best, ended=ended, **values)


TRIALS = (
    trial("001", [9.0, 3.0, 2.0]),
    trial("002", [9.0, 4.0], RUNG, params={LR: 1e-5, BATCH: 8, "training.lr_schedule": "wsd"}),
    trial("003", [9.0, 5.0, 5.5], PATIENCE, params={LR: 1e-3, BATCH: 32}),
    trial("004", [9.0, 3.0], DONE, shares="001", time=None),
    trial("005", [9.0, 3.5, 2.5], repeats="001"),
)
DATA = ReportData(
    name="night",
    ended=True,
    summary=(),
    cost=(),
    columns=(),
    rows=(),
    trials=TRIALS,
    rungs=(100,),
    baselines={"controls": 3.2, "mean_of_controls": 7.0},
    progress=(Moment(0.1, 9.0), Moment(1.0, 3.0), Moment(2.0, 2.0), Moment(4.0, 2.0)),
    found=Moment(2.0, 2.0),
    axes=AXES,
    importance={LR: 0.7, BATCH: 0.2, "training.lr_schedule": 0.1},
)


def lines(axes: Axes) -> dict[str, tuple[list[float], list[float]]]:
    named = {line.get_label(): line for line in axes.get_lines()}
    return {
        name: (list(line.get_xdata()), list(line.get_ydata()))
        for name, line in named.items()
        if not name.startswith("_")
    }


def texts(figure: Figure) -> list[str]:
    axes = figure.axes[0]
    legend = [text.get_text() for box in figure.legends for text in box.get_texts()]
    return [text.get_text().strip() for text in axes.texts] + legend


def markers(axes: Axes) -> set[tuple[str, float, float]]:
    return {
        (line.get_marker(), float(line.get_xdata()[0]), float(line.get_ydata()[0]))
        for line in axes.get_lines()
        if line.get_marker() not in ("None", None, "")
    }


def test_learning_curves_hold_each_training_once_and_how_every_trial_ended() -> None:
    figure = learning_curves(DATA)
    (axes,) = figure.axes
    drawn = lines(axes)
    assert set(drawn) == {"001", "002", "003", "005"}  # 004 is the beginning of 001
    assert drawn["001"] == ([0, 100, 200], [9.0, 3.0, 2.0])
    assert markers(axes) == {
        (MARKERS[DONE], 200.0, 2.0),
        (MARKERS[RUNG], 100.0, 4.0),
        (MARKERS[PATIENCE], 200.0, 5.5),
        (MARKERS[DONE], 100.0, 3.0),
        (MARKERS[DONE], 200.0, 2.5),
    }
    shown = texts(figure)
    assert {"rung 100", "controls 3.2", "mean_of_controls 7"} <= set(shown)
    assert {DONE, RUNG, PATIENCE, "repeats of finalists, other seeds"} <= set(shown)
    assert "001, best: lr=001" in shown
    vertical = [line for line in axes.get_lines() if list(line.get_xdata()) == [100, 100]]
    assert [line.get_linestyle() for line in vertical] == ["--"]


def test_of_many_curves_the_best_five_have_a_colour_and_the_best_is_the_widest() -> None:
    many = [trial(f"{k:03d}", [9.0, 2.0 + 0.01 * k]) for k in range(200)]
    (axes,) = learning_curves(replace(DATA, trials=tuple(many))).axes
    curves = {line.get_label(): line for line in axes.get_lines() if line.get_label()[0] != "_"}
    assert len(curves) == 200
    coloured = {name: c.get_color() for name, c in curves.items() if c.get_color() != GREY}
    assert coloured == dict(zip(sorted(curves), COLOURS, strict=False))
    assert max(curves, key=lambda name: curves[name].get_linewidth()) == "000"


def test_an_untrained_head_and_a_divergence_do_not_take_the_height() -> None:
    quiet = [trial(f"{k:03d}", [500.0, *([2.0 + 0.1 * k] * 20)]) for k in range(5)]
    wild = trial("009", [500.0, 3.0, 90_000.0])
    (axes,) = learning_curves(replace(DATA, trials=(*quiet, wild))).axes
    assert axes.get_ylim()[1] < 10
    assert axes.get_yscale() == "linear"
    tops = [y for _, x, y in markers(axes) if x == 200.0]
    assert tops == [7.0]  # at the upper edge, where it is seen


@pytest.mark.parametrize(("high", "scale"), [(4.0, "linear"), (400.0, "log")])
def test_losses_over_decades_are_on_a_log_axis(high: float, scale: str) -> None:
    one = trial("001", [high, high, 2.0, 2.0])
    (axes,) = learning_curves(replace(DATA, trials=(one,), baselines={})).axes
    assert axes.get_yscale() == scale


def test_names_of_close_baselines_and_rungs_lie_apart() -> None:
    close = replace(DATA, baselines={"a": 3.0, "b": 3.001, "c": 3.002}, rungs=(10, 12, 20, 40, 80))
    figure = learning_curves(close)
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    names = [text.get_text().strip() for text in figure.axes[0].texts]
    levels = [box for box, name in zip(boxes, names, strict=True) if "rung" not in name]
    assert len(levels) == 3
    for first, second in pairwise(levels):
        assert first.y1 <= second.y0 + 1
    assert [name for name in names if "rung" in name] == [
        "rung 10",
        "rung 20",
        "rung 40",
        "rung 80",
    ]


def test_the_best_so_far_is_a_staircase_with_the_winner_on_it() -> None:
    figure = best_so_far(DATA)
    (axes,) = figure.axes
    drawn = lines(axes)
    assert drawn["best so far"] == ([0.1, 1.0, 2.0, 4.0], [9.0, 3.0, 2.0, 2.0])
    assert drawn["winner"] == ([2.0], [2.0])
    assert "001 reaches 2\nafter 50 % of the GPU-hours" in texts(figure)
    assert "controls 3.2" in texts(figure)  # the best baseline alone
    assert "mean_of_controls 7" not in texts(figure)
    assert axes.get_xlabel() == "GPU-hours of training, over all trials"


def test_the_fall_from_an_untrained_head_does_not_take_the_height() -> None:
    fall = (Moment(0.001, 900.0), *DATA.progress[1:])
    (axes,) = best_so_far(replace(DATA, progress=fall)).axes
    assert axes.get_ylim()[1] < 5


def test_parallel_coordinates_place_each_trial_on_each_axis() -> None:
    figure = parallel_coordinates(DATA)
    axes, bar = figure.axes
    drawn = lines(axes)
    assert set(drawn) == {"001", "002", "003", "004"}
    assert drawn["001"][1][0] == pytest.approx(0.5)  # 1e-4 is half way from 1e-5 to 1e-3
    assert drawn["002"][1][:2] == pytest.approx([0.0, 0.0], abs=0.05)
    assert drawn["003"][1][1] == pytest.approx(1.0, abs=0.05)
    assert drawn["003"][1][2] < 0  # it has no such key
    assert {"1e-5", "1e-4", "0.001", "8", "16", "32", "constant", "wsd"} <= set(texts(figure))
    assert "not searched" in texts(figure)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["lr", "batch", "lr_schedule"]
    colours = {line.get_label(): to_hex(line.get_color()) for line in axes.get_lines()}
    # From the best to the worst tenth, so that one poor trial leaves colours to the others.
    assert colours["001"] == to_hex(colormaps["viridis"](0.0))
    assert colours["003"] == to_hex(colormaps["viridis"](1.0))
    assert "val_loss" in bar.get_ylabel()


def test_importance_is_a_bar_a_key() -> None:
    figure = parameter_importance(DATA)
    widths = [bar.get_width() for bar in figure.axes[0].patches]
    assert widths == pytest.approx([10, 20, 70])
    assert texts(figure) == ["10 %", "20 %", "70 %"]


def test_the_heat_map_holds_the_best_of_each_cell() -> None:
    pair = heat_map_axes(DATA)
    assert pair is not None
    assert [axis.key for axis in pair] == [LR, BATCH]
    figure = heat_map(DATA, *pair)
    cells = figure.axes[0].collections[0].get_array()
    assert cells.shape == (3, 6)
    found = {(r, c): float(cells[r, c]) for r, c in np.argwhere(~cells.mask)}
    assert found == {(1, 3): 2.0, (0, 0): 4.0, (2, 5): 5.0}
    assert set(texts(figure)) == {"2\nn=2", "4\nn=1", "5\nn=1"}
    bounds = [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
    assert (bounds[0], bounds[3], bounds[6]) == ("1e-5", "1e-4", "0.001")


def test_the_heat_map_takes_the_most_important_numbers_where_lr_is_not_searched() -> None:
    width, depth = Axis("w", "w", (1, 2)), Axis("d", "d", low=0.0, high=1.0)
    word = Axis("s", "s", ("a", "b"))
    data = replace(DATA, axes=(AXES[1], width, depth, word), importance={"d": 0.6, "w": 0.1})
    assert heat_map_axes(data) == (AXES[1], depth)
    assert heat_map_axes(replace(data, axes=(width, word))) is None


def test_step_times_stack_to_the_whole() -> None:
    figure = step_times(DATA)
    (axes,) = figure.axes
    widths = np.array([[bar.get_width() for bar in bars] for bars in axes.containers])
    assert widths.shape == (4, 4)  # parts, trials that have been trained themselves
    assert widths.sum(0) == pytest.approx([95.0] * 4)
    assert axes.get_xlabel() == "time of a trial (seconds)"
    assert "2.5 steps/s" in texts(figure)
    hours = replace(DATA, trials=(replace(TRIALS[0], time=TimeSpent(7200.0, 0, 0, 3600.0, 1.0)),))
    assert step_times(hours).axes[0].get_xlabel() == "time of a trial (hours)"


def test_no_text_is_small_or_outside_of_its_figure() -> None:
    long = tuple(replace(one, label=40 * "long ") for one in TRIALS)
    for data in (DATA, replace(DATA, trials=long, name=20 * "n")):
        pair = heat_map_axes(data)
        assert pair is not None
        drawn = [draw(data) for draw in (learning_curves, best_so_far, step_times)]
        drawn += [parallel_coordinates(data), parameter_importance(data), heat_map(data, *pair)]
        for figure in drawn:
            figure.draw_without_rendering()
            drawn_on = figure.get_tightbbox()  # inches
            width, height = figure.get_size_inches()
            assert min(drawn_on.x0, drawn_on.y0) >= -0.01
            assert drawn_on.x1 <= width + 0.01
            assert drawn_on.y1 <= height + 0.01
            texts_of = figure.findobj(lambda artist: hasattr(artist, "get_fontsize"))
            assert min(text.get_fontsize() for text in texts_of if text.get_text()) >= 9


def test_what_cannot_be_drawn_is_left_out_and_says_why() -> None:
    alone = replace(DATA, trials=TRIALS[:1], axes=(), importance={}, progress=DATA.progress[:1])
    shown = {one.name: one for one in draw_all(replace(alone, importance_missing="one trial"))}
    assert shown["learning-curves"].png is not None
    assert shown["step-times"].png is not None
    left_out = {name: one.why_not for name, one in shown.items() if one.png is None}
    assert left_out == {
        "best-so-far": "fewer than two validations",
        "parallel-coordinates": "fewer than two keys are searched",
        "parameter-importance": "one trial",
        "heat-map": "fewer than two keys of numbers are searched",
    }


@pytest.mark.parametrize(
    ("value", "shown"),
    [(1e-4, "1e-4"), (2.5e-5, "2.5e-5"), (0.25, "0.25"), (16, "16"), (40_000, "40k"), (0, "0"),
     (12_345, "12,345"), (None, "none"), (True, "True"), ("wsd", "wsd"), (math.pi, "3.14")],
)  # fmt: skip
def test_numbers_are_short(value: object, shown: str) -> None:
    assert number(value) == shown


def test_names_are_no_formulas() -> None:
    """To matplotlib `$_$` is one, and a wrong one."""
    schedules = Axis("training.lr_schedule", "$_$", ("$^$", "wsd"))
    assert all(
        one.png for one in draw_all(replace(DATA, name="cost$_$", axes=(*AXES[:2], schedules)))
    )
