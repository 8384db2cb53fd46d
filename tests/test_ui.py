"""`sesttune ui` from its start to its end; what its pages show is in `tracking/test_pages.py`."""

import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from helpers.run_folder import write_run

from sesttune.tracking.sync import RunTracker


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def command_lines(pid: int) -> list[str]:
    """What everybody on this machine can read of a process and those it started."""
    own = Path(f"/proc/{pid}")
    try:
        children = (own / f"task/{pid}/children").read_text().split()
        line = (own / "cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):  # it has ended since its parent was read
        return []
    return [line, *(line for child in children for line in command_lines(int(child)))]


def test_told_to_stop_it_takes_its_server_along(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a-sweep", trials=1)
    RunTracker(folder, f"sqlite:///{tmp_path}/mlflow.db", "sesttune").sync()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]

    def answers() -> bool:
        try:
            return (
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).status == 200
            )
        except OSError:
            return False

    command = [sys.executable, "-m", "sesttune.ui", "--port", str(port), f"output_dir={tmp_path}"]
    ui = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    wait_for(answers)
    assert len(lines := command_lines(ui.pid)) > 1
    assert "mlflow.db" not in "".join(lines)  # of a database, it would be the password
    ui.send_signal(signal.SIGTERM)  # to it alone, where Ctrl-C reaches all of a terminal
    assert ui.wait(60) == 130
    wait_for(lambda: not answers())
