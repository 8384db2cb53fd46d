"""Memory of the host: keep what a step frees for the next one, and what the store takes.

glibc gives large blocks back to the kernel at once and gets them again page by page, zeroed.
A training step frees and allocates gigabytes: at the default sizes that is a tenth of its time,
and so it is of an encoder's pass (docs/performance.md).
"""

import ctypes
import math
import sys
from collections.abc import Callable
from pathlib import Path

ENVIRONMENT = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "MALLOC_ARENA_MAX": "1",  # only the main arena can hold blocks above 64 MiB
}
"""For a process to be started, whose threads may have arenas of their own before it trains."""

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> None:
    """The same for this process, as far as its threads are still without arenas."""
    mallopt = _of_glibc("mallopt")
    if mallopt is not None:
        for option, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_ARENA_MAX, 1)):
            mallopt(option, value)


def release_freed_memory() -> None:
    """Give back once what has been kept, for a process that goes on with other things."""
    trim = _of_glibc("malloc_trim")
    if trim is not None:
        trim(0)


def mapped_gib(folder: Path) -> tuple[float, float]:
    """(RSS, PSS) in GiB of the files of `folder` that this process maps.

    PSS counts a page that n processes share as 1/n, so the PSS of all trials of a node add up
    to what the page cache holds once. (nan, nan) where the kernel does not say.
    """
    smaps = Path("/proc/self/smaps")
    if not smaps.exists():
        return math.nan, math.nan
    found, real = {"Rss:": 0, "Pss:": 0}, str(folder.resolve())
    inside = False
    for line in smaps.read_text().splitlines():
        word, _, rest = line.partition(" ")
        if "-" in word:  # the head of a mapping: its addresses ... its path
            inside = real in rest
        elif inside and word in found:
            found[word] += int(rest.split()[0])  # kB
    return found["Rss:"] / 2**20, found["Pss:"] / 2**20


def _of_glibc(name: str) -> Callable[..., int] | None:
    """A function of the C library, where it is glibc."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
