"""What a cluster's GPUs do before trials; they are some that Ray counts and torch does not see."""

import os
import signal
from collections.abc import Iterator
from multiprocessing import spawn
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from helpers.tiny_data import MeanEncoder, write_tiny
from rich.console import Console

from sesttune.config.load import load_config
from sesttune.data import shards
from sesttune.data.trial_data import prepare
from sesttune.errors import UserError
from sesttune.plan_run import plan_run
from sesttune.run_setup import Run
from sesttune.search.measuring import Lost, Place, in_a_process, place_for
from sesttune.search.ray_encode import shard_runner
from sesttune.search.ray_session import Slots
from sesttune.search.space_file import parse_space

GIVEN = Slots(cpus=1.0, gpus=0.5, concurrent=2)
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU itself")


def has() -> dict[str, float]:
    return dict(ray.get_runtime_context().get_assigned_resources())


class NotesItsGpus(MeanEncoder):
    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def encode(self, x: object, match: object) -> np.ndarray:
        (self.folder / f"{os.getpid()} {ray.get_gpu_ids()}").touch()
        return super().encode(x, match)  # type: ignore[arg-type]


def refuse(what: str) -> None:
    raise UserError(what)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    here = Path(__file__).parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(here), str(here.parent)]))  # of workers
        ray.init(address="local", num_cpus=2, num_gpus=2, include_dashboard=False)
    yield
    ray.shutdown()


@pytest.fixture
def place(cluster: None) -> Place:
    return place_for(load_config(["sweep.address=auto"]), GIVEN)


def test_a_trial_is_measured_with_what_it_will_have(place: Place) -> None:
    assert place(has) == {"CPU": 1.0, "GPU": 0.5}
    assert place_for(load_config(), GIVEN) is in_a_process
    on_cpus = Slots(cpus=1.0, gpus=0.0, concurrent=2)
    assert place_for(load_config(["sweep.address=auto"]), on_cpus) is in_a_process


@pytest.mark.parametrize("here", [True, False])
def test_errors_are_those_of_the_function_and_a_killed_one_is_lost(
    place: Place, here: bool
) -> None:
    place = in_a_process if here else place
    with pytest.raises(UserError, match=r"^no$"):
        place(refuse, "no")
    with pytest.raises(Lost):
        place(die)


def test_a_plan_is_measured_on_the_cluster(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = write_tiny(tmp_path).settings(**{"training.device": "auto"})
    config = load_config(["sweep.address=auto", "training.compile=none"], base=settings)
    space = parse_space(
        {"parameters": {"training.lr": {"type": "loguniform", "low": 1e-4, "high": 1e-2}}}, "s"
    )
    manifest, folder = prepare(config, MeanEncoder), tmp_path / "sweep"
    folder.mkdir()
    monkeypatch.setattr(spawn, "_python_exe", b"/bin/false")  # nothing can be measured here
    with (tmp_path / "printed").open("w") as file:
        plan_run(Run(folder, config, manifest, space.to_dict()), space, Console(file=file))
    assert "GPU-hours" in (tmp_path / "printed").read_text()
    assert not (folder / ".calibration").exists()


def test_a_cluster_is_asked_for_its_gpus_to_encode(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SHARD_CELLS", 16)
    (tmp_path / "calls").mkdir()
    config = load_config(["sweep.address=auto"], base=write_tiny(tmp_path).settings())
    encoder = NotesItsGpus(tmp_path / "calls")
    prepare(config, lambda: encoder, runner=shard_runner(config))
    made = [path.name.partition(" ") for path in (tmp_path / "calls").iterdir()]
    assert {on for _, _, on in made} == {"[0]", "[1]"}
    assert str(os.getpid()) not in [process for process, _, _ in made]
