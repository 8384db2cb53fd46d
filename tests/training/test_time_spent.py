"""Report lines with known times, and what is read from them."""

import math
import time
from pathlib import Path

import pytest
from helpers.tiny_data import MeanEncoder, write_tiny

from sesttune.config.load import load_config
from sesttune.data.trial_data import prepare
from sesttune.training.records import read_metrics
from sesttune.training.time_spent import Interval, intervals
from sesttune.training.trial import run_trial


def line(step: int, elapsed: float, rate: float, startup: float = 3.0) -> dict[str, float]:
    times = {"steps_per_s": rate, "elapsed_s": elapsed, "data_wait_frac": 0.2}
    return {"step": step, "startup_s": math.nan if step == 0 else startup, **times}


def test_an_interval_is_computing_waiting_and_validating() -> None:
    found = intervals([line(0, 0.5, 0.0), line(100, 12.5, 10.0), line(200, 24.0, 10.0)])
    assert found[0] == Interval(0.5)
    # The first validation is before the first step, so it is start-up: 12 s, 10 of them steps.
    assert found[1] == Interval(12.0, 8.0, 2.0, 0.0, 3.0)
    assert found[2] == Interval(11.5, 8.0, 2.0, 1.5, 0.0)


@pytest.mark.parametrize("before", [200.0, 10.5])
def test_a_resume_counts_from_zero_even_where_the_clock_seems_to_go_on(before: float) -> None:
    lines = [line(100, before, 10.0), line(200, 11.0, 10.0, 7.0), line(300, 22.0, 10.0, 7.0)]
    found = intervals(lines)
    assert [spent.elapsed_s for spent in found] == [before, 11.0, 11.0]
    assert [spent.startup_s for spent in found] == [3.0, 7.0, 0.0]
    assert [spent.validating_s for spent in found] == [0.0, 0.0, 1.0]


def test_a_trial_asked_for_by_a_clock_that_is_ahead_has_not_started_before_it(
    tmp_path: Path,
) -> None:
    config = load_config(base=write_tiny(tmp_path).settings())
    trial = tmp_path / "trial"
    trial.mkdir()
    run_trial(config, prepare(config, MeanEncoder), trial, started=time.time() + 3600)
    assert read_metrics(trial)[-1]["startup_s"] == 0
