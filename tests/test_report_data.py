"""What a report reads of run folders that are not the usual ones."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from helpers.run_folder import write_curve, write_sweep

from sesttune.report_data import read_report
from sesttune.reporting.values import FAILED, LIMIT, OPEN, ReportData
from sesttune.run_setup import open_run
from sesttune.search.outcome import read_outcome

LR, BATCH, STEPS = "training.lr", "training.batch_size", "training.max_steps"


def point(lr: float, steps: int = 400) -> dict[str, Any]:
    return {LR: lr, BATCH: 8, STEPS: steps}


def write(folder: Path, parameters: Mapping[str, Any]) -> Path:
    space = {"searcher": "gp", "num_trials": 4, "parameters": dict(parameters), "constraints": []}
    return write_sweep(folder, space)


def read(folder: Path) -> ReportData:
    known = open_run(str(folder.parent), folder.name)
    return read_report(known, read_outcome(folder, known.config), ended=True)


def test_a_trial_that_a_limit_of_the_sweep_stopped_has_not_failed(tmp_path: Path) -> None:
    folder = write(tmp_path / "night", {LR: {"type": "choice", "values": [1e-4]}})
    spent = "budget: sweep.time_budget=8h is spent"
    for name, reason in (("001", spent), ("002", "error: lost"), ("003", None)):
        write_curve(folder, name, point(1e-4), [9.0, 4.0], reason)
    assert {t.id: t.ended for t in read(folder).trials} == {
        "001": LIMIT,
        "002": FAILED,
        "003": OPEN,
    }


def test_choices_come_in_order_with_those_tried_elsewhere_and_one_value_is_no_axis(
    tmp_path: Path,
) -> None:
    parameters = {
        LR: {"type": "choice", "values": [3e-4, 1e-4]},
        BATCH: {"type": "choice", "values": [8]},
        STEPS: {"type": "int", "low": 100, "high": 300, "quantum": 100},
    }
    folder = write(tmp_path / "night", parameters)
    write_curve(folder, "001", point(1e-4), [9.0, 4.0])
    write_curve(folder, "002", point(2e-4, steps=300), [9.0, 4.0])
    data = read(folder)
    seen = [(axis.name, axis.values, axis.low, axis.high) for axis in data.axes]
    assert seen == [("lr", (1e-4, 2e-4, 3e-4), 0.0, 1.0), ("steps", (), 100, 400)]
    assert len(data.cost) == 1  # nothing was repeated
