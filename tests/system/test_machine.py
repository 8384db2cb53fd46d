"""Limits of a container or batch job, by files as the kernel writes them."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from sesttune.system.machine import cores, free_memory, gpus

GIB = 1 << 30
MEMINFO = "MemTotal: 67108864 kB\nMemFree: 1000 kB\nMemAvailable: 33554432 kB\n"  # 32 GiB


def written(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in ({"proc/meminfo": MEMINFO} | dict(files)).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


def test_without_limits_it_is_what_the_machine_has(tmp_path: Path) -> None:
    root = written(tmp_path, {"proc/self/cgroup": "0::/user.slice\n"})
    assert (cores(root), free_memory(root)) == (8, 32 * GIB)
    assert free_memory(tmp_path / "nowhere") == 0


@pytest.mark.parametrize("path", ["/", "/slurm/job_12/step_0"])
def test_the_limits_of_version_2_hold_for_what_is_inside(tmp_path: Path, path: str) -> None:
    group = "sys/fs/cgroup" + path.rstrip("/").removesuffix("/step_0")
    files = {
        "proc/self/cgroup": f"0::{path}\n",
        f"{group}/cpu.max": "250000 100000\n",
        f"{group}/memory.max": f"{16 * GIB}\n",
        f"{group}/memory.current": f"{10 * GIB}\n",
        f"{group}/memory.stat": f"anon {6 * GIB}\nfile {4 * GIB}\n",
    }
    if path != "/":
        inner = f"sys/fs/cgroup{path}"
        files |= {f"{inner}/cpu.max": "max 100000\n", f"{inner}/memory.max": "max\n"}
    root = written(tmp_path, files)
    assert (cores(root), free_memory(root)) == (2, 10 * GIB)


def test_the_limits_of_version_1(tmp_path: Path) -> None:
    root = written(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/docker/a\n3:cpu,cpuacct:/docker/a\n1:name=systemd:/\n",
            "sys/fs/cgroup/cpu,cpuacct/docker/a/cpu.cfs_quota_us": "50000\n",
            "sys/fs/cgroup/cpu,cpuacct/docker/a/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/memory/docker/a/memory.limit_in_bytes": f"{2 * GIB}\n",
            "sys/fs/cgroup/memory/docker/a/memory.usage_in_bytes": f"{GIB}\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{40 * GIB}\n",
        },
    )
    assert (cores(root), free_memory(root)) == (1, GIB)


def test_a_container_sees_its_own_group_at_the_top(tmp_path: Path) -> None:
    """/proc names the path on the host, of which there is nothing inside."""
    root = written(
        tmp_path,
        {
            "proc/self/cgroup": "0::/../../kubepods/pod7\n",
            "sys/fs/cgroup/cpu.max": "400000 100000\n",
            "sys/fs/cgroup/memory.max": f"{8 * GIB}\n",
            "sys/fs/cgroup/memory.current": f"{GIB}\n",
        },
    )
    assert (cores(root), free_memory(root)) == (4, 7 * GIB)


@pytest.mark.parametrize(
    ("listed", "seen", "found"),
    [("", 3, 3), ("MIG-a,MIG-b", 1, 2), ("MIG-a", 1, 1), ("0,1", 2, 2), ("MIG-a,MIG-b", 0, 0)],
)
def test_instances_of_a_gpu_are_counted_though_a_process_sees_one(
    monkeypatch: pytest.MonkeyPatch, listed: str, seen: int, found: int
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
    assert gpus() == found
