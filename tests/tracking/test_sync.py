"""One behavioural suite for every kind of MLflow store."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.mlflow_server import MlflowServer
from helpers.run_folder import finish, report, write_result, write_run
from mlflow import MlflowClient
from mlflow.entities import Run

from sesttune.config.load import load_config
from sesttune.tracking.background import BackgroundSync
from sesttune.tracking.store import tracking_uri, without_secrets
from sesttune.tracking.sync import RunTracker
from sesttune.training.records import note_facts, trial_folder, update_trial


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    running = MlflowServer(tmp_path_factory.mktemp("server"))
    running.start()
    yield running
    running.kill()


@pytest.fixture(params=["sqlite", "server"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/mlflow.db"
    return str(request.getfixturevalue("server").uri)


def runs(uri: str, experiment: str) -> dict[str, Run]:
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    return {run.info.run_name: run for run in client.search_runs([found.experiment_id])}


def steps(uri: str, run: Run, key: str = "val_loss") -> list[int]:
    return [m.step for m in MlflowClient(uri).get_metric_history(run.info.run_id, key)]


def test_a_sweep_arrives_whole(uri: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "sweep")
    tracker = RunTracker(folder, uri, str(tmp_path))
    tracker.sync()
    for trial in ("001", "002", "003"):
        report(folder, trial, range(0, 5))
    tracker.sync()
    report(folder, "001", range(5, 10))
    finish(folder, "001")
    finish(folder, "002", "stopped", "asha: rung 4")
    finish(folder, "003", "failed", "nan")
    (folder / "report.html").write_text("<p>")
    (folder / "plots").mkdir()
    (folder / "plots" / "curves.png").write_bytes(b"png")
    write_result(folder)
    tracker.sync()
    found = runs(uri, str(tmp_path))
    assert set(found) == {
        "sweep",
        "001 lr=1.0e-04 batch=8",
        "002 lr=2.0e-04 batch=8",
        "003 lr=3.0e-04 batch=8",
    }
    parent, first = found["sweep"], found["001 lr=1.0e-04 batch=8"]
    client = MlflowClient(uri)
    history = client.get_metric_history(first.info.run_id, "val_loss")
    assert [(m.step, m.value) for m in history] == [(s, 10.0 / (1 + s)) for s in range(10)]
    assert [m.timestamp for m in history] == [1_700_000_000_000 + 1000 * s for s in range(10)]
    assert steps(uri, first, "train_loss") == list(range(1, 10))  # NaN of step 0 is left out
    assert first.data.params == {"training.lr": "0.0001", "training.batch_size": "8"}
    assert first.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert first.data.tags["data_fingerprint"] == "f" * 16
    assert first.data.tags["encoder_sha256"] == "e" * 64
    assert found["002 lr=2.0e-04 batch=8"].data.tags["stop_reason"] == "asha: rung 4"
    statuses = {name[:3]: run.info.status for name, run in found.items()}
    assert statuses == {"swe": "FINISHED", "001": "FINISHED", "002": "FINISHED", "003": "FAILED"}
    assert {a.path for a in client.list_artifacts(first.info.run_id)} == {
        "best.ckpt",
        "config.yaml",
    }
    kept = {artifact.path for artifact in client.list_artifacts(parent.info.run_id)}
    assert {"report.html", "plots", "leaderboard.csv"} <= kept
    [plot] = client.list_artifacts(parent.info.run_id, "plots")
    assert plot.path == "plots/curves.png"
    assert parent.data.tags["verdict"] == "converged"
    assert parent.data.metrics["baseline_controls"] == 3.5
    assert parent.data.metrics["best_val_loss"] == 0.5
    note = parent.data.tags["mlflow.note.content"]
    assert "tiny encoder" in note
    assert "sesttune promote --sweep sweep" in note
    board = Path(client.download_artifacts(parent.info.run_id, "leaderboard.csv", str(tmp_path)))
    assert board.read_text().splitlines()[1].startswith("001,0.5,9,9,max_steps")


def test_what_a_trial_found_out_and_its_profile_arrive(uri: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "sweep", trials=1)
    trial = trial_folder(folder, "001")
    tracker = RunTracker(folder, uri, str(tmp_path))
    report(folder, "001", range(0, 2))
    note_facts(trial, data="store of 1.00 GiB in memory (page cache)")
    tracker.sync()
    note_facts(trial, micro_batch=8)
    (trial / "profile").mkdir()
    (trial / "profile" / "breakdown.json").write_text("{}")
    finish(folder, "001")
    tracker.sync()
    run = runs(uri, str(tmp_path))["001 lr=1.0e-04 batch=8"]
    assert run.data.tags["data"] == "store of 1.00 GiB in memory (page cache)"
    assert run.data.tags["micro_batch"] == "8"
    kept = MlflowClient(uri).list_artifacts(run.info.run_id, "profile")
    assert [artifact.path for artifact in kept] == ["profile/breakdown.json"]


def test_syncing_again_or_from_scratch_changes_nothing(uri: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "sweep", trials=1)
    report(folder, "001", range(0, 6))
    finish(folder, "001")
    write_result(folder)
    for _ in range(2):
        RunTracker(folder, uri, str(tmp_path)).sync()
    before = runs(uri, str(tmp_path))
    (folder / "tracking.json").unlink()  # all memory of what was delivered is lost
    RunTracker(folder, uri, str(tmp_path)).sync()
    after = runs(uri, str(tmp_path))
    assert {r.info.run_id for r in before.values()} == {r.info.run_id for r in after.values()}
    assert steps(uri, after["001 lr=1.0e-04 batch=8"]) == list(range(6))


def test_a_folder_made_again_under_the_same_name_is_another_run(uri: str, tmp_path: Path) -> None:
    for _ in range(2):
        folder = write_run(tmp_path / "sweep", trials=1)
        report(folder, "001", range(0, 3))
        finish(folder, "001")
        write_result(folder)
        RunTracker(folder, uri, str(tmp_path)).sync()
        shutil.rmtree(folder)
    experiment = MlflowClient(uri).get_experiment_by_name(str(tmp_path))
    found = MlflowClient(uri).search_runs([experiment.experiment_id])
    assert sorted(run.info.run_name[:5] for run in found) == ["001 l", "001 l", "sweep", "sweep"]


SYNC_FOREVER = """
import sys
from pathlib import Path
from sesttune.tracking.sync import RunTracker
while True:
    RunTracker(Path(sys.argv[1]), sys.argv[2], sys.argv[3]).sync()
    print("synced", flush=True)
