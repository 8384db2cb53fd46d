"""A sweep on a Ray cluster that is there already, begun from another folder, with a token."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.tiny_data import TinyData
from helpers.trained_runs import EMBED_KEY, write_embedded

from sesttune.command import run
from sesttune.sweep import main as sweep
from sesttune.train import main as train
from sesttune.training.records import list_trials

TOKEN = "0123456789abcdef0123456789abcdef"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A cluster of one node that wants `TOKEN`."""
    port, elsewhere = free_port(), tmp_path_factory.mktemp("elsewhere")
    # Its sockets' paths must be short, and others must not find it as the cluster of this machine.
    scratch = tempfile.mkdtemp(prefix="ray-")
    words = ["start", "--head", "--block", f"--port={port}", "--num-cpus=2"]
    words += ["--node-ip-address=127.0.0.1", "--include-dashboard=false", "--disable-usage-stats"]
    words += [f"--dashboard-agent-listen-port={free_port()}"]
    node = subprocess.Popen(
        [str(Path(sys.executable).with_name("ray")), *words],
        cwd=elsewhere,
        env={
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": TOKEN,
            "RAY_TMPDIR": scratch,
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_for(port, node)
        yield f"127.0.0.1:{port}"
    finally:
        node.send_signal(signal.SIGTERM)
        node.wait(60)
        shutil.rmtree(scratch, ignore_errors=True)


def wait_for(port: int, node: "subprocess.Popen[bytes]") -> None:
    for _ in range(600):
        assert node.poll() is None, "the cluster did not start"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError("the cluster did not answer")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyData:
    return write_embedded(tmp_path_factory.mktemp("tiny"))


def arguments(tiny: TinyData, **more: object) -> list[str]:
    own = {"data.kwargs.embed_key": EMBED_KEY, "name": "joined", "output_dir": "outputs"}
    few = {"sweep.num_trials": 2, "sweep.finalists": 1, "sweep.seeds": 1, "sweep.extend_to": "[]"}
    space = tiny.folder / "space.yaml"
    space.write_text("parameters: {training.lr: {type: loguniform, low: 1e-4, high: 1e-2}}\n")
    settings = tiny.settings(**{**own, **few, "sweep.space": space, **more})
    del settings["training.lr"]
    return [f"{key}={value}" for key, value in settings.items()]


def in_a_process(words: list[str], cwd: Path, **env: str) -> "subprocess.CompletedProcess[str]":
    """Ray reads how it is to identify itself once a process."""
    command = [sys.executable, "-m", "sesttune.sweep", *words]
    environment = {**os.environ, **env}
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.mark.slow
def test_trials_run_on_the_cluster_with_paths_from_here(
    tiny: TinyData, tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    single = [word for word in arguments(tiny, name="first") if not word.startswith("sweep.")]
    assert run(train, single) == 0
    # From a relative path, which the workers, begun elsewhere, would not find.
    start = {"model.checkpoint": "outputs/first/trials/001/checkpoints/last.ckpt"}
    words = arguments(tiny, **start, **{"training.max_steps": 30})
    known = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    done = in_a_process(words, tmp_path, RAY_ADDRESS=address, **known)
    assert done.returncode == 0, done.stderr
    assert "leaderboard of joined" in done.stdout
    trials = list_trials(tmp_path / "outputs" / "joined")
    assert [(trial.status, trial.stop_reason) for trial in trials] == [("done", "max_steps")] * 2
    for trial in trials:
        assert [line["step"] for line in trial.metrics()] == [20, 25, 30]


@pytest.mark.slow
def test_a_cluster_that_wants_a_token_is_told_from_one_that_is_not_there(
    tiny: TinyData, tmp_path: Path, address: str
) -> None:
    caches = {"data.cache_dir": tmp_path / "cache", "sweep.address": address}
    done = in_a_process(
        arguments(tiny, **caches), tmp_path, RAY_AUTH_MODE="disabled", RAY_AUTH_TOKEN=""
    )
    assert done.returncode == 2
    *others, told = done.stderr.splitlines()
    assert len(others) <= 1, "Ray has a line of its own, not one a second"
    assert "this cluster cannot be joined (RPC error: InvalidAuthToken" in told
    assert "with RAY_AUTH_MODE=token" in told
    assert list(tmp_path.iterdir()) == [], "before the data are read"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("127.0.0.1:{port}", "no Ray cluster answers there"),
        ("127.0.0.1:99999999", "no Ray cluster answers there"),
        ("ray://127.0.0.1:10001", "must be host:port of a cluster's head node, or auto"),
        ("nonsense", "must be host:port of a cluster's head node, or auto"),
    ],
)
def test_an_address_without_a_cluster_is_refused_at_once(
    tiny: TinyData, tmp_path: Path, capsys: pytest.CaptureFixture[str], given: str, message: str
) -> None:
    where = {"output_dir": tmp_path / "outputs", "data.cache_dir": tmp_path / "cache"}
    place = given.format(port=free_port())
    assert run(sweep, arguments(tiny, **where, **{"sweep.address": place})) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"error: sweep.address={place}")
    assert message in line
    assert list(tmp_path.iterdir()) == []
