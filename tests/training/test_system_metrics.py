import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sesttune.training import system_metrics
from sesttune.training.system_metrics import SystemMetrics


def test_what_is_in_use_is_counted_in_megabytes_and_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 1000000 kB\nMemFree: 100000 kB\nMemAvailable: 750000 kB\n")
    monkeypatch.setattr(system_metrics, "MEMINFO", meminfo)
    disk = SimpleNamespace(free=3 * 10**9, used=10**9, total=4 * 10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk)
    monkeypatch.setattr(system_metrics, "cores", lambda: 4)
    clocks = {"process_time": iter((10.0, 12.0, 99.0)), "perf_counter": iter((5.0, 6.0, 7.0))}
    ticking = {name: ticks.__next__ for name, ticks in clocks.items()}
    monkeypatch.setattr(system_metrics, "time", SimpleNamespace(**ticking))
    metrics = SystemMetrics(tmp_path, torch.device("cpu"))
    first, second = metrics.read(), metrics.read()
    assert first == {
        "system/cpu_utilization_percentage": 50.0,  # two of four cores for a second
        "system/system_memory_usage_megabytes": 256.0,
        "system/system_memory_usage_percentage": 25.0,
        "system/disk_available_megabytes": 3_000.0,
        "system/disk_usage_percentage": 25.0,
    }
    # More than there is, as the two clocks do not tick at the same moments.
    assert second["system/cpu_utilization_percentage"] == 100


def test_a_utilization_that_cannot_be_read_is_said_once_and_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def lacking(_: object) -> int:
        raise ModuleNotFoundError("pynvml does not seem to be installed")

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (30 * 10**9, 80 * 10**9))
    monkeypatch.setattr(torch.cuda, "utilization", lacking)
    metrics = SystemMetrics(tmp_path, torch.device("cuda", 0))
    for _ in range(2):
        found = metrics.read()
        assert found["system/gpu_0_memory_usage_megabytes"] == 50_000
        assert "system/gpu_0_utilization_percentage" not in found
    assert caplog.messages == [
        "no system/gpu_0_utilization_percentage: pynvml does not seem to be installed"
    ]
