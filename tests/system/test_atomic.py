"""A file is whole or not there, and a full disk is told from other errors."""

import errno
from pathlib import Path

import pytest
import torch

from sesttune.errors import UserError
from sesttune.system.atomic import DiskFull, replacing, room_on_disk, write_text
from sesttune.system.run_lock import only_driver


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_and_a_spent_quota_are_one_line(tmp_path: Path, number: int) -> None:
    path = tmp_path / "file"
    write_text(path, "before")
    told = f"the disk of {tmp_path} is full: free some space"

    def half(draft: Path) -> None:
        draft.write_text("half")
        raise OSError(number, "as the system says")

    with pytest.raises(DiskFull, match=told), replacing(path) as draft:
        half(draft)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_what_a_library_makes_of_a_full_disk_is_known_where_the_disk_seems_to_have_room(
    tmp_path: Path,
) -> None:
    with pytest.raises(DiskFull), room_on_disk(tmp_path), Path("/dev/full").open("wb") as file:
        torch.save({"weights": torch.rand(100_000)}, file)


@pytest.mark.parametrize("error", [OSError(errno.EIO, "broken"), ValueError(), UserError("mine")])
def test_other_errors_stay_what_they_are(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as raised, room_on_disk(tmp_path):
        raise error
    assert raised.value is error


def test_one_process_runs_a_folder_and_says_how_to_go_on(tmp_path: Path) -> None:
    again = f"continue with --resume {tmp_path.name}: nothing is lost"
    with pytest.raises(UserError, match=again), only_driver(tmp_path):
        raise DiskFull("the disk is full: free some space")
    busy = pytest.raises(UserError, match="is being run by another process")
    with only_driver(tmp_path), busy, only_driver(tmp_path):
        pass
