"""What a sweep makes of an earlier one's results, from hand-written folders."""

import json

import pytest
from helpers.ledgers import CONFIG
from helpers.small_sweeps import begin, choice

from sesttune.config.load import with_point
from sesttune.search.ledger import TrialLedger
from sesttune.search.recorded import RecordedCurves
from sesttune.search.rules import rules_of
from sesttune.search.schedule import Schedule
from sesttune.search.searcher import Observed, Suggester
from sesttune.search.space_file import parse_space
from sesttune.search.warm_start import read_earlier
from sesttune.training.records import (
    SCHEDULE,
    TrialRecord,
    append_metrics,
    list_trials,
    trial_folder,
    write_trial,
)

RATES = (1e-2, 1e-3, 1e-4, 1e-5)
SPACE = parse_space(
    {"searcher": "grid", "num_trials": 4, "parameters": {"training.lr": choice(*RATES)}}, "s.yaml"
)


def trained(sweep, number, status, reason, last, loss, **schedule):
    """A trial at the rate `number`, validated every ten steps until `last`, then at `loss`."""
    folder = trial_folder(sweep, f"00{number + 1}")
    write_trial(TrialRecord(folder.name, folder, {"training.lr": RATES[number]}, status, reason))
    (folder / SCHEDULE).write_text(json.dumps(schedule))
    for step in range(0, last + 1, 10):
        value = loss if step == last else 9.0
        line = {"step": step, "val_loss": value, "best_val_loss": value, "best_step": step}
        append_metrics(folder, {**line, "time": step})
    folder.joinpath("checkpoints").mkdir()
    folder.joinpath("checkpoints", "last.ckpt").write_text("")
    return folder


@pytest.fixture
def quick(tmp_path):
    """An earlier sweep of 50 steps, without trials; `later` are settings that go on with it."""
    folder = begin(tmp_path / "quick", with_point(CONFIG, {"training.max_steps": 50}))
    return folder


def later(**changes):
    named = {key.replace("__", "."): value for key, value in changes.items()}
    point = {"training.max_steps": 200, "sweep.warm_start": "quick"}
    return with_point(CONFIG, point | named)


def learnt(tmp_path, config):
    found = read_earlier(begin(tmp_path / "later", config), config, SPACE)[1]
    return {RATES.index(seen.params["training.lr"]): (seen.state, seen.value) for seen in found}


def test_the_result_of_a_shorter_training_is_none_of_a_longer_one(quick, tmp_path):
    trained(quick, 0, "done", "max_steps", 50, 3.0)
    trained(quick, 1, "stopped", "patience", 50, 4.0)
    trained(quick, 2, "failed", "nan", 30, 5.0)
    trained(quick, 3, "stopped", "asha: rung 50, ...", 50, 6.0)
    assert learnt(tmp_path, later()) == {
        0: ("shorter", 3.0),
        1: ("complete", 4.0),  # it would end there again
        2: ("diverged", 5.0),
        3: ("pruned", 6.0),
    }


def test_it_is_one_where_the_budget_is_the_same(quick, tmp_path):
    trained(quick, 0, "done", "max_steps", 50, 3.0)
    assert learnt(tmp_path, later(training__max_steps=50)) == {0: ("complete", 3.0)}


def test_a_trial_that_failed_or_was_cut_before_a_rung_and_a_repeat_tell_nothing(quick, tmp_path):
    trained(quick, 0, "failed", "error: lost", 50, 3.0)
    trained(quick, 1, "stopped", "budget: sweep.gpu_hours=1 are spent", 40, 4.0)
    trained(quick, 2, "stopped", "budget: sweep.gpu_hours=1 are spent", 50, 5.0)
    trained(quick, 3, "done", "max_steps", 50, 2.0, repeats="001")
    assert learnt(tmp_path, later()) == {2: ("shorter", 5.0)}


def test_a_grid_runs_every_point_that_was_not_trained_as_long_before(quick, tmp_path):
    for number in range(4):
        trained(quick, number, "done", "max_steps", 50, 1.0 + number)
    config = later(sweep__asha=False)
    ledger = TrialLedger(begin(tmp_path / "later", config), config, SPACE)
    jobs = [ledger.next() for _ in range(5)]
    assert [job and job.point["training.lr"] for job in jobs[:2]] == [1e-2, 1e-3], "the best half"
    assert {job.point["training.lr"] for job in jobs[:4]} == set(RATES)
    assert [job.continues for job in jobs[:4]] == [
        f"quick/00{1 + RATES.index(job.point['training.lr'])}" for job in jobs[:4]
    ]
    assert jobs[4] is None


@pytest.mark.parametrize(
    ("changes", "goes_on"),
    [
        ({}, False),
        ({"training__patience": 4}, False),
        ({"training__patience": 6}, True),
        ({"training__early_stopping": False}, True),
    ],
)
def test_a_training_that_lost_patience_goes_on_with_more_of_it(quick, tmp_path, changes, goes_on):
    trained(quick, 0, "stopped", "patience", 50, 3.0)
    config = later(sweep__asha=False, **changes)
    ledger = TrialLedger(begin(tmp_path / "later", config), config, SPACE)
    ledger.next()
    first = list_trials(ledger.folder)[0]
    assert first.params["training.lr"] == RATES[0]
    assert first.stop_reason == (None if goes_on else "patience")


def test_a_shorter_training_is_told_as_one_that_was_stopped():
    """So TPE ranks it after all that were trained for longer."""
    seen = Observed({"training.lr": RATES[0]}, "shorter", 3.0, 50)
    told = Suggester(SPACE, "tpe", 0, 4)._told(seen, None)
    assert (told.state.name, told.intermediate_values) == ("PRUNED", {50: 3.0})


def test_what_this_sweep_has_found_of_a_point_replaces_what_the_earlier_one_had(quick, tmp_path):
    class Heard(Suggester):
        def ask(self, history):
            self.heard = [(seen.state, seen.value) for seen in history]
            return super().ask(history)

    trained(quick, 0, "done", "max_steps", 50, 3.0)
    config = later(sweep__asha=False)
    folder = begin(tmp_path / "later", config)
    searcher = Heard(SPACE, "tpe", 0, 4)
    schedule = Schedule(
        rules_of(config, SPACE),
        searcher,
        RecordedCurves(folder, config),
        *read_earlier(folder, config, SPACE),
    )
    first = schedule.next()
    schedule.next()
    assert searcher.heard == [("shorter", 3.0), ("running", 3.0)]
    schedule.report(first.id, 200, 2.0)
    schedule.end(first.id, "max_steps")
    schedule.next()
    assert searcher.heard[0] == ("complete", 2.0)
    assert ("shorter", 3.0) not in searcher.heard
