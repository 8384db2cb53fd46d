"""Runs that are deleted: by somebody, to tidy up, and those that a slow server made twice."""

from pathlib import Path

import pytest
from helpers.run_folder import finish, report, write_result, write_run
from helpers.tracked import assert_whole, history, runs
from mlflow import MlflowClient

from sesttune.tracking import experiment
from sesttune.tracking.spool import undelivered
from sesttune.tracking.sync import RunTracker


def test_a_trial_whose_run_was_deleted_holds_up_nothing_until_it_is_restored(
    sqlite: str, tmp_path: Path
) -> None:
    folder = write_run(tmp_path / "sweep", trials=2)
    report(folder, "001", range(3))
    tracker = RunTracker(folder, sqlite, str(tmp_path))
    tracker.sync()
    client, gone = MlflowClient(sqlite), tracker.trial_run("001")
    assert gone is not None
    client.delete_run(gone)
    for trial in ("001", "002"):
        report(folder, trial, range(3, 6))
        finish(folder, trial)
    write_result(folder)
    assert tracker.sync() is None
    found = runs(sqlite, str(tmp_path))
    assert found["sweep"].data.tags["verdict"] == "converged"
    assert len(history(sqlite, found["002 lr=2.0e-04 batch=8"])) == 3
    assert not undelivered(folder).anything
    client.restore_run(gone)
    assert tracker.sync() is None
    assert_whole(sqlite, folder, str(tmp_path))
    run = client.get_run(gone)
    assert (run.info.status, run.data.metrics["rank"]) == ("FINISHED", 1)
    assert {file.path for file in client.list_artifacts(gone)} == {"best.ckpt", "config.yaml"}


def test_doubles_go_whatever_page_they_are_on(
    sqlite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiment, "PAGE", 2)
    client = MlflowClient(sqlite)
    ours = experiment.Experiment(client, sqlite, str(tmp_path))
    made = [
        client.create_run(ours.id(), tags={experiment.SOURCE_TAG: f"us/{number}"}).info.run_id
        for number in range(6)
    ]
    ours.drop_doubles("us", made[:1])
    assert [run.info.run_id for run in client.search_runs([ours.id()])] == made[:1]
