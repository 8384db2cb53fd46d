import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

_PRINTS = """
import signal, sys, time
from pathlib import Path
from sesttune.command import run
signal.signal(signal.SIGHUP, signal.SIG_IGN)
def main(argv):
    print("begun")
    while not Path("closed").exists():
        time.sleep(0.02)
    for stream in (sys.stdout, sys.stderr, sys.stdout):
        print("gone", file=stream, flush=True)
    Path("ended").touch()
    return 7
sys.exit(run(main))
"""


def test_a_command_whose_terminal_closes_goes_on_and_prints_nowhere(tmp_path: Path) -> None:
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(tmp_path)
        os.execv(sys.executable, [sys.executable, "-c", _PRINTS])
    shown = os.read(terminal, 100)
    os.close(terminal)
    (tmp_path / "closed").touch()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert (tmp_path / "ended").exists()
    assert (shown.strip(), code) == (b"begun", 7)


@pytest.mark.parametrize("closing", [">&-", ">&- 2>&-", ">/dev/full", ">/dev/full 2>&1"])
def test_a_command_without_output_or_with_its_disk_full_goes_on(
    tmp_path: Path, closing: str
) -> None:
    (tmp_path / "closed").touch()
    (tmp_path / "prints.py").write_text(_PRINTS)
    call = f"{sys.executable} prints.py {closing}"
    done = subprocess.run(["sh", "-c", call], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (7, "")
    assert "Error" not in done.stderr
    assert (tmp_path / "ended").exists()


def test_output_to_a_file_is_all_there(tmp_path: Path) -> None:
    (tmp_path / "closed").touch()
    call = [sys.executable, "-c", _PRINTS]
    with (tmp_path / "log").open("w") as log:
        subprocess.run(call, cwd=tmp_path, stdout=log, stderr=log, check=False)
    assert (tmp_path / "log").read_text().split() == ["begun", "gone", "gone", "gone"]


_HOSTILE = r"""
import sys
from sesttune.command import open_console, run
from sesttune.errors import UserError
def main(argv):
    open_console().print("'\x1b]52;c;eA==\x07' \x9b2J\x1b[6n", style="bold")
    raise UserError("no '\x1bc'")
sys.exit(run(main))
"""


def test_labels_of_a_file_do_not_steer_the_terminal(tmp_path: Path) -> None:
    """OSC 52 fills the clipboard of who looks at it, \x1bc clears all that was said, and \x1b[6n
    has the terminal type."""
    child, terminal = pty.fork()
    if child == 0:
        os.environ["TERM"] = "xterm"
        os.execv(sys.executable, [sys.executable, "-c", _HOSTILE])
    shown = b""
    while b"error" not in shown or not shown.endswith(b"\n"):
        shown += os.read(terminal, 1000)
    os.waitpid(child, 0)
    lines = shown.decode().splitlines()
    assert lines == ["\x1b[1m'\\x1b]52;c;eA==' \\x9b2J\\x1b[6n\x1b[0m", "error: no '\\x1bc'"]
