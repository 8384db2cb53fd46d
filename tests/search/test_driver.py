"""The sweep on real Ray and real trials."""

import fcntl
import shutil

import pytest
from helpers.small_sweeps import Heard, assert_clean_curve, choice, grid

from sesttune.config.load import with_point
from sesttune.errors import UserError
from sesttune.search.driver import run_sweep
from sesttune.search.listener import SweepListener
from sesttune.search.recorded import read_schedule
from sesttune.training.records import list_trials, read_metrics, update_trial


def _shape(record):
    return record.params["model.kwargs.hidden_dim"], record.params["model.kwargs.n_heads"]


class Breaking(Heard):
    """Two trials find a file where their checkpoints are to lie."""

    def on_start(self, record, *about):
        super().on_start(record, *about)
        if _shape(record) == (32, 4):
            record.checkpoints.write_text("")


def test_trials_run_are_stopped_by_asha_and_one_that_fails_does_not_end_the_sweep(
    tiny, ray, tmp_path
):
    config, manifest = tiny
    space = grid(
        training__lr=choice(1e-2, 1e-6),
        model__kwargs__hidden_dim=choice(16, 32),
        model__kwargs__n_heads=choice(2, 4),
    )
    # One at a time, in an order that has the good learning rate first.
    config = with_point(config, {"sweep.seed": 11})
    heard = Breaking()
    outcome = run_sweep(tmp_path, config, space, manifest, [heard])
    records = {record.id: record for record in list_trials(tmp_path)}
    assert len(records) == 8
    failed = [record for record in records.values() if record.status == "failed"]
    assert failed == [r for r in records.values() if _shape(r) == (32, 4)]
    assert failed[0].stop_reason.startswith("error: ")
    assert "checkpoints" in failed[0].stop_reason
    assert "FileExistsError" in (failed[0].folder / "error.txt").read_text()
    able = [r for r in records.values() if r not in failed]
    assert [r.params["training.lr"] for r in able] == [1e-2] * 3 + [1e-6] * 3
    assert (able[0].status, able[0].stop_reason) == ("done", "max_steps")
    for record in able[3:]:
        assert record.status == "stopped"
        assert record.stop_reason.startswith("asha: rung 10,")
        assert_clean_curve(record.folder, 10)
        assert (record.id, 10) in heard.reports
    assert outcome.best.params["training.lr"] == 1e-2
    assert outcome.verdict == "healthy"
    assert outcome.evidence.startswith("still falling")
    assert sorted(heard.ends) == sorted((r.id, r.status) for r in records.values())
    assert heard.ticks > 8
    assert not (tmp_path / ".ray").exists(), "nothing of Ray's stays in the sweep folder"


class Broken(SweepListener):
    def on_report(self, trial_id, metrics):
        raise RuntimeError("display gone")


@pytest.fixture(scope="module")
def finished(tiny, ray, tmp_path_factory):
    """Settings, space and folder of a sweep of two trials, its outcome and what was heard."""
    config, manifest = with_point(tiny[0], {"sweep.asha": False}), tiny[1]
    space, heard = grid(training__lr=choice(1e-2, 1e-3)), Heard()
    folder = tmp_path_factory.mktemp("finished") / "sweep"
    outcome = run_sweep(folder, config, space, manifest, [Broken(), heard])
    return config, space, folder, outcome, heard


def test_a_listener_that_fails_does_not_end_the_sweep(finished):
    *_, outcome, heard = finished
    assert outcome.best.status == "done"
    assert sorted(heard.ends) == [("001", "done"), ("002", "done")]


def test_trials_in_the_folder_are_not_mixed_with_a_new_sweep_or_another_driver(tiny, tmp_path):
    config, manifest = tiny
    space = grid(training__lr=choice(1e-3))
    with (tmp_path / ".driver.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="being run by another process"):
            run_sweep(tmp_path, config, space, manifest)
    (tmp_path / "trials" / "001").mkdir(parents=True)
    (tmp_path / "trials" / "001" / "trial.json").write_text('{"id": "001"}')
    with pytest.raises(UserError, match="already holds trials"):
        run_sweep(tmp_path, config, space, manifest)


def test_finalists_are_repeated_the_winner_is_extended_and_shorter_trials_cost_nothing(
    tiny, ray, tmp_path
):
    config, manifest = tiny
    last_rounds = {"sweep.seeds": 2, "sweep.finalists": 2, "sweep.extend_to": [30]}
    config = with_point(config, last_rounds | {"sweep.asha": False, "training.patience": 99})
    space = grid(training__lr=choice(1e-2, 3e-3), training__max_steps=choice(10, 20))
    heard = Heard()
    outcome = run_sweep(tmp_path, config, space, manifest, [heard])
    records = {record.id: record for record in list_trials(tmp_path)}
    assert [record.status for record in records.values()] == ["done"] * 6
    # Two trainings to 20 steps, a second seed of each, and the winner to 30.
    assert [steps for _, steps in heard.starts] == [20, 20, 20, 20, 30]
    winner = heard.starts[-1][0]
    assert_clean_curve(records[winner].folder, 30)
    shorter = [r for r in records.values() if r.params["training.max_steps"] == 10]
    assert len(shorter) == 2
    for record in shorter:
        assert_clean_curve(record.folder, 10)
        assert record.id not in [trial for trial, _ in heard.starts]
        assert (record.id, "done") in heard.ends
    first, second = (r for r in records.values() if "training.replicate" in r.params)
    assert first.params["training.replicate"] == second.params["training.replicate"] == 1
    own = records[read_schedule(first.folder)["repeats"]]
    draws = [read_metrics(record.folder) for record in (own, first)]
    assert draws[0][0]["val_loss"] != draws[1][0]["val_loss"], "other initial weights"
    assert outcome.best.id == winner


def test_resuming_a_finished_sweep_starts_nothing_not_even_ray(
    tiny, finished, tmp_path, monkeypatch
):
    config, space, folder, before, _ = finished
    monkeypatch.setattr("sesttune.search.driver.ray_session", None)
    shutil.copytree(folder, tmp_path / "sweep")
    heard = Heard()
    outcome = run_sweep(tmp_path / "sweep", config, space, tiny[1], [heard], resume=True)
    assert outcome.best.id == before.best.id
    assert heard.starts == []


def test_resume_tries_trials_again_that_failed_with_an_error_but_not_nan(tiny, finished, tmp_path):
    config, space, done, *_ = finished
    folder = shutil.copytree(done, tmp_path / "sweep")
    first, second = list_trials(folder)
    update_trial(first.folder, "failed", "error: the worker process was lost twice")
    update_trial(second.folder, "failed", "nan")
    heard = Heard()
    run_sweep(folder, config, space, tiny[1], [heard], resume=True)
    assert heard.ends == [("001", "done")]
    assert [r.stop_reason for r in list_trials(folder)] == ["max_steps", "nan"]