"""


def test_kill_9_leaves_no_duplicate_and_no_hole(tmp_path: Path) -> None:
    uri, folder = f"sqlite:///{tmp_path}/mlflow.db", write_run(tmp_path / "sweep", trials=4)
    command = [sys.executable, "-c", SYNC_FOREVER, str(folder), uri, "x"]
    for turn in range(4):
        for trial in ("001", "002", "003", "004"):
            report(folder, trial, range(50 * turn, 50 * (turn + 1)))
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        if turn == 0:
            process.stdout.readline()  # tables exist from here on
        else:
            deadline = time.monotonic() + 60
            cursor = (folder / "tracking.json").stat().st_mtime_ns
            while (folder / "tracking.json").stat().st_mtime_ns == cursor:
                assert time.monotonic() < deadline
                time.sleep(0.001)  # killed right after some trial was delivered
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    RunTracker(folder, uri, "x").sync()
    found = runs(uri, "x")
    assert len(found) == 5
    for name, run in found.items():
        if name != "sweep":
            assert steps(uri, run) == list(range(200))


def test_a_server_that_is_away_costs_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server, folder = MlflowServer(tmp_path), write_run(tmp_path / "sweep", trials=1)
    server.start()
    try:
        with BackgroundSync(folder, server.uri, "x") as background:
            report(folder, "001", range(0, 10))
            deadline = time.monotonic() + 60
            while not (folder / "tracking.json").exists() and time.monotonic() < deadline:
                time.sleep(0.1)
            server.kill()
            report(folder, "001", range(10, 20))
            time.sleep(4)  # at least one turn fails
            finish(folder, "001")
        assert not background.delivered
        assert "MLflow is away" in caplog.text
        assert str(folder) in caplog.text
        server.start()
        with BackgroundSync(folder, server.uri, "x") as background:
            write_result(folder)
        assert background.delivered
        found = runs(server.uri, "x")
        assert steps(server.uri, found["001 lr=1.0e-04 batch=8"]) == list(range(20))
        assert found["sweep"].info.status == "FINISHED"
    finally:
        server.kill()


def test_a_trial_of_a_resumed_sweep_goes_on_in_its_run(uri: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "sweep", trials=1)
    report(folder, "001", range(0, 5))
    RunTracker(folder, uri, str(tmp_path)).sync()
    # A resume cuts the lines after the last checkpoint and reports them again, later.
    path = trial_folder(folder, "001") / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))
    report(folder, "001", range(3, 8))
    RunTracker(folder, uri, str(tmp_path)).sync()
    assert steps(uri, runs(uri, str(tmp_path))["001 lr=1.0e-04 batch=8"]) == list(range(8))


def test_a_failed_trial_that_is_tried_again_is_opened_and_closed_again(
    uri: str, tmp_path: Path
) -> None:
    folder = write_run(tmp_path / "sweep", trials=1)
    name, statuses = "001 lr=1.0e-04 batch=8", []
    for status, reason in (("failed", "error: full"), ("running", None), ("done", "max_steps")):
        update_trial(trial_folder(folder, "001"), status, reason)
        RunTracker(folder, uri, str(tmp_path)).sync()
        run = runs(uri, str(tmp_path))[name]
        statuses.append((run.info.status, run.data.tags.get("stop_reason")))
    assert statuses[0] == ("FAILED", "error: full")
    assert statuses[1][0] == "RUNNING"
    assert statuses[2] == ("FINISHED", "max_steps")


def test_where_the_store_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config([f"output_dir={tmp_path}/out"])
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri(config) == f"sqlite:///{tmp_path}/out/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert tracking_uri(config) == "http://server:5000"
    named = load_config(["tracking.uri=http://other"])
    assert tracking_uri(named) == "http://other"


def test_secrets_are_not_shown() -> None:
    assert without_secrets("http://me:secret@host:5000/x") == "http://host:5000/x"
    assert without_secrets("postgresql://u:p@db/mlflow") == "postgresql://db/mlflow"
    assert without_secrets("sqlite:////a/b.db") == "sqlite:////a/b.db"
