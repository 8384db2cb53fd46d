"""A later sweep begins with what an earlier one found, on real trials."""

import errno
import json
import os
import shutil

import pytest
import torch
from helpers.small_sweeps import INPUTS, begin
from helpers.tiny_data import MeanEncoder, write_tiny

from sesttune.config.load import load_config, with_point
from sesttune.data.trial_data import prepare
from sesttune.errors import UserError
from sesttune.plan_run import trained_steps
from sesttune.search.driver import run_sweep
from sesttune.search.listener import SweepListener
from sesttune.search.ray_session import ray_session
from sesttune.search.recorded import trained_before
from sesttune.search.space_file import parse_space
from sesttune.search.warm_start import read_earlier
from sesttune.training.records import list_trials, read_metrics
from sesttune.training.trial import run_trial


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    data = write_tiny(tmp_path_factory.mktemp("tiny"))
    more = {"sweep.seeds": 1, "sweep.extend_to": [], "sweep.asha": False, "training.patience": 99}
    config = load_config(base=data.settings(**more))
    return config, prepare(config, MeanEncoder)


@pytest.fixture(scope="module", autouse=True)
def ray(tiny):
    """One Ray for all sweeps of this module."""
    with ray_session(tiny[0]) as found:
        yield found


def space(searcher, *rates):
    lr = {"type": "choice", "values": list(rates)}
    if searcher != "grid":
        lr = {"type": "loguniform", "low": 1e-5, "high": 1e-1}
    return parse_space(
        {"searcher": searcher, "num_trials": 2, "parameters": {"training.lr": lr}}, "s.yaml"
    )


@pytest.fixture(scope="module")
def quick(tiny, tmp_path_factory):
    """A first sweep of ten steps at three rates."""
    config, manifest = tiny
    short = with_point(config, {"training.max_steps": 10})
    folder = begin(tmp_path_factory.mktemp("sweeps") / "quick", short)
    run_sweep(folder, short, space("grid", 1e-2, 1e-3, 1e-4), manifest)
    return folder


@pytest.fixture
def first(quick, tmp_path):
    """The test's own copy of that sweep, beside which it makes a second one."""
    return shutil.copytree(quick, tmp_path / "quick")


@pytest.mark.slow
def test_a_longer_sweep_continues_the_trainings_of_a_shorter_one(tiny, first, tmp_path):
    config, manifest = tiny
    full = with_point(config, {"training.max_steps": 20, "sweep.warm_start": "quick"})
    second = begin(tmp_path / "full", full)
    steps = []

    class Heard(SweepListener):
        def on_report(self, trial_id, metrics):
            steps.append((trial_id, metrics["step"]))

    run_sweep(second, full, space("grid", 1e-2, 1e-3), manifest, [Heard()])
    assert sorted(steps) == [("001", 15), ("001", 20), ("002", 15), ("002", 20)]
    earlier = {r.params["training.lr"]: read_metrics(r.folder) for r in list_trials(first)}
    for record in list_trials(second):
        lines = read_metrics(record.folder)
        assert [line["step"] for line in lines] == [0, 5, 10, 15, 20]
        assert [line["val_loss"] for line in lines[:3]] == [
            line["val_loss"] for line in earlier[record.params["training.lr"]]
        ]
    # What was trained in two sweeps is what one training gives.
    torch.set_num_threads(1)  # as a trial's worker has
    for record in list_trials(second):
        alone = with_point(config, {"training.max_steps": 20, **record.params})
        straight = tmp_path / f"straight-{record.id}"
        run_trial(alone, manifest, straight)
        losses = [[line["val_loss"] for line in read_metrics(f)] for f in (record.folder, straight)]
        assert losses[0] == losses[1]


def test_the_best_of_the_earlier_sweep_come_first_and_the_searcher_learns_from_all(
    tiny, first, tmp_path
):
    config, manifest = tiny
    later = with_point(config, {"training.max_steps": 20, "sweep.warm_start": "quick"})
    second = begin(tmp_path / "full", later)
    trainings, learnt = read_earlier(second, later, space("tpe"))
    assert len(trainings) == len(learnt) == 3
    assert {seen.params["training.lr"] for seen in learnt} == {1e-2, 1e-3, 1e-4}
    best = min(list_trials(first), key=lambda r: r.metrics()[-1]["best_val_loss"])
    shutil.rmtree(first)  # what is needed of it has been kept
    run_sweep(second, later, space("tpe"), manifest)
    begun = list_trials(second)[0]
    assert begun.params == best.params
    assert trained_before(second, begun.id) == 10
    assert [line["step"] for line in begun.metrics()] == [0, 5, 10, 15, 20]


