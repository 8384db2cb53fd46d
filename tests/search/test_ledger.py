from dataclasses import replace

import pytest

from sesttune.config.load import load_config
from sesttune.errors import UserError
from sesttune.search.ledger import TrialLedger, grace_period, trial_count
from sesttune.search.space import parse_space
from sesttune.training.records import append_metrics, read_trial, update_trial, write_trial

SPACE = parse_space(
    {
        "num_trials": 6,
        "parameters": {
            "training.lr": {"type": "loguniform", "low": 1e-5, "high": 1e-1},
            "training.max_steps": {"type": "choice", "values": [200, 400]},
        },
    },
    "s.yaml",
)
GRID = parse_space(
    {
        "searcher": "grid",
        "num_trials": 2,
        "parameters": {"training.batch_size": {"type": "choice", "values": [8, 16, 32]}},
    },
    "g.yaml",
)
CONFIG = load_config(
    ["training.val_check_interval=10", "training.patience=5", "sweep.reduction_factor=2"]
)


def say(record, step, loss, time):
    line = {"step": step, "train_loss": loss, "val_loss": loss, "best_val_loss": loss}
    append_metrics(record.folder, {**line, "best_step": step, "time": time})


def test_the_grace_period_is_patience_and_a_grid_runs_all_its_points():
    assert grace_period(load_config()) == 5_000
    assert grace_period(load_config(["sweep.grace_period=70"])) == 70
    assert trial_count(CONFIG, SPACE) == 6
    assert trial_count(load_config(["sweep.num_trials=3"]), SPACE) == 3
    assert trial_count(load_config(["sweep.num_trials=1"]), GRID) == 3
    assert trial_count(load_config(["sweep.searcher=random"]), GRID) == 2


def test_trials_are_handed_out_once_and_written_before_they_run(tmp_path):
    ledger = TrialLedger(tmp_path, CONFIG, SPACE)
    records = [ledger.next() for _ in range(6)]
    assert [record.id for record in records] == ["001", "002", "003", "004", "005", "006"]
    assert all(read_trial(record.folder) == record for record in records)
    assert len({record.params["training.lr"] for record in records}) == 6
    assert ledger.next() is None


def test_a_new_ledger_hands_out_unfinished_trials_first_then_what_the_old_one_would_have(tmp_path):
    def run(folder, killed):
        ledger = TrialLedger(folder, CONFIG, SPACE)
        for number in range(3):
            record = ledger.next()
            say(record, 10, 1.0 + number, time=number)
            update_trial(record.folder, "running" if number == 1 else "done", "max_steps")
        if killed:
            ledger = TrialLedger(folder, CONFIG, SPACE)
            again = ledger.next()
            assert again.id == "002"
            assert again.params == read_trial(folder / "trials" / "002").params
        return ledger.next().params

    assert run(tmp_path / "whole", False) == run(tmp_path / "killed", True)


def test_rungs_survive_a_new_ledger(tmp_path):
    ledger = TrialLedger(tmp_path, CONFIG, SPACE)
    good, poor = ledger.next(), ledger.next()
    assert not ledger.report(good, 50, 1.0)
    say(good, 50, 1.0, time=1)
    resumed = TrialLedger(tmp_path, CONFIG, SPACE)
    assert resumed.report(poor, 50, 2.0)
    ended = resumed.end(poor)
    assert (ended.status, ended.stop_reason.split(",")[0]) == ("stopped", "asha: rung 50")


def test_a_stop_decided_before_the_kill_is_carried_out_by_the_new_ledger(tmp_path):
    ledger = TrialLedger(tmp_path, CONFIG, SPACE)
    good, poor = ledger.next(), ledger.next()
    say(good, 50, 1.0, time=1)
    say(poor, 50, 2.0, time=2)
    resumed = TrialLedger(tmp_path, CONFIG, SPACE)
    assert read_trial(poor.folder).stop_reason.startswith("asha: rung 50")
    assert resumed.next().id == good.id
    assert resumed.next().id == "003"


def test_nothing_is_stopped_without_asha(tmp_path):
    config = replace(CONFIG, sweep=replace(CONFIG.sweep, asha=False))
    ledger = TrialLedger(tmp_path, config, SPACE)
    good, poor = ledger.next(), ledger.next()
    assert not ledger.report(good, 50, 1.0)
    assert not ledger.report(poor, 50, 2.0)


def test_ends_are_settled_once_with_their_reason(tmp_path):
    ledger = TrialLedger(tmp_path, CONFIG, SPACE)
    done, lost, silent = ledger.next(), ledger.next(), ledger.next()
    update_trial(done.folder, "done", "max_steps")
    assert ledger.end(done, "killed").stop_reason == "max_steps", "the worker's word stands"
    assert ledger.end(lost, "killed").stop_reason == "error: killed"
    assert ledger.end(silent).status == "failed"


def test_a_stop_overwritten_by_its_worker_is_written_again(tmp_path):
    ledger = TrialLedger(tmp_path, CONFIG, SPACE)
    good, poor = ledger.next(), ledger.next()
    ledger.report(good, 50, 1.0)
    assert ledger.report(poor, 50, 2.0)
    ledger.end(poor)
    write_trial(replace(poor, status="running"))
    ledger.settle()
    assert read_trial(poor.folder).status == "stopped"
    assert read_trial(good.folder).status == "pending", "only stopped trials are touched"


def test_a_space_that_the_settings_cannot_take_is_refused_before_a_folder_is_made(tmp_path):
    space = parse_space(
        {"parameters": {"model.kwargs.n_heads": {"type": "choice", "values": [5, 8]}}}, "s.yaml"
    )
    with pytest.raises(UserError, match="search space s.yaml"):
        TrialLedger(tmp_path, CONFIG, space)
    assert list(tmp_path.iterdir()) == []
