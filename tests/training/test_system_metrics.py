from pathlib import Path

import pytest
import torch

from sesttune.training.system_metrics import SystemMetrics


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
