"""Folders that are built once, whole or not at all, and shared by every process.

A folder is built under a temporary name by the one process that holds its lock,
gets a `complete.json` with the size and sha256 of every file, and is renamed into
place. A folder whose files have not those sizes is torn (a copy cut short, a full
disk) and is built again; the sums are for `verify`.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sesttune.errors import UserError, WrongPlace
from sesttune.system.atomic import FULL, is_full

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
        files = json.loads((folder / COMPLETE).read_text())
        return all((folder / name).stat().st_size == size for name, (size, _) in files.items())
    except (OSError, ValueError, TypeError, AttributeError):
        return False


def is_intact(folder: Path) -> bool:
    """Whether every file of `folder` has the content it was built with; reads them all."""
    if not is_complete(folder):
        return False
    files = json.loads((folder / COMPLETE).read_text())
    return all(_sha256(folder / name) == digest for name, (_, digest) in files.items())


def cached_folder(
    folder: Path, build: Callable[[Path], None], is_good: Callable[[Path], bool] = is_complete
) -> Path:
    """`folder`, made by `build(draft)` unless one that `is_good` is there already."""
    if is_good(folder):
        mark_used(folder)
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Else nobody has begun it, and to look for drafts among 50,000 shards takes 0.1 s.
        begun = lock_of(folder).exists()
        with locked(folder):
            if not is_good(folder):
                _build(folder, build, drafts(folder) if begun else [])
    except OSError as error:
        if error.errno in FULL:
            raise WrongPlace(
                f"data.cache_dir: the disk of {folder.parent} is full; free some space or set "
                "data.cache_dir to a larger disk"
            ) from None
        no_place = (errno.EACCES, errno.EROFS, errno.ENOLCK, errno.ENOSYS)  # the last two: no locks
        if not folder.parent.is_dir() or error.errno in no_place:
            raise WrongPlace(
                f"data.cache_dir: cannot write to {folder.parent} ({error}); set data.cache_dir to "
                "another folder"
            ) from None
        raise
    return folder


def _build(folder: Path, build: Callable[[Path], None], orphans: Iterable[Path]) -> None:
    """`orphans`: drafts of builders that were killed, for this one holds the lock."""
    if folder.exists():
        log.warning("%s is damaged or incomplete: building it again", folder)
        shutil.rmtree(folder)
    for orphan in orphans:
        shutil.rmtree(orphan, ignore_errors=True)
    draft = folder.with_name(f".{folder.name}-{os.getpid()}")
    draft.mkdir()
    try:
        build(draft)
        found = sorted(path for path in draft.rglob("*") if path.is_file())
        files = {
            file.relative_to(draft).as_posix(): (file.stat().st_size, _sha256(file))
            for file in found
        }
        (draft / COMPLETE).write_text(json.dumps(files))
        os.rename(draft, folder)
    except UserError:
        raise
    except Exception as error:  # NumPy and safetensors have errors of their own for a full disk
        if is_full(folder.parent):
            raise OSError(errno.ENOSPC, str(error)) from error
        raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def drafts(folder: Path) -> list[Path]:
    """What unfinished builders of `folder` have left beside it."""
    return sorted(folder.parent.glob(f".{folder.name}-*"))


def lock_of(folder: Path) -> Path:
    """The file that whoever builds or removes `folder` locks."""
    return folder.with_name(f"{folder.name}.lock")


@contextmanager
def locked(folder: Path, wait: bool = True) -> Iterator[None]:
    """Hold the one lock of `folder`; whoever builds or removes it must.

    Raises BlockingIOError where another process holds it and this one is not to `wait`.
    """
    with lock_of(folder).open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise
            log.warning("waiting for another process that is building %s", folder)
            fcntl.flock(handle, fcntl.LOCK_EX)  # released by the kernel if that process dies
        yield


def mark_used(folder: Path) -> None:
    """`prune` goes by this time; a cache that cannot be written to serves as well."""
    with contextlib.suppress(OSError):
        os.utime(folder / COMPLETE)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
