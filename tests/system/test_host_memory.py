import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sesttune.system.host_memory import ENVIRONMENT, mapped_gib

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

FAULTS = """
import resource, sys, threading
import torch
from sesttune.system.host_memory import keep_freed_memory
if "keep" in sys.argv:
    keep_freed_memory()
def faults(count):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(count):
        torch.ones(16_000_000)  # 64 MB: 16,000 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
def count():
    faults(10)  # a thread's cache of small blocks takes the ends of the first ones
    # The least, as a thread of torch's that starts late takes its own of what was freed.
    print(min(faults(2) for _ in range(3)))
worker = threading.Thread(target=count)
worker.start()
worker.join()
count()
"""


def page_faults(*arguments: str, **environment: str) -> list[int]:
    """Of a step that is not the first, in a thread and in the main one."""
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, *arguments],
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return [int(line) for line in done.stdout.splitlines()]


def test_freed_memory_is_used_again() -> None:
    assert min(page_faults()) > 10_000  # else there is nothing to gain on this machine
    assert max(page_faults("keep")) < 1_000
    assert max(page_faults(**ENVIRONMENT)) < 1_000


def test_kept_memory_can_be_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", KEPT], capture_output=True, text=True, check=True)
    before, kept, released = (int(word) for word in done.stdout.split())
    assert kept - before > 150_000 > 10_000 > released - before  # kB


KEPT = """
from pathlib import Path
import torch
from sesttune.system.host_memory import keep_freed_memory, release_freed_memory
def rss():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith("VmRSS"))
keep_freed_memory()
print(rss())
torch.ones(50_000_000)
print(rss())
release_freed_memory()
print(rss())
"""

MAPPED = """
import sys, time
from pathlib import Path
import numpy as np
from sesttune.system.host_memory import mapped_gib
folder = Path(sys.argv[1])
array = np.load(folder / "values.npy", mmap_mode="r")
array.sum()
print("mapped", flush=True)
sys.stdin.readline()
print(*mapped_gib(folder))
"""


def test_processes_share_one_copy_of_the_store(tmp_path: Path) -> None:
    np.save(tmp_path / "values.npy", np.ones(32 * 2**20, np.uint8))
    command = [sys.executable, "-c", MAPPED, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    running = [subprocess.Popen(command, **pipes) for _ in range(3)]  # type: ignore[call-overload]
    for process in running:
        assert process.stdout.readline() == "mapped\n"
    found, _ = running[0].communicate("\n")  # while the others still have it mapped
    for process in running[1:]:
        process.communicate("\n")
    assert [float(word) for word in found.split()] == pytest.approx([1 / 32, 1 / 96], rel=0.02)


def test_a_folder_is_found_by_a_link_to_it(tmp_path: Path) -> None:
    np.save(tmp_path / "values.npy", np.ones(2**20, np.uint8))
    (tmp_path / "scratch").symlink_to(tmp_path)
    array = np.load(tmp_path / "scratch" / "values.npy", mmap_mode="r")
    array.sum()
    assert mapped_gib(tmp_path / "scratch") == mapped_gib(tmp_path) > (0.0, 0.0)


def test_a_folder_that_is_not_mapped_takes_nothing(tmp_path: Path) -> None:
    assert mapped_gib(tmp_path) == (0.0, 0.0)
