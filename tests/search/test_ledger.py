from dataclasses import replace

import pytest
from helpers.ledgers import CONFIG, folder, say

from sesttune.config.load import load_config
from sesttune.errors import UserError
from sesttune.search.ledger import TrialLedger
from sesttune.search.recorded import try_again
from sesttune.search.rules import grace_period, rules_of, trial_count
from sesttune.search.space_file import parse_space
from sesttune.training.records import (
    read_trial,
    update_trial,
    write_trial,
)

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


def test_the_grace_period_is_patience_and_a_grid_runs_all_its_points():
    assert grace_period(load_config()) == 5_000
    assert grace_period(load_config(["sweep.grace_period=70"])) == 70
    assert trial_count(CONFIG, SPACE) == 6
    assert trial_count(load_config(["sweep.num_trials=3"]), SPACE) == 3
    assert trial_count(load_config(["sweep.num_trials=1"]), GRID) == 3
    assert trial_count(load_config(["sweep.searcher=random"]), GRID) == 2


def test_trials_are_handed_out_once_and_written_before_they_run(tmp_path):
    ledger = TrialLedger(tmp_path, CONFIG, SPACE)
    jobs = [ledger.next() for _ in range(6)]
    assert [job.id for job in jobs] == ["001", "002", "003", "004", "005", "006"]
    assert all(read_trial(folder(ledger, job)).params == job.point for job in jobs)
    assert all(job.max_steps == job.point["training.max_steps"] for job in jobs)
    assert len({job.point["training.lr"] for job in jobs}) == 6
    assert ledger.next() is None
    assert not ledger.done, "they run"


def test_a_new_ledger_hands_out_unfinished_trials_first_then_what_the_old_one_would_have(tmp_path):
    def run(where, killed):
        ledger = TrialLedger(where, CONFIG, SPACE)
        for number in range(3):
            job = ledger.next()
            say(ledger, job, 10, 1.0 + number, time=number)
            update_trial(folder(ledger, job), "running", None)
            ledger.report(job.id, 10, 1.0 + number)
            if number != 1:
                update_trial(folder(ledger, job), "done", "max_steps")
                ledger.end(job.id)
        if killed:
            ledger = TrialLedger(where, CONFIG, SPACE)
            again = ledger.next()
            assert again.id == "002"
            assert again.point == read_trial(where / "trials" / "002").params
        return ledger.next().point

    assert run(tmp_path / "whole", False) == run(tmp_path / "killed", True)


def test_a_trial_that_the_engine_gave_up_before_it_began_is_handed_out_again(tmp_path):
    ledger = TrialLedger(tmp_path, CONFIG, SPACE)
    lost, other = ledger.next(), ledger.next()
    ledger.put_back(lost.id)
    assert not ledger.done
    again = ledger.next()
    assert (again.id, again.point) == (lost.id, lost.point)
    assert ledger.next().id not in (lost.id, other.id)


def test_rungs_survive_a_new_ledger(tmp_path):
    ledger = TrialLedger(tmp_path, CONFIG, SPACE)
    first, poor, good = ledger.next(), ledger.next(), ledger.next()
    say(ledger, first, 50, 1.0, time=1)
    assert ledger.report(first.id, 50, 1.0), "there is nothing to compare it with yet"
    resumed = TrialLedger(tmp_path, CONFIG, SPACE)
    assert resumed.report(poor.id, 50, 2.0)
    resumed.end(poor.id)
    ended = resumed.take_ended()
    assert [record.id for record in ended] == [first.id, poor.id]
    assert {record.stop_reason.split(",")[0] for record in ended} == {"asha: rung 50"}
    assert not resumed.report(good.id, 50, 0.5), "the best of three"


def test_a_stop_decided_before_the_kill_is_carried_out_by_the_new_ledger(tmp_path):
    ledger = TrialLedger(tmp_path, CONFIG, SPACE)
    good, poor = ledger.next(), ledger.next()
    say(ledger, good, 50, 1.0, time=1)
    say(ledger, poor, 50, 2.0, time=2)
    resumed = TrialLedger(tmp_path, CONFIG, SPACE)
    assert read_trial(folder(ledger, poor)).stop_reason.startswith("asha: rung 50")
    assert resumed.next().id == good.id, "the better of two goes on, before anything new"
    assert resumed.next().id == "003"


def test_a_stopped_trial_goes_on_when_it_passes_by_later_results(tmp_path):
    ledger = TrialLedger(tmp_path, CONFIG, SPACE)
    first, second = ledger.next(), ledger.next()
    update_trial(folder(ledger, first), "running", None)
    say(ledger, first, 50, 1.0, time=1)
    assert ledger.report(first.id, 50, 1.0)
    ledger.end(first.id)
    assert read_trial(folder(ledger, first)).stop_reason.endswith(
        "waits for others to be compared with"
    )
    third = ledger.next()
    assert third.id == "003", "a free slot does not wait"
    say(ledger, second, 50, 2.0, time=2)
    assert ledger.report(second.id, 50, 2.0)
    ledger.end(second.id)
    assert ledger.next().id == first.id
    assert not read_trial(folder(ledger, first)).finished
    # The same after a kill: it is under way, and is not stopped again where it stands.
    resumed = TrialLedger(tmp_path, CONFIG, SPACE)
    assert resumed.next().id in (first.id, third.id)
    assert not read_trial(folder(ledger, first)).finished


