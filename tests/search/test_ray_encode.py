import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
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


class Failing(MeanEncoder):
    def encode(self, x: object, match: object) -> np.ndarray:
        raise UserError("a cell holds NaN")


@pytest.fixture(scope="module", autouse=True)
def own_ray() -> Iterator[None]:
    """One Ray for the module, whose workers can import this file."""
    here = Path(__file__).parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(here), str(here.parent)]))
        with ray_session(load_config(["training.device=cpu"])):
            yield


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinyData:
    monkeypatch.setattr(shards, "SHARD_CELLS", 16)
    return write_tiny(tmp_path)


def encode(tiny: TinyData, encoder: Encoder, workers: int = 2) -> tuple[TrialData, list[int]]:
    seen: list[int] = []

    def run(parts: list[Shard], encoder: Encoder, progress: object) -> None:
        note = lambda what, done, total: seen.append(done)  # noqa: E731
        encode_with_ray(parts, encoder, note, workers, {"num_cpus": 1})

    config = load_config(base=tiny.settings())
    return TrialData(prepare(config, lambda: encoder, runner=run)), seen  # type: ignore[arg-type]


@pytest.mark.parametrize("calls_at_once", [pytest.param(1, marks=pytest.mark.slow), 2])
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
    assert np.array_equal(TrialData(prepare(alone, MeanEncoder)).controls.matrix, matrix)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU itself")
def test_a_cluster_without_a_gpu_is_not_asked(tiny: TinyData, tmp_path: Path) -> None:
    """One that has some: test_measuring.py."""
    (tmp_path / "calls").mkdir()
    config = load_config(["sweep.address=auto"], base=tiny.settings())
    prepare(config, lambda: Recorded(tmp_path / "calls"), runner=shard_runner(config))
    made = {path.name.partition("-")[0] for path in (tmp_path / "calls").iterdir()}
    assert made == {str(os.getpid())}


def test_an_error_of_a_worker_is_the_users_one_line(tiny: TinyData) -> None:
    with pytest.raises(UserError, match=r"^\S*alpha.h5ad: a cell holds NaN$"):
        encode(tiny, Failing(), workers=1)
