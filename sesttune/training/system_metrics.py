"""How busy the machine is, under the names that MLflow's "System metrics" tab shows.

A trial reads them itself, once a validation, into its metrics line: they reach MLflow as every
other metric does, also when the server was away. They come from the kernel's counters without a
thread and without psutil: a reading takes some 40 µs on a CPU.
"""

import logging
import shutil
import time
from pathlib import Path

import torch

from sesttune.system.machine import cores, fields

log = logging.getLogger(__name__)

PREFIX = "system/"
MEMINFO = Path("/proc/meminfo")


class SystemMetrics:
    """CPU of this process, memory of the machine, the disk of `folder`, and the trial's GPU.

    `cpu_utilization_percentage` is of the cores this process may use, since the last reading.
    `gpu_0` is the trial's own GPU, whichever of the machine it is; its memory counts all processes.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        self._folder, self._device = folder, device
        self._cores = cores()
        self._has_utilization = device.type == "cuda"
        self._cpu, self._clock = time.process_time(), time.perf_counter()

    def read(self) -> dict[str, float]:
        """The metrics by name; those that this machine does not tell are left out."""
        found = {"cpu_utilization_percentage": self._cpu_percentage()}
        found |= _memory() | self._disk()
        if self._device.type == "cuda":
            found |= self._gpu()
        return {PREFIX + name: round(value, 1) for name, value in found.items()}

    def _cpu_percentage(self) -> float:
        before, began = self._cpu, self._clock
        self._cpu, self._clock = time.process_time(), time.perf_counter()
        share = (self._cpu - before) / (max(self._clock - began, 1e-9) * self._cores)
        return 100 * min(share, 1.0)  # the two clocks do not tick at the same moments

    def _disk(self) -> dict[str, float]:
        disk = shutil.disk_usage(self._folder)
        return {
            "disk_available_megabytes": disk.free / 1e6,
            "disk_usage_percentage": 100 * disk.used / disk.total,
        }

    def _gpu(self) -> dict[str, float]:
        free, total = torch.cuda.mem_get_info(self._device)
        found = {
            "gpu_0_memory_usage_megabytes": (total - free) / 1e6,
            "gpu_0_memory_usage_percentage": 100 * (total - free) / total,
        }
        if self._has_utilization:
            try:
                found["gpu_0_utilization_percentage"] = float(torch.cuda.utilization(self._device))
            except Exception as error:  # NVML is a package or a permission away, in many ways
                self._has_utilization = False
                log.warning("no %sgpu_0_utilization_percentage: %s", PREFIX, error)
        return found


def _memory() -> dict[str, float]:
    """Memory in use on the machine."""
    kib = fields(MEMINFO)
    used = kib["MemTotal:"] - kib["MemAvailable:"]
    return {
        "system_memory_usage_megabytes": used * 1024 / 1e6,
        "system_memory_usage_percentage": 100 * used / kib["MemTotal:"],
    }
