import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from sesttune.command import run
from sesttune.errors import UserError, check_file

NOBODY = 65_534


@pytest.fixture
def nobody() -> Iterator[None]:
    """A user without permissions, where the tests are root's."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(NOBODY)
    yield
    os.seteuid(before)


@pytest.fixture
def closed(tmp_path: Path) -> Path:
    file = tmp_path / "closed.toml"
    file.touch()
    file.chmod(0)
    return file


@pytest.mark.parametrize("name", ["closed.toml", "closed.toml/x", "none", "x" * 300, "."])
def test_a_file_that_cannot_be_read_is_a_line_with_its_reason(
    tmp_path: Path, closed: Path, nobody: None, name: str
) -> None:
    with pytest.raises(UserError, match=r"^key: \S+ (cannot be read|does not|is a folder)"):
        check_file(tmp_path / name, "key: ")


def test_a_lack_of_permission_is_named_as_such(closed: Path, nobody: None) -> None:
    with pytest.raises(UserError, match=r"closed.toml cannot be read: you lack the permission"):
        check_file(closed)


def test_a_command_that_lacks_a_permission_ends_with_a_line(
    closed: Path, nobody: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(lambda argv: len(closed.read_text())) == 2
    assert capsys.readouterr().err == f"error: {closed}: you lack the permission\n"


def test_a_read_only_file_system_ends_a_command_with_a_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def main(argv: Sequence[str]) -> int:
        raise OSError(errno.EROFS, "Read-only file system", "/ro/run/.driver.lock")

    assert run(main, []) == 2
    assert capsys.readouterr().err == "error: /ro/run/.driver.lock: the file system is read-only\n"
