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
FULL = (errno.ENOSPC, errno.EDQUOT)
"""What a write says where the disk, or its user's quota of it, is full."""


class DiskFull(UserError):
    """A write that failed for want of room."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path that becomes `path` when the block ends well, and goes when it does not.

    Raises DiskFull where it is so; the file that was there stays.
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
    """Turn a failed write to a full disk into a `DiskFull` that says so."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # torch and safetensors have errors of their own for it
        if not _says_full(error) and not is_full(folder):
            raise
        raise DiskFull(f"the disk of {folder} is full: free some space") from None


def _says_full(error: BaseException | None) -> bool:
    """Whether it, or what it came of, is the system's word for a full disk."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        error = error.__cause__ or error.__context__
    return False


def is_full(folder: Path) -> bool:
    """Whether next to nothing fits on the disk of `folder`."""
    free = os.statvfs(folder)
    return free.f_bavail * free.f_frsize < _ROOM_BYTES
