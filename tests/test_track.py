"""`sesttune track`: what of run folders MLflow lacks, and delivering it."""

import shutil
import socket
from pathlib import Path

import pytest
from helpers.run_folder import finish, report, write_result, write_run
from helpers.tracked import assert_whole

from sesttune.command import run as run_command
from sesttune.track import main


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


@pytest.fixture
def dead() -> str:
    """The address of a server that is away, with a password."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://me:secret@127.0.0.1:{probe.getsockname()[1]}"


def ended_run(folder: Path, uri: str) -> Path:
    write_run(folder, trials=1, uri=uri)
    report(folder, "001", range(0, 5))
    finish(folder, "001")
    write_result(folder)
    return folder


def test_all_runs_are_delivered_and_then_they_are_there(
    store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, _ = (ended_run(tmp_path / name, store) for name in ("first", "second"))
    where = ["--output-dir", str(tmp_path)]
    assert run_command(main, ["status", *where]) == 0
    left = "5 points, news of 1 trial, the result, 4 files"
    assert capsys.readouterr().out.splitlines() == [
        f"first: {left} not delivered",
        f"second: {left} not delivered",
    ]
    assert run_command(main, ["sync", "first", *where]) == 0
    assert capsys.readouterr().out == f"first: delivered {left} to {store}\n"
    report(first, "001", range(5, 7))
    assert run_command(main, ["status", *where]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "first: 2 points not delivered"
    assert run_command(main, ["sync", *where]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"first: delivered 2 points to {store}",
        f"second: delivered {left} to {store}",
    ]
    assert run_command(main, ["sync", *where]) == 0
    assert capsys.readouterr().out == "first: already there\nsecond: already there\n"
    assert run_command(main, ["status", *where]) == 0
    assert capsys.readouterr().out == "nothing is left to deliver of 2 runs\n"
    shutil.rmtree(tmp_path / "second")
    assert {name[:5] for name in _names(store, str(tmp_path))} == {"first", "001 l", "secon"}


def _names(uri: str, experiment: str) -> list[str]:
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    found = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    return [run.info.run_name for run in found]


def test_a_store_that_is_away_is_said_once_a_run_without_secrets(
    store: str, dead: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    away, here = ended_run(tmp_path / "away", dead), ended_run(tmp_path / "here", store)
    assert run_command(main, ["sync", "--output-dir", str(tmp_path)]) == 1
    told = capsys.readouterr()
    one, two = told.out.splitlines()
    assert one.startswith("away: not delivered: MLflow at http://127.0.0.1:")
    assert "refused" in one
    assert "secret" not in told.out + told.err
    assert two.startswith("here: delivered 5 points")
    assert not (away / "tracking.json").exists()
    assert_whole(store, here, str(tmp_path))


def test_runs_of_another_store_are_not_looked_for_here(
    store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_run(tmp_path / "sweep", trials=1)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    arguments = ["sync", "--output-dir", str(tmp_path)]
    assert run_command(main, arguments) == 0
    report(folder, "001", range(0, 2))
    other = f"sqlite:///{tmp_path}/other.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", other)
    capsys.readouterr()
    assert run_command(main, arguments) == 1
    told = capsys.readouterr().out
    assert f"sweep has its runs in {store}, not in {other}" in told
    # The same store by another name is the same store.
    shutil.copy(store.removeprefix("sqlite:///"), tmp_path / "moved.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/moved.db")
    assert run_command(main, arguments) == 0
    assert "delivered 2 points" in capsys.readouterr().out
    # A run folder that was moved without its store has nowhere to be looked for.
    (tmp_path / "moved.db").unlink()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", other)
    assert run_command(main, arguments) == 0
    assert_whole(other, folder, str(tmp_path))


@pytest.mark.parametrize("action", ["sync", "status"])
def test_a_wrong_name_is_refused_before_anything_is_sent(
    store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], action: str
) -> None:
    first = ended_run(tmp_path / "first", store)
    arguments = [action, "first", "frist", "--output-dir", str(tmp_path)]
    assert run_command(main, arguments) == 2
    assert "no run 'frist' in" in capsys.readouterr().err
    assert not (first / "tracking.json").exists()


def test_a_store_that_was_deleted_or_replaced_gets_everything_anew(
    store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    database = tmp_path / "store.db"
    folder = ended_run(tmp_path / "sweep", f"sqlite:///{database}")
    where = ["--output-dir", str(tmp_path)]
    assert run_command(main, ["sync", *where]) == 0
    left = "5 points, news of 1 trial, the result, 4 files"
    capsys.readouterr()
    away = database.rename(tmp_path / "away.db")
    assert run_command(main, ["status", *where]) == 0
    assert capsys.readouterr().out == f"sweep: {left} not delivered\n"
    assert not database.exists()
    shutil.copy(store.removeprefix("sqlite:///"), away)  # of other runs; MLflow has it open
    away.rename(database)
    assert run_command(main, ["sync", *where]) == 0
    assert capsys.readouterr().out == f"sweep: delivered {left} to sqlite:///{database}\n"
    assert_whole(f"sqlite:///{database}", folder, str(tmp_path))


def test_a_damaged_run_does_not_hide_the_others(
    store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ended_run(tmp_path / "whole", store)
    for name, file in (("a", "sweep.yaml"), ("b", "result.json"), ("c", "trials/001/trial.json")):
        (ended_run(tmp_path / name, store) / file).write_text("")
    where = ["--output-dir", str(tmp_path)]
    for action, done in (("status", "not delivered"), ("sync", "delivered")):
        assert run_command(main, [action, *where]) == 1
        told = capsys.readouterr().out
        for part in ("sweep.yaml or", "b/result.json is", "c/trials/001/trial.json is"):
            [line] = [line for line in told.splitlines() if part in line]
            assert "damaged" in line
        assert f"whole: {done if action == 'sync' else '5 points'}" in told
    assert run_command(main, ["status", "a", *where]) == 2


@pytest.mark.parametrize("content", ["", '{"trials": {"00', "[]"])
def test_a_damaged_memory_is_a_lost_one(store: str, tmp_path: Path, content: str) -> None:
    folder = ended_run(tmp_path / "sweep", store)
    where = ["--output-dir", str(tmp_path)]
    assert run_command(main, ["sync", *where]) == 0
    (folder / "tracking.json").write_text(content)
    assert run_command(main, ["sync", *where]) == 0
    assert_whole(store, folder, str(tmp_path))
