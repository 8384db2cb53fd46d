import os
import signal
from pathlib import Path

import numpy as np
import pytest
import ray
from helpers.tiny_data import MeanEncoder, TinyData, write_tiny

from sesttune.config.load import load_config
from sesttune.data import shards
from sesttune.data.shards import Encoder, Shard
from sesttune.data.trial_data import TrialData, prepare
from sesttune.errors import UserError
from sesttune.search.ray_encode import encode_with_ray
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


def test_an_error_of_a_worker_is_the_users_one_line(tiny: TinyData) -> None:
    with pytest.raises(UserError, match=r"^\S*alpha.h5ad: a cell holds NaN$"):
        encode(tiny, Failing())