def test_where_files_cannot_be_linked_an_earlier_sweep_is_gone_on_with_while_it_is_there(
    tiny, first, tmp_path, monkeypatch
):
    def refuse(*paths):
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    later = with_point(tiny[0], {"sweep.warm_start": "quick"})
    folder = begin(tmp_path / "later", later)
    assert [len(found) for found in read_earlier(folder, later, space("tpe"))] == [3, 3]
    shutil.rmtree(first)
    assert [len(found) for found in read_earlier(folder, later, space("tpe"))] == [0, 3]


def test_what_the_new_space_does_not_hold_is_not_gone_on_with(tiny, first, tmp_path):
    config, manifest = tiny
    best = min(list_trials(first), key=lambda r: r.metrics()[-1]["best_val_loss"])
    rates = sorted({1e-2, 1e-3, 1e-4} - {best.params["training.lr"]})
    later = with_point(config, {"training.max_steps": 10, "sweep.warm_start": "quick"})
    second = begin(tmp_path / "narrow", later)
    narrow = parse_space(
        {
            "searcher": "tpe",
            "num_trials": 2,
            "parameters": {"training.lr": {"type": "choice", "values": rates}},
        },
        "s.yaml",
    )
    for resume in (False, True):
        run_sweep(second, later, narrow, manifest, resume=resume)
        tried = {record.params["training.lr"] for record in list_trials(second)}
        assert tried
        assert tried <= set(rates)


def test_results_that_cannot_be_compared_are_refused(tiny, tmp_path):
    config, _ = tiny
    begin(tmp_path / "first", config)
    folder = begin(tmp_path / "second", config)

    def refused(*, match, **changes):
        named = {key.replace("__", "."): value for key, value in changes.items()}
        later = with_point(config, {"sweep.warm_start": "first"} | named)
        with pytest.raises(UserError, match=match):
            read_earlier(folder, later, space("grid", 1e-3))

    refused(sweep__warm_start="frist", match="no such sweep in .*; there are: first, second")
    refused(model__kwargs__loss="mse", match="run with model.kwargs.loss=energy")
    (folder / "data.json").write_text(json.dumps({**INPUTS, "fingerprint": "other"}))
    refused(match="it was run on other data")


def test_another_setting_is_learnt_from_but_not_continued(tiny, first, tmp_path):
    config, _ = tiny
    changed = {"training.weight_decay": 0.1, "sweep.warm_start": "quick"}
    folder = begin(tmp_path / "later", config)
    trainings, learnt = read_earlier(folder, with_point(config, changed), space("tpe"))
    assert (len(trainings), len(learnt)) == (0, 3)


def test_other_inputs_are_learnt_from_but_not_continued_and_another_path_is_no_other_input(
    tiny, first, tmp_path
):
    moved = {"sweep.warm_start": "quick", "model.kwargs.se_model_path": "elsewhere"}
    later = with_point(tiny[0], moved)
    folder = begin(tmp_path / "later", later)
    for change, continued in (
        ({}, 3),
        ({"features": "w"}, 0),
        ({"encoder": {"sha256": "d"}}, 0),
    ):
        (folder / "data.json").write_text(json.dumps(INPUTS | change))
        trainings, learnt = read_earlier(folder, later, space("tpe"))
        assert (len(trainings), len(learnt)) == (continued, 3)


def test_a_training_that_an_earlier_sweep_had_completed_is_this_ones_own_and_may_be_extended(
    tiny, first, tmp_path
):
    config, manifest = tiny
    later = {"training.max_steps": 10, "sweep.warm_start": "quick", "sweep.extend_to": [20]}
    second = with_point(config, later)
    begin(tmp_path / "again", second)
    starts = []

    class Heard(SweepListener):
        def on_start(self, record, max_steps):
            starts.append((record.id, max_steps))

    outcome = run_sweep(tmp_path / "again", second, space("grid", 1e-2, 1e-3), manifest, [Heard()])
    assert starts == [(outcome.best.id, 20)], "only the winner's extension was trained"
    for record in list_trials(tmp_path / "again"):
        assert (record.status, record.stop_reason) == ("done", "max_steps")
        assert (record.checkpoints / "best.ckpt").exists(), "so it can be promoted"
    assert all((r.checkpoints / "last.ckpt").exists() for r in list_trials(first)), "kept there"
    assert trained_steps(tmp_path / "again") == 10
    assert trained_steps(first) == 30
