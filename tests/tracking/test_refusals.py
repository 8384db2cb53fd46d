"""A store that is there and takes nothing: one line with the fix, from every command."""

import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
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


class _Locked(BaseHTTPRequestHandler):
    """What `mlflow server --app-name basic-auth`, or a proxy before a server, answers."""

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(401)
        self.end_headers()
        self.wfile.write(b"You are not authenticated. Please see https://www.mlflow.org/docs/")

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def locked() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), _Locked) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_wrong_password_is_one_line_that_does_not_show_it(
    outputs: Path,
    locked: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", locked)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
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
