"""Folders that are built once, whole or not at all, and shared by every process.

A folder is built under a temporary name by the one process that holds its lock,
gets a `complete.json` with the size of every file, and is renamed into place.
A folder whose files do not match that list is torn (a copy cut short, a full
disk) and is built again.
"""

import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sesttune.errors import UserError

log = logging.getLogger(__name__)

COMPLETE = "complete.json"
Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many are done, and how many there are."""


def no_progress(what: str, done: int, total: int) -> None:
    """The `Progress` that shows nothing."""


def digest(*parts: object) -> str:
    """A 16-digit key that changes when any part's JSON does."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def is_complete(folder: Path) -> bool:
    """Whether every file of `folder` is there with the size it was built with."""
    try:
        sizes = json.loads((folder / COMPLETE).read_text())
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def cached_folder(folder: Path, build: Callable[[Path], None]) -> Path:
    """`folder`, made by `build(draft)` unless a complete one is there already."""
    if is_complete(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_name(f"{folder.name}.lock")):
            if not is_complete(folder):
                _build(folder, build)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"data.cache_dir: the disk of {folder.parent} is full; free some space or set "
                "data.cache_dir to a larger disk"
            ) from None
        if error.errno in (errno.EACCES, errno.EROFS):
            raise UserError(f"data.cache_dir: cannot write to {folder.parent} ({error})") from None
        raise
    return folder


def _build(folder: Path, build: Callable[[Path], None]) -> None:
    if folder.exists():
        log.warning("%s is incomplete: building it again", folder)
        shutil.rmtree(folder)
    draft = folder.with_name(f".{folder.name}-{os.getpid()}")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        build(draft)
        sizes = {file.name: file.stat().st_size for file in sorted(draft.iterdir())}
        (draft / COMPLETE).write_text(json.dumps(sizes))
        os.rename(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)  # released by the kernel if this process dies
        yield
