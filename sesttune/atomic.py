"""Write files whole or not at all: a temporary name beside the target, then a rename.

A reader, and a kill at any point, finds the old file or the new one, never a part. A full
disk is a UserError, for it can be mended and the work continued.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sesttune.errors import UserError

_ROOM_BYTES = 1 << 20


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path that becomes `path` when the block ends well, and goes when it does not.

    Raises UserError where the disk is full; the file that was there stays.
    """
    draft = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        with room_on_disk(path.parent):
            yield draft
            os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """`Path.write_text`, whole or not at all."""
    with replacing(path) as draft:
        draft.write_text(text)


@contextmanager
def room_on_disk(folder: Path) -> Iterator[None]:
    """Turn a failed write to a full disk into a UserError that says so."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch's zip writer raises RuntimeError
        if getattr(error, "errno", None) != errno.ENOSPC and not is_full(folder):
            raise
        raise UserError(
            f"the disk of {folder} is full: nothing is lost; free some space, or lower "
            "training.checkpoint_budget_gb, and continue with --resume"
        ) from None


def is_full(folder: Path) -> bool:
    """Whether next to nothing fits on the disk of `folder`."""
    free = os.statvfs(folder)
    return free.f_bavail * free.f_frsize < _ROOM_BYTES
