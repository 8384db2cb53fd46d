import os
import pty
import sys
from pathlib import Path

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
