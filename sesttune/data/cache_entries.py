"""What the cache folder holds: list it, check it, throw away what is not used."""

import contextlib
import fcntl
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sesttune.system.cached_folder import COMPLETE, is_complete, lock_of, locked

KINDS = ("stores", "embeddings", "shards", "encoders", "prepared")
DAY_S = 86_400.0


@dataclass(frozen=True)
class Entry:
    """A cached folder; `used` is the time of its last use, in seconds since the epoch."""

    kind: str
    folder: Path
    size: int
    used: float
    complete: bool


def entries(cache: Path) -> list[Entry]:
    """Every folder of the cache, by kind and last use; unfinished ones are not listed."""
    found = [
        _entry(kind, folder)
        for kind in KINDS
        for folder in sorted((cache / kind).glob("[!.]*"))
        if folder.is_dir()
    ]
    return sorted(found, key=lambda entry: (KINDS.index(entry.kind), entry.used))


def prune(cache: Path, older_than_days: float, dry_run: bool = False) -> tuple[int, int]:
    """Remove torn folders, killed builders' drafts, and what was not used for so long.

    Returns how many and how many bytes. A folder that is being built, or that was built or used
    since it was listed, is left alone. What a running process has open stays readable to it.
    """
    limit = time.time() - older_than_days * DAY_S
    sizes = [e.size for e in entries(cache) if _is_due(e, limit) and (dry_run or _remove(e, limit))]
    for draft in _orphans(cache):
        sizes.append(_size(draft))
        if not dry_run:
            shutil.rmtree(draft, ignore_errors=True)
    return len(sizes), sum(sizes)


def _is_due(entry: Entry, limit: float) -> bool:
    return not entry.complete or entry.used < limit


def _remove(entry: Entry, limit: float) -> bool:
    """Remove the folder unless it is in use by now; returns whether it did."""
    folder = entry.folder
    try:
        with locked(folder, wait=False):
            if not folder.is_dir() or not _is_due(_entry(entry.kind, folder), limit):
                return False
            (folder / COMPLETE).unlink(missing_ok=True)  # a kill from here on leaves it torn
            shutil.rmtree(folder)
            return True
    except BlockingIOError:
        return False


def _entry(kind: str, folder: Path) -> Entry:
    used = 0.0
    with contextlib.suppress(OSError):  # another process removes it
        mark = folder / COMPLETE
        used = (mark if mark.exists() else folder).stat().st_mtime
    return Entry(kind, folder, _size(folder), used, is_complete(folder))


def _size(folder: Path) -> int:
    size = 0
    with contextlib.suppress(OSError):  # another process removes it
        for file in folder.rglob("*"):
            size += file.stat().st_size if file.is_file() else 0
    return size


def _orphans(cache: Path) -> Iterator[Path]:
    """Drafts whose builder no longer holds the lock; each kind is listed once."""
    for kind in KINDS:
        for draft in sorted((cache / kind).glob(".*-*")):
            lock = lock_of(draft.with_name(draft.name[1:].rpartition("-")[0]))
            if not lock.exists():
                continue
            with lock.open() as handle:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                yield draft
