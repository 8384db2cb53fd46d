import os
import signal
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from helpers.tiny_data import MeanEncoder, TinyData, write_tiny

from sesttune.config.load import load_config
from sesttune.data import shards
from sesttune.data.shards import Encoder, Shard
from sesttune.data.trial_data import TrialData, prepare
from sesttune.errors import UserError
from sesttune.search.ray_encode import encode_with_ray, shard_runner
from sesttune.search.ray_session import ray_session


class Recorded(MeanEncoder):
    """Leaves a file for every call, named by the process; the first call kills its process."""

    def __init__(self, folder: Path, kill: bool = False) -> None:
        super().__init__()
        self.folder, self.kill = folder, kill

    def encode(self, x: object, match: object) -> np.ndarray:
        first = not list(self.folder.iterdir())
        (self.folder / f"{os.getpid()}-{len(list(self.folder.iterdir()))}").touch()
        if self.kill and first:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode(x, match)  # type: ignore[arg-type]


class NotesItsGpus(MeanEncoder):
    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def encode(self, x: object, match: object) -> np.ndarray:
        gpus = ray.get_gpu_ids() if ray.is_initialized() else ["none"]
        (self.folder / f"{os.getpid()} {gpus}").touch()
        return super().encode(x, match)  # type: ignore[arg-type]


class Failing(MeanEncoder):
    def encode(self, x: object, match: object) -> np.ndarray:
        raise UserError("a cell holds NaN")


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinyData:
    monkeypatch.setattr(shards, "SHARD_CELLS", 16)
    here = Path(__file__).parent
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(here), str(here.parent)]))  # of workers
    return write_tiny(tmp_path)


def encode(tiny: TinyData, encoder: Encoder) -> tuple[TrialData, list[int]]:
    seen: list[int] = []

    def run(parts: list[Shard], encoder: Encoder, progress: object) -> None:
        with ray_session(config):
            assert ray.is_initialized()
            note = lambda what, done, total: seen.append(done)  # noqa: E731
            encode_with_ray(parts, encoder, note, 2, {"num_cpus": 1})

    config = load_config(base=tiny.settings())
    return TrialData.open(prepare(config, lambda: encoder, runner=run)), seen  # type: ignore[arg-type]


@pytest.mark.parametrize("calls_at_once", [1, 2])
def test_two_workers_give_what_one_process_gives_even_if_one_is_killed(
    tiny: TinyData, tmp_path: Path, calls_at_once: int
) -> None:
    calls = tmp_path / "calls"
    calls.mkdir()
    encoder = Recorded(calls, kill=True)
    encoder.calls_at_once = calls_at_once
    data, seen = encode(tiny, encoder)
    processes = {path.name.partition("-")[0] for path in calls.iterdir()}
    assert len(processes) >= 2
    assert seen[0] == 0
    assert seen[-1] == 120
    assert seen == sorted(seen)
    matrix = np.array(data.controls.matrix)
    alone = load_config(base={**tiny.settings(), "data.cache_dir": str(tmp_path / "other")})
    assert np.array_equal(TrialData.open(prepare(alone, MeanEncoder)).controls.matrix, matrix)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU itself")
@pytest.mark.parametrize("gpus", [2, 0])
def test_a_cluster_is_asked_for_its_gpus_where_this_machine_has_none(
    tiny: TinyData, tmp_path: Path, gpus: int
) -> None:
    """The GPUs are some that Ray counts and torch does not see."""
    (tmp_path / "calls").mkdir()
    encoder = NotesItsGpus(tmp_path / "calls")
    config = load_config(["sweep.address=auto"], base=tiny.settings())
    ray.init(address="local", num_cpus=2, num_gpus=gpus, include_dashboard=False)
    try:
        prepare(config, lambda: encoder, runner=shard_runner(config))
    finally:
        ray.shutdown()
    made = [path.name.partition(" ") for path in (tmp_path / "calls").iterdir()]
    if gpus:
        assert {on for _, _, on in made} == {"[0]", "[1]"}
        assert str(os.getpid()) not in [process for process, _, _ in made]
    else:
        assert {process for process, _, _ in made} == {str(os.getpid())}


def test_an_error_of_a_worker_is_the_users_one_line(tiny: TinyData) -> None:
    with pytest.raises(UserError, match=r"^\S*alpha.h5ad: a cell holds NaN$"):
        encode(tiny, Failing())
