"""A server that is away, restarting, slow, or loses answers: trials do not notice, nothing is lost.

Ten minutes are not waited for. An outage is a number of turns that fail, and nothing is carried
from one to the next but the run folder; these tests let as many fail as ten minutes have.
"""

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.mlflow_server import MlflowServer
from helpers.run_folder import finish, report, write_result, write_run
from helpers.slow_proxy import SlowProxy
from helpers.tiny_data import MeanEncoder, TinyData, write_tiny
from helpers.tracked import assert_whole, runs
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from sesttune.command import run as run_command
from sesttune.config.load import load_config
from sesttune.data.trial_data import prepare
from sesttune.track import main as track
from sesttune.tracking import sync
from sesttune.tracking.background import INTERVAL_S, BackgroundSync
from sesttune.tracking.spool import read_cursor, undelivered
from sesttune.tracking.sync import RunTracker
from sesttune.training.records import append_metrics, read_metrics, trial_folder
from sesttune.training.trial import run_trial

TURNS_OF_TEN_MINUTES = round(600 / INTERVAL_S)
QUICK_S = 0.002


def wait_until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize(
    "server",
    ["sqlite_server", pytest.param("postgres_server", marks=pytest.mark.slow)],
    indirect=True,
)
def test_a_server_killed_in_the_middle_and_away_for_ten_minutes(
    server: MlflowServer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, ended = write_run(tmp_path / "a" / "sweep"), write_run(tmp_path / "b" / "ended", 2)
    trials = ("001", "002", "003")
    for trial in trials:
        report(folder, trial, range(0, 100))
    experiment = str(tmp_path)
    try:
        with BackgroundSync(folder, server.uri, experiment, QUICK_S) as background:
            wait_until(lambda: "001" in read_cursor(folder)["trials"])
            server.kill()  # some of 100 lines a trial are there, others are not
            for trial in trials:
                report(folder, trial, range(100, 110))
            wait_until(lambda: background.failed_turns >= TURNS_OF_TEN_MINUTES)
            # Another sweep begins and ends meanwhile.
            with BackgroundSync(ended, server.uri, str(ended.parent), QUICK_S) as other:
                for trial in ("001", "002"):
                    report(ended, trial, range(0, 20))
                    finish(ended, trial)
                write_result(ended)
            assert not other.delivered
            arguments = ["ended", "--output-dir", str(ended.parent)]
            assert f"sesttune track sync {' '.join(arguments)}" in caplog.text
            assert undelivered(ended).lines == 40
            server.start()
            for trial in trials:
                finish(folder, trial)
            write_result(folder)
        assert background.delivered
        assert_whole(server.uri, folder, experiment)
        assert runs(server.uri, experiment)["sweep"].info.status == "FINISHED"
    finally:
        server.start()
    assert run_command(track, ["sync", *arguments]) == 0
    assert capsys.readouterr().out.startswith("ended: delivered 40 points, news of 2 trials, the")
    assert not undelivered(ended).anything
    assert_whole(server.uri, ended, str(ended.parent))


def test_a_server_that_restarts_between_batches(server: MlflowServer, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "sweep", trials=2)
    with SlowProxy(server.port) as proxy:
        for turn in range(4):
            for trial in ("001", "002"):
                report(folder, trial, range(10 * turn, 10 * (turn + 1)))
            if turn % 2 == 0:
                proxy.lose_answer_to = b"log-batch"  # as a server that goes away at that moment
                with pytest.raises(MlflowException):
                    RunTracker(folder, proxy.uri, str(tmp_path)).sync()
            else:
                RunTracker(folder, proxy.uri, str(tmp_path)).sync()
        assert proxy.lost == 2
    assert_whole(server.uri, folder, str(tmp_path))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyData:
    return write_tiny(tmp_path_factory.mktemp("tiny"))


def test_a_trial_ends_while_the_server_has_not_answered_once(
    server: MlflowServer, tmp_path: Path, tiny: TinyData
) -> None:
    config = load_config(base=tiny.settings())
    manifest, folder = prepare(config, MeanEncoder), write_run(tmp_path / "sweep", trials=1)
    trial = trial_folder(folder, "001")
    with (
        SlowProxy(server.port) as proxy,
        BackgroundSync(folder, proxy.uri, str(tmp_path), QUICK_S) as background,
    ):
        proxy.stall()
        wait_until(proxy.answer_held.is_set)
        before = proxy.answered
        assert run_trial(config, manifest, trial).step == 20
        assert len(read_metrics(trial)) == 5
        assert proxy.answered == before
        proxy.flow()
    assert background.delivered
    assert_whole(server.uri, folder, str(tmp_path))
    shown = runs(server.uri, str(tmp_path))["001 lr=1.0e-04 batch=8"].data.metrics
    assert {
        *("train_loss", "val_loss", "best_val_loss", "best_step", "lr", "grad_norm"),
        *("steps_per_s", "cells_per_s", "gpu_mem_gib", "data_wait_frac"),
        *("system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"),
        "system/disk_available_megabytes",
    } <= set(shown)


@pytest.mark.parametrize("request_of", [b"experiments/create", b"runs/create", b"runs/update"])
def test_a_request_whose_answer_was_lost_is_not_done_twice(
    server: MlflowServer, tmp_path: Path, request_of: bytes
) -> None:
    folder, experiment = write_run(tmp_path / "sweep", trials=2), str(tmp_path)
    for trial in ("001", "002"):
        report(folder, trial, range(0, 10))
        finish(folder, trial)
    write_result(folder)
    with SlowProxy(server.port) as proxy:
        proxy.lose_answer_to = request_of
        with contextlib.suppress(MlflowException):  # that the experiment is there is seen at once
            RunTracker(folder, proxy.uri, experiment).sync()
        assert proxy.lost == 1
        RunTracker(folder, proxy.uri, experiment).sync()
    assert_whole(server.uri, folder, experiment)


def test_a_run_made_after_its_request_was_given_up_does_not_stay(
    server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    folder, experiment = write_run(tmp_path / "sweep", trials=1), str(tmp_path)
    with SlowProxy(server.port) as proxy:
        proxy.hold_request = b"runs/create"
        with pytest.raises(MlflowException):
            RunTracker(folder, proxy.uri, experiment).sync()
        assert proxy.request_held.is_set()
        RunTracker(folder, server.uri, experiment).sync()
        proxy.let_requests_go.set()
        wait_until(lambda: len(active(server.uri, experiment)) == 3)  # the sweep is there twice
    report(folder, "001", range(0, 3))
    finish(folder, "001")
    write_result(folder)
    RunTracker(folder, server.uri, experiment).sync()
    assert_whole(server.uri, folder, experiment)


def test_a_file_takes_longer_than_a_request_may(
    sqlite_server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    folder, experiment = write_run(tmp_path / "sweep", trials=1), str(tmp_path)
    finish(folder, "001")
    with SlowProxy(sqlite_server.port) as proxy:
        proxy.hold_request = b"PUT "

        def let_go() -> None:
            proxy.request_held.wait()
            time.sleep(1.5)
            proxy.let_requests_go.set()

        threading.Thread(target=let_go, daemon=True).start()
        assert RunTracker(folder, proxy.uri, experiment).sync() is None
        assert proxy.request_held.is_set()
    assert not undelivered(folder).anything


def test_a_file_that_is_not_taken_holds_up_nothing_but_itself(
    sqlite: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, experiment = write_run(tmp_path / "sweep", trials=2, uri=sqlite), str(tmp_path)
    RunTracker(folder, sqlite, experiment).sync()
    first, second = (run for name, run in sorted(runs(sqlite, experiment).items()) if "lr" in name)
    kept = Path(first.info.artifact_uri.removeprefix("file://")).parent
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("in the way of the trial's artifacts")
    for trial in ("001", "002"):
        report(folder, trial, range(0, 5))
        finish(folder, trial)
    write_result(folder)
    where = ["--output-dir", str(tmp_path)]
    assert run_command(track, ["sync", *where]) == 1
    told = capsys.readouterr().out
    assert "not delivered: MLflow at" in told
    assert "trials/001/config.yaml: " in told
    assert ", and 1 more" in told
    with monkeypatch.context() as patch:
        patch.setattr(sync, "SLOW_S", -1.0)
        assert " more" not in (RunTracker(folder, sqlite, experiment).sync() or "")
    assert_whole(sqlite, folder, experiment)
    assert {run.info.status for run in runs(sqlite, experiment).values()} == {"FINISHED"}
    client = MlflowClient(sqlite)
    assert len(client.list_artifacts(second.info.run_id)) == 2
    assert run_command(track, ["status", *where]) == 0
    assert capsys.readouterr().out == "sweep: 2 files not delivered\n"
    kept.unlink()
    with BackgroundSync(folder, sqlite, experiment, QUICK_S) as background:
        pass
    assert background.delivered
    assert len(client.list_artifacts(first.info.run_id)) == 2
    assert not undelivered(folder).anything


def active(uri: str, experiment: str) -> list[str]:
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    return [run.info.run_id for run in client.search_runs([found.experiment_id])]


def test_two_that_deliver_take_turns(uri: str, tmp_path: Path) -> None:
    folder, experiment = write_run(tmp_path / "sweep", trials=3), str(tmp_path)
    with (
        BackgroundSync(folder, uri, experiment, QUICK_S) as one,
        BackgroundSync(folder, uri, experiment, QUICK_S) as two,
    ):
        for step in range(30):
            for trial in ("001", "002", "003"):
                report(folder, trial, range(step, step + 1))
        write_result(folder)
    assert (one.delivered, one.failed_turns) == (two.delivered, two.failed_turns) == (True, 0)
    assert_whole(uri, folder, experiment)


def test_a_torn_line_waits_for_the_next_turn(sqlite: str, tmp_path: Path) -> None:
    folder, experiment = write_run(tmp_path / "sweep", trials=1), str(tmp_path)
    trial = trial_folder(folder, "001")
    report(folder, "001", range(0, 3))
    whole = (trial / "metrics.jsonl").read_text()
    (trial / "metrics.jsonl").write_text(whole[:-20])
    RunTracker(folder, sqlite, experiment).sync()
    (trial / "metrics.jsonl").write_text(whole)
    append_metrics(trial, {"step": 3, "time": 1_700_000_003.0, "val_loss": 2.5})
    RunTracker(folder, sqlite, experiment).sync()
    run = runs(sqlite, experiment)["001 lr=1.0e-04 batch=8"]
    points = MlflowClient(sqlite).get_metric_history(run.info.run_id, "val_loss")
    assert [point.step for point in points] == [0, 1, 2, 3]
