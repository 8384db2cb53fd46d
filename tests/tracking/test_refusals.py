"""A store that is there and takes nothing: one line with the fix, from every command."""

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers.mlflow_server import MlflowServer
from helpers.run_folder import finish, report, write_result, write_run

from sesttune import promote, track, ui
from sesttune.command import Main, run
from sesttune.tracking.background import BackgroundSync
from sesttune.tracking.sync import RunTracker


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ended run, and the store that it was delivered to."""
    folder = tmp_path_factory.mktemp("outputs")
    made = write_run(folder / "night", trials=1)
    report(made, "001", range(0, 3))
    finish(made, "001")
    write_result(made)
    RunTracker(made, f"sqlite:///{folder}/mlflow.db", "sesttune").sync()
    (made / "tracking.json").unlink()
    return folder


def _older(database: Path) -> None:
    with sqlite3.connect(database) as known:
        known.execute("UPDATE alembic_version SET version_num = '1b5f0d9ad7c1'")


def _garbage(database: Path) -> None:
    database.write_bytes(bytes(range(256)) * 64)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [(_older, "run `mlflow db upgrade sqlite:///{}/mlflow.db`"), (_garbage, "not a database")],
)
@pytest.mark.parametrize(
    ("main", "words"),
    [
        (track.main, ["sync", "--output-dir", "{}"]),
        (promote.main, ["--list", "--output-dir", "{}"]),
        (ui.main, ["output_dir={}"]),
    ],
)
def test_a_database_of_another_mlflow_or_of_none_is_one_line(
    outputs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    main: Main,
    words: list[str],
    spoil: Callable[[Path], None],
    told: str,
) -> None:
    here = shutil.copytree(outputs, tmp_path / "outputs")
    spoil(here / "mlflow.db")
    assert run(main, [word.format(here) for word in words]) in (1, 2)
    [line] = "".join(capsys.readouterr()).splitlines()
    assert f"MLflow at sqlite:///{here}/mlflow.db: " in line
    assert told.format(here) in line


PASSWORD = "the-right-password"
SETTINGS = f"""\
[mlflow]
default_permission = READ
database_uri = sqlite:///{{}}/users.db
admin_username = admin
admin_password = {PASSWORD}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
"""


@pytest.fixture
def locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server that wants a user and a password."""
    (tmp_path / "users.ini").write_text(SETTINGS.format(tmp_path))
    monkeypatch.setenv("MLFLOW_AUTH_CONFIG_PATH", str(tmp_path / "users.ini"))
    monkeypatch.setenv("MLFLOW_FLASK_SERVER_SECRET_KEY", "of this test")
    server = MlflowServer(tmp_path, options=["--app-name", "basic-auth"])
    server.start()
    yield server.uri
    server.kill()


@pytest.mark.slow
def test_a_wrong_password_is_one_line_that_does_not_show_it_and_the_right_one_delivers(
    outputs: Path,
    locked: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", locked)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong-word")
    told = f"MLflow at {locked}: it does not know this user and password: set MLFLOW_TRACKING_USER"
    where = ["--output-dir", str(outputs)]
    for main, words in ((track.main, ["sync", *where]), (promote.main, ["--list", *where])):
        assert run(main, words) in (1, 2)
        [line] = "".join(capsys.readouterr()).splitlines()
        assert told in line
        assert "wrong-word" not in line
    with BackgroundSync(outputs / "night", locked, "sesttune", interval_s=0.1) as mlflow:
        pass
    assert not mlflow.delivered
    assert "results are safe in" in caplog.text
    assert "wrong-word" not in caplog.text
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    assert run(track.main, ["sync", *where]) == 0
    assert capsys.readouterr().out.startswith("night: delivered 3 points")
    kept = [path for path in outputs.rglob("*") if path.is_file()]
    assert not [path for path in kept if PASSWORD.encode() in path.read_bytes()]
    assert PASSWORD not in caplog.text
