"""Trials that are one training: trained once, handed over, and safe from a kill at any file."""

import contextlib
from dataclasses import replace

import pytest
from helpers.ledgers import CONFIG, folder, say
from helpers.small_sweeps import choice

from sesttune.search.ledger import TrialLedger
from sesttune.search.recorded import read_schedule, write_state
from sesttune.search.space_file import parse_space
from sesttune.training.records import list_trials, read_metrics, update_trial

SHORTEST_FIRST = 16
"""A seed whose random order of three budgets is a rising one."""


@pytest.fixture
def rising(tmp_path):
    """A sweep of one training whose shortest trial comes first, and that trial under way."""
    space = parse_space(
        {
            "searcher": "random",
            "num_trials": 3,
            "parameters": {"training.max_steps": choice(100, 200, 300)},
        },
        "s.yaml",
    )
    config = replace(CONFIG, sweep=replace(CONFIG.sweep, seed=SHORTEST_FIRST))
    ledger = TrialLedger(tmp_path, config, space)
    first = ledger.next()
    assert (first.max_steps, ledger.next()) == (100, None), "the longer ones wait behind it"
    update_trial(folder(ledger, first), "running", None)
    return ledger, first, lambda: TrialLedger(tmp_path, config, space)


def test_a_longer_trial_takes_the_training_of_a_shorter_one_over_where_that_waits(rising, tmp_path):
    ledger, first, again = rising
    checkpoints = folder(ledger, first) / "checkpoints"
    checkpoints.mkdir()
    for name in ("best.ckpt", "last.ckpt", "step=20.ckpt"):
        (checkpoints / name).write_text(name)
    for step in (0, 50):
        say(ledger, first, step, 1 / (1 + step), time=step)
        stop = ledger.report(first.id, step, 1 / (1 + step))
    assert stop, "alone at its rung"
    ledger.end(first.id)
    # The longest trial of the training has it now, with all that was kept of it.
    longest = next(r for r in list_trials(ledger.folder) if r.params["training.max_steps"] == 300)
    assert sorted(path.name for path in longest.checkpoints.iterdir()) == [
        "best.ckpt",
        "last.ckpt",
        "step=20.ckpt",
    ]
    assert list(checkpoints.iterdir()) == [], "handed over, not doubled"
    # Nothing else will come to this rung, so it goes on.
    job = ledger.next()
    assert (job.id, job.max_steps) == (longest.id, 300)
    assert [line["step"] for line in read_metrics(folder(ledger, job))] == [0, 50]
    assert ledger.next() is None
    for resumed in (ledger, again()):
        shares = {r.id: read_schedule(r.folder).get("shares") for r in list_trials(resumed.folder)}
        assert shares == {"001": job.id, "002": job.id, "003": job.id} | {job.id: None}
    resumed.next()
    for step in (100, 200, 300):
        say(ledger, job, step, 1 / (1 + step), time=step)
        resumed.report(job.id, step, 1 / (1 + step))
    update_trial(folder(ledger, job), "done", "max_steps")
    resumed.end(job.id)
    ends = {r.params["training.max_steps"]: r for r in list_trials(tmp_path)}
    assert [ends[steps].status for steps in (100, 200, 300)] == ["done"] * 3
    assert [ends[steps].metrics()[-1]["step"] for steps in (100, 200, 300)] == [100, 200, 300]


def test_a_training_that_failed_before_its_first_validation_is_begun_again_after_a_kill(rising):
    ledger, first, again = rising
    ledger.end(first.id, "killed")
    job = ledger.next()
    assert (job.max_steps, job.continues) == (200, first.id)
    update_trial(folder(ledger, job), "running", None)
    resumed = again()
    assert resumed.next().id == job.id
    assert resumed.next() is None
    say(resumed, job, 0, 1.0, time=1)
    assert not resumed.report(job.id, 0, 1.0)


@pytest.mark.parametrize("writes", range(6))
def test_a_kill_between_the_files_of_a_training_handed_over_trains_nothing_twice(
    rising, monkeypatch, writes
):
    ledger, first, again = rising
    say(ledger, first, 50, 1.0, time=1)
    assert ledger.report(first.id, 50, 1.0)
    left = iter(range(writes))

    def write_or_die(*args):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return write_state(*args)

    monkeypatch.setattr("sesttune.search.ledger.write_state", write_or_die)
    with contextlib.suppress(KeyboardInterrupt):
        ledger.end(first.id)
        ledger.next()
    monkeypatch.undo()
    resumed, trained = again(), []
    while (job := resumed.next()) is not None:
        done = read_metrics(folder(resumed, job))[-1]["step"]
        stop = False
        for step in range(done + 50, job.max_steps + 1, 50):
            trained.append(step)
            say(resumed, job, step, 1 / step, time=step)
            stop = resumed.report(job.id, step, 1 / step)
            if stop:
                break
        if not stop:
            update_trial(folder(resumed, job), "done", "max_steps")
        resumed.end(job.id)
    assert trained == [100, 150, 200, 250, 300]
    ends = {r.params["training.max_steps"]: r for r in list_trials(ledger.folder)}
    assert [(r.status, r.metrics()[-1]["step"]) for _, r in sorted(ends.items())] == [
        ("done", 100),
        ("done", 200),
        ("done", 300),
    ]


def test_trials_of_one_training_are_trained_once_and_each_is_reported(tmp_path):
    space = parse_space(
        {"searcher": "grid", "parameters": {"training.max_steps": choice(100, 200, 300)}}, "s.yaml"
    )
    ledger = TrialLedger(tmp_path, CONFIG, space)
    job = ledger.next()
    assert (job.max_steps, ledger.next()) == (300, None)
    for step in (0, 100, 200, 300):
        say(ledger, job, step, 1 / (1 + step), time=step)
        if ledger.report(job.id, step, 1 / (1 + step)):  # alone at its rung, so it goes on at once
            ledger.end(job.id)
            assert ledger.next().id == job.id
    update_trial(folder(ledger, job), "done", "max_steps")
    ledger.end(job.id)
    last_words = {r.id: r.stop_reason for r in ledger.take_ended()}
    assert last_words == dict.fromkeys(("001", "002", "003"), "max_steps")
    ends = {r.params["training.max_steps"]: r for r in list_trials(tmp_path)}
    assert [ends[steps].status for steps in (100, 200, 300)] == ["done"] * 3
    assert [line["step"] for line in ends[200].metrics()] == [0, 100, 200]
    assert ends[100].metrics()[-1]["best_val_loss"] == 1 / 101
    assert read_schedule(ends[100].folder)["shares"] == job.id


@pytest.mark.parametrize(("status", "reason"), [("stopped", "patience"), ("failed", "nan")])
def test_where_a_training_ends_by_itself_it_ends_for_the_longer_trials_too(rising, status, reason):
    ledger, first, again = rising
    say(ledger, first, 10, 1.0, time=1)
    assert not ledger.report(first.id, 10, 1.0)
    update_trial(folder(ledger, first), status, reason)
    ledger.end(first.id)
    for known in (ledger, again()):
        assert known.next() is None
        assert known.done
    ends = [(r.status, r.stop_reason, r.metrics()[-1]["step"]) for r in list_trials(ledger.folder)]
    assert ends == [(status, reason, 10)] * 3