def test_stopped_is_stopped_on_request_and_the_first_goes_on_uncompared(tmp_path):
    config = replace(CONFIG, sweep=replace(CONFIG.sweep, continue_stopped=False))
    ledger = TrialLedger(tmp_path, config, SPACE)
    first, poor = ledger.next(), ledger.next()
    assert not ledger.report(first.id, 50, 1.0)
    assert ledger.report(poor.id, 50, 2.0)
    ledger.end(poor.id)
    for number in range(3, 7):
        assert ledger.next().id == f"{number:03d}"
    assert ledger.next() is None


def test_nothing_is_stopped_without_asha(tmp_path):
    config = replace(CONFIG, sweep=replace(CONFIG.sweep, asha=False))
    ledger = TrialLedger(tmp_path, config, SPACE)
    good, poor = ledger.next(), ledger.next()
    assert not ledger.report(good.id, 50, 1.0)
    assert not ledger.report(poor.id, 50, 2.0)


def test_rungs_lie_where_they_are_told_to(tmp_path):
    config = replace(CONFIG, sweep=replace(CONFIG.sweep, rungs=[30, 90, 400]))
    assert rules_of(config, SPACE).rungs == (30, 90), "none where no trial goes beyond it"
    assert rules_of(CONFIG, SPACE).rungs == (50, 100, 200)


def test_ends_are_settled_once_with_their_reason(tmp_path):
    ledger = TrialLedger(tmp_path, CONFIG, SPACE)
    done, lost, silent = ledger.next(), ledger.next(), ledger.next()
    update_trial(folder(ledger, done), "done", "max_steps")
    ledger.end(done.id, "killed")
    ledger.end(lost.id, "killed")
    ledger.end(silent.id)
    first, second, third = ledger.take_ended()
    assert first.stop_reason == "max_steps", "the worker's word stands"
    assert second.stop_reason == "error: killed"
    assert third.status == "failed"
    assert ledger.take_ended() == []


def test_a_stop_overwritten_by_its_worker_is_written_again(tmp_path):
    ledger = TrialLedger(tmp_path, CONFIG, SPACE)
    good, poor = ledger.next(), ledger.next()
    assert ledger.report(poor.id, 50, 2.0)
    ledger.end(poor.id)
    (ended,) = ledger.take_ended()
    write_trial(replace(ended, status="running"))
    ledger.settle()
    assert read_trial(folder(ledger, poor)).status == "stopped"
    assert read_trial(folder(ledger, good)).status == "pending", "only stopped trials are touched"


def test_an_interrupted_sweep_stops_each_trial_at_its_next_validation_and_can_go_on(tmp_path):
    ledger = TrialLedger(tmp_path, CONFIG, SPACE)
    job = ledger.next()
    ledger.interrupt()
    assert ledger.next() is None
    assert ledger.report(job.id, 10, 1.0)
    ledger.end(job.id)
    assert ledger.take_ended() == [], "it has not ended, only paused"
    assert (ledger.done, ledger.closed) == (True, "interrupted")
    ledger.settle()
    assert not read_trial(folder(ledger, job)).finished
    assert TrialLedger(tmp_path, CONFIG, SPACE).next().id == job.id


def test_a_target_that_is_reached_ends_the_sweep_and_more_is_done_on_resume_without_it(tmp_path):
    config = replace(CONFIG, sweep=replace(CONFIG.sweep, target_val_loss=0.5))
    ledger = TrialLedger(tmp_path, config, SPACE)
    first, second = ledger.next(), ledger.next()
    assert not ledger.report(second.id, 10, 0.6)
    assert not ledger.report(first.id, 10, 0.5)
    assert ledger.next() is None
    assert ledger.report(second.id, 20, 0.55)
    ledger.end(second.id)
    (ended,) = ledger.take_ended()
    assert ended.stop_reason == "budget: val_loss 0.5 reached sweep.target_val_loss"
    say(ledger, first, 10, 0.5, time=1)
    resumed = TrialLedger(tmp_path, config, SPACE)
    resumed.settle()
    left = read_trial(folder(ledger, first))
    assert left.stop_reason == ended.stop_reason, "it does not wait for a GPU it will never get"
    try_again(tmp_path)
    assert TrialLedger(tmp_path, CONFIG, SPACE).next().id == first.id


def test_a_space_that_the_settings_cannot_take_is_refused_before_a_folder_is_made(tmp_path):
    space = parse_space(
        {"parameters": {"model.kwargs.n_heads": {"type": "choice", "values": [5, 8]}}}, "s.yaml"
    )
    with pytest.raises(UserError, match="search space s.yaml"):
        TrialLedger(tmp_path, CONFIG, space)
    assert list(tmp_path.iterdir()) == []


def test_after_a_kill_what_had_a_gpu_comes_before_what_only_waited_for_one(tmp_path):
    ledger = TrialLedger(tmp_path, CONFIG, SPACE)
    waited, ran = ledger.next(), ledger.next()
    update_trial(folder(ledger, ran), "running", None)
    resumed = TrialLedger(tmp_path, CONFIG, SPACE)
    assert [resumed.next().id, resumed.next().id] == [ran.id, waited.id]


def test_what_closes_a_sweep_first_is_why_it_is_closed(tmp_path):
    config = replace(CONFIG, sweep=replace(CONFIG.sweep, target_val_loss=0.5))
    ledger = TrialLedger(tmp_path, config, SPACE)
    job = ledger.next()
    ledger.interrupt()
    ledger.report(job.id, 10, 0.4)
    assert ledger.closed == "interrupted"
