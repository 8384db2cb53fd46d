import json
import shutil
import tempfile
import time
from pathlib import Path

import pytest
from helpers.tiny_data import MeanEncoder, write_tiny

from sesttune.config.load import load_config
from sesttune.data.trial_data import prepare
from sesttune.errors import UserError
from sesttune.search.driver import run_sweep
from sesttune.search.listener import SweepListener
from sesttune.search.packing import Measured, choose, find_packing, one_gpu
from sesttune.search.space_file import parse_space
from sesttune.training.records import list_trials, update_trial


def rates(*steps_per_s: float, gib: float = 10.0) -> list[Measured]:
    return [Measured(2**n, rate, gib) for n, rate in enumerate(steps_per_s)]


@pytest.mark.parametrize(
    ("measured", "chosen"),
    [
        (rates(100), 1),
        (rates(100, 105), 1),  # the GPU was busy: two trials at half the speed
        (rates(100, 150), 2),
        (rates(100, 150, 155), 2),
        (rates(100, 190, 300), 4),
        (rates(100, 90, 300), 1),  # a jump after a loss is a faulty measurement
    ],
)
def test_more_trials_share_a_gpu_while_it_pays(measured: list[Measured], chosen: int) -> None:
    assert choose(measured) == chosen


def packing(outcomes: dict[int, Measured | None], gpu_gib: float) -> list[int]:
    tried = []

    def run(count: int) -> Measured | None:
        tried.append(count)
        return outcomes[count]

    find_packing(run, [1, 2, 4], gpu_gib)
    return tried


def test_nothing_is_tried_that_cannot_fit_or_pay() -> None:
    one, two, four = rates(100, 190, 300, gib=30.0)
    assert packing({1: one, 2: two, 4: four}, gpu_gib=141.0) == [1, 2, 4]
    assert packing({1: one, 2: two}, gpu_gib=80.0) == [1, 2]
    assert packing({1: one}, gpu_gib=40.0) == [1]
    assert packing({1: one, 2: Measured(2, 101, 30.0)}, gpu_gib=141.0) == [1, 2]
    assert packing({1: one, 2: None}, gpu_gib=141.0) == [1, 2]  # ran out of memory
    with pytest.raises(UserError, match="does not fit a whole GPU"):
        packing({1: None}, gpu_gib=8.0)


@pytest.mark.slow
def test_trials_are_measured_on_one_gpu_of_a_cluster_of_several(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import ray
    from ray.cluster_utils import Cluster

    def where() -> tuple[str, list[int]]:
        time.sleep(2)  # until all run
        return ray.get_runtime_context().get_node_id(), ray.get_gpu_ids()

    scratch = tempfile.mkdtemp(prefix="ray-")  # others must not find it as this machine's cluster
    monkeypatch.setenv("RAY_TMPDIR", scratch)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 0})
    for _ in range(2):
        cluster.add_node(num_cpus=4, num_gpus=2)
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        with one_gpu(cpus=4.0) as on_it:
            for count in (1, 2, 4):
                trial = ray.remote(num_cpus=1, num_gpus=1 / count, **on_it)(where)
                places = ray.get([trial.remote() for _ in range(count)])
                assert all(place == places[0] for place in places)
    finally:
        ray.shutdown()
        cluster.shutdown()
        shutil.rmtree(scratch, ignore_errors=True)


class Heard(SweepListener):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def on_note(self, text: str) -> None:
        self.notes.append(text)


@pytest.mark.slow
def test_a_sweep_measures_once_and_remembers(tmp_path: Path) -> None:
    """Real Ray and real trials; the GPU is one that Ray counts and torch does not see."""
    import ray

    more = {"training.device": "auto", "sweep.gpus_per_trial": "auto", "training.max_steps": 10}
    config = load_config(base=write_tiny(tmp_path).settings(**more))
    manifest = prepare(config, MeanEncoder)
    batches = {"type": "choice", "values": [2, 4]}
    space = parse_space(
        {"searcher": "grid", "parameters": {"training.batch_size": batches}}, "test space"
    )
    folder = tmp_path / "sweep"
    ray.init(address="local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False)
    try:
        heard = Heard()
        run_sweep(folder, config, space, manifest, [heard])
        record = json.loads((folder / "packing.json").read_text())
        counts = [measured["trials"] for measured in record["measured"]]
        assert counts == [1, 2]  # two cores: no room for four
        assert record["trials_per_gpu"] in counts
        assert all(measured["steps_per_s"] > 0 for measured in record["measured"])
        assert not (folder / ".packing").exists()
        assert {r.status for r in list_trials(folder)} == {"done"}
        assert heard.notes[0].startswith("measuring how many trials share a GPU")
        assert heard.notes[1].startswith(f"trials on a GPU: {record['trials_per_gpu']} (")
        update_trial(folder / "trials" / "002", "pending", None)
        again = Heard()
        run_sweep(folder, config, space, manifest, [again], resume=True)
        assert again.notes == []
        assert {r.status for r in list_trials(folder)} == {"done"}
    finally:
        ray.shutdown()
