"""Ray where the surroundings are not those of a desk."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from sesttune.config.load import load_config
from sesttune.errors import UserError
from sesttune.search.ray_session import ray_session, slots
from sesttune.system.machine import cores

START = """
from sesttune.config.load import load_config
from sesttune.search.ray_session import ray_session
with ray_session(load_config(["training.device=cpu"])) as slots:
    import ray
    print(slots.concurrent > 0, ray._private.worker.global_worker.node.get_session_dir_path())
    ray.get(ray.remote(lambda: 1).remote())
    import psutil  # Ray brings it along
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        for found in process.net_connections("inet"):
            if found.status == psutil.CONN_LISTEN:
                print(found.laddr.ip, process.name())
"""


@pytest.mark.parametrize(
    ("length", "kept"), [pytest.param(35, True, marks=pytest.mark.slow), (42, False)]
)
def test_ray_starts_in_any_tmpdir_and_listens_on_loopback(length: int, kept: bool) -> None:
    """Its sockets lie there, and Linux takes paths of 107 bytes for them."""
    top = Path(os.sep, "tmp")
    made = top / f"{os.getpid()}-{length}".ljust(length - len(f"{top}/"), "x")
    made.mkdir()
    try:
        script = [sys.executable, "-c", START]
        environment = {name: at for name, at in os.environ.items() if name != "RAY_TMPDIR"}
        environment["TMPDIR"] = str(made)
        environment["HOME"] = str(made / "home")
        (made / "home").mkdir()
        done = subprocess.run(script, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        first, *listening = done.stdout.splitlines()
        started, where = first.split()
        assert started == "True"
        assert Path(where).is_relative_to(made) == kept
        assert len(listening) > 3, "GCS, raylet, a worker and this process"
        assert {line.split()[0] for line in listening} <= {"127.0.0.1", "::ffff:127.0.0.1"}
        token = made / "home" / ".ray" / "auth_token"  # with which one runs code as this user
        assert [oct(path.stat().st_mode)[-3:] for path in (token.parent, token)] == ["700", "600"]
    finally:
        shutil.rmtree(made)


def test_a_folder_that_is_asked_for_is_refused_where_it_is_too_long(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("x" * 90)))
    with (
        pytest.raises(UserError, match=r"RAY_TMPDIR=.*: name a folder of \d\d bytes at most"),
        ray_session(load_config(["training.device=cpu"])),
    ):
        pass


def test_ray_counts_the_gpus_that_torch_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here, as in a container without NVML, it finds none by itself."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    before = signal.getsignal(signal.SIGTERM)
    with ray_session(load_config([])) as given:
        assert signal.getsignal(signal.SIGTERM) == before, "Ray's ends the process without a word"
        assert given.gpus == 1
        assert given.concurrent == min(3, cores())


def test_each_trial_gets_an_instance_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA shows a process the first of those listed; Ray lists one for each."""
    import ray

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-a,MIG-b")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)

    def listed() -> str:
        time.sleep(2)  # until both run
        return os.environ["CUDA_VISIBLE_DEVICES"]

    with ray_session(load_config([])):
        task = ray.remote(num_cpus=0, num_gpus=1)(listed)
        assert sorted(ray.get([task.remote(), task.remote()])) == ["MIG-a", "MIG-b"]


def test_slots_are_shared_out_and_what_cannot_fit_is_refused():
    def of(available, *overrides):
        return slots(load_config(overrides), available)

    assert of({"CPU": 4}).concurrent == 4
    assert of({"CPU": 5}, "sweep.cpus_per_trial=2").concurrent == 2
    assert of({"CPU": 5}, "sweep.cpus_per_trial=2").threads == 2
    eight = of({"CPU": 64, "GPU": 8})
    assert (eight.concurrent, eight.gpus) == (8, 1)
    assert of({"CPU": 64, "GPU": 2}, "sweep.gpus_per_trial=0.1").concurrent == 20
    assert of({"CPU": 64, "GPU": 2}, "sweep.gpus_per_trial=0.4").concurrent == 4, "two a GPU"
    assert of({"CPU": 64, "GPU": 8}, "sweep.max_concurrent=3").concurrent == 3
    assert of({"CPU": 64, "GPU": 8}, "training.device=cpu").gpus == 0
    for available, override, message in [
        ({"CPU": 2}, "training.device=cuda", "no GPU"),
        ({"CPU": 2}, "sweep.cpus_per_trial=3", "there are 2 cores"),
        ({"CPU": 2, "GPU": 1}, "sweep.gpus_per_trial=2", "a trial computes on one GPU"),
    ]:
        with pytest.raises(UserError, match=message):
            of(available, override)
