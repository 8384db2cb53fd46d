"""What this process may use of the machine, in a container or a batch job too.

Linux keeps such limits in control groups, version 1 or 2 (kernel documentation, cgroup-v1 and
cgroup-v2); /proc/meminfo and the number of cores know nothing of them.
"""

import os
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/")


def cores(root: Path = _ROOT) -> int:
    """Cores by affinity and by the quota of the control group, one at least."""
    found = float(len(os.sched_getaffinity(0)))
    for group in _groups("cpu", root):
        quota, period = _quota(group)
        if quota > 0:
            found = min(found, quota / period)
    return max(1, int(found))


def gpus() -> int:
    """GPUs that trials can be given, as torch counts them.

    Of several instances (MIG) that CUDA_VISIBLE_DEVICES lists, a process sees the first alone, and
    so does torch; but each process can be given its own.
    """
    import torch

    listed = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    instances = sum(name.startswith("MIG-") for name in listed)
    seen = torch.cuda.device_count()
    return max(seen, instances) if seen else 0


def free_memory(root: Path = _ROOT) -> int:
    """Bytes that can be taken, or cached of files, without swapping; 0 where it is not known."""
    meminfo = fields(root / "proc/meminfo")
    free = meminfo.get("MemAvailable:", 0) * 1024
    for group in _groups("memory", root):
        limit = _number(group / "memory.max", group / "memory.limit_in_bytes")
        used = _number(group / "memory.current", group / "memory.usage_in_bytes")
        if limit is not None and used is not None:
            stat = fields(group / "memory.stat")
            cached = stat.get("file", stat.get("total_cache", 0))  # is given up when asked for
            free = min(free, max(0, limit - used + cached))
    return free


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """Folders of this process's control groups that have `controller`, the innermost first."""
    mine = root / "proc/self/cgroup"
    for line in mine.read_text().splitlines() if mine.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / controllers
        inner = top / path.lstrip("/")
        for group in (inner, *inner.parents):
            if group.is_relative_to(top) and group.is_dir():
                yield group


def _quota(group: Path) -> tuple[float, float]:
    """Microseconds of all cores together in a period, and the period; 0 or less: no limit."""
    both = group / "cpu.max"
    if both.exists():
        quota, period = both.read_text().split()
        return (0.0 if quota == "max" else float(quota)), float(period)
    quota_us, period_us = _number(group / "cpu.cfs_quota_us"), _number(group / "cpu.cfs_period_us")
    return float(quota_us or 0), float(period_us or 1)


def _number(*files: Path) -> int | None:
    """Of the first file that is there; None where there is none, or it says "max"."""
    for file in files:
        if file.exists():
            text = file.read_text().strip()
            return None if text == "max" else int(text)
    return None


def fields(file: Path) -> dict[str, int]:
    """The first number of each line by its name."""
    lines = file.read_text().splitlines() if file.exists() else []
    return {words[0]: int(words[1]) for words in map(str.split, lines) if len(words) > 1}
