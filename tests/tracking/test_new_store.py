"""An SQLite store that several processes want at once, and there is none yet."""

import subprocess
import sys
from pathlib import Path

import pytest

from sesttune import promote
from sesttune.command import run

OPEN = """
import sys
from sesttune.tracking.store import unreachable
import mlflow.store.db.utils
print("ready", flush=True)
input()
print(unreachable(sys.argv[1]))
"""


def test_two_sweeps_that_begin_in_a_new_folder_make_one_store(tmp_path: Path) -> None:
    command = [sys.executable, "-c", OPEN, f"sqlite:///{tmp_path}/mlflow.db"]
    pipe = subprocess.PIPE
    both = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(2)]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in both:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    assert [process.communicate(timeout=120)[0] for process in both] == ["None\n"] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]


@pytest.mark.parametrize("words", ["--list", "--rollback"])
def test_who_only_looks_makes_no_store(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str
) -> None:
    assert run(promote.main, [words, "--output-dir", str(tmp_path)]) == 2
    assert "nothing is tracked in" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
