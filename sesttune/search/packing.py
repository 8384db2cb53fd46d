"""How many trials share a GPU (`sweep.gpus_per_trial=auto`), found out by running some.

One trial at the space's most demanding point runs alone for a few seconds, then two at once,
then four. More stay only as long as all together do `GAIN` times the steps of fewer and fit the
memory: utilisation is not asked of the driver but seen in what a neighbour costs. All run on one
GPU that Ray keeps free for them: it would spread them over a cluster's nodes. The result is
written to the sweep's folder, and a resumed sweep does not measure again.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sesttune.config.load import from_dict, to_dict, with_point
from sesttune.config.schema import Config
from sesttune.errors import UserError
from sesttune.search.space import SearchSpace
from sesttune.system.atomic import write_text
from sesttune.system.out_of_memory import CONTEXT_GIB
from sesttune.training.records import PACKING

COUNTS = (1, 2, 4)
GAIN = 1.1
"""Less than a tenth more steps is not worth trials that each take longer."""
MEMORY_SHARE = 0.9
"""Of a GPU that trials may fill. A trial is kept to its own share of it, when measured, too."""
INTERVAL, MEASURED_S, MEETING_S = 50, 5.0, 300.0


@dataclass(frozen=True)
class Measured:
    """`trials` at once on one GPU: optimizer steps/s of all together, memory of the largest."""

    trials: int
    steps_per_s: float
    gpu_mem_gib: float


def trials_per_gpu(
    config: Config, space: SearchSpace, manifest: Path, folder: Path, note: Callable[[str], None]
) -> int:
    """As recorded in `folder`, else as measured now. Ray is running and has a GPU.

    `note` is told in words what is done and found.
    """
    path = folder / PACKING
    if path.exists():
        return int(json.loads(path.read_text())["trials_per_gpu"])
    note("measuring how many trials share a GPU (sweep.gpus_per_trial=auto), about a minute")

    fit = _cores_of_a_gpu() / config.sweep.cpus_per_trial
    counts = [count for count in COUNTS if count <= max(1, fit)]
    point = space.widest(config)
    if (batches := space.parameters.get("training.batch_size")) is not None:
        point["training.batch_size"] = max(batches.extremes())
    demanding = with_point(config, point)
    scratch = folder / ".packing"
    try:
        with one_gpu(counts[-1] * config.sweep.cpus_per_trial) as on_it:
            measured = find_packing(
                lambda count: _run_together(
                    demanding, manifest, scratch / str(count), count, on_it
                ),
                counts,
                _memory_gib(on_it),
            )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    chosen = choose(measured)
    write_text(
        path,
        json.dumps({"trials_per_gpu": chosen, "measured": [asdict(m) for m in measured]}, indent=2),
    )
    found = ", ".join(f"{m.trials} at once {m.steps_per_s:.4g}" for m in measured)
    note(f"trials on a GPU: {chosen} (steps/s of all together: {found})")
    return chosen


def find_packing(
    run: Callable[[int], Measured | None], counts: list[int], gpu_gib: float
) -> list[Measured]:
    """Measure more and more trials at once, until they do not fit or gain nothing.

    `run` gives None where memory ran out.
    """
    measured: list[Measured] = []
    for count in counts:
        if measured:
            needed = count * (measured[0].gpu_mem_gib + CONTEXT_GIB)
            if needed > MEMORY_SHARE * gpu_gib or choose(measured) < measured[-1].trials:
                break
        found = run(count)
        if found is None:
            break
        measured.append(found)
    if not measured:
        raise UserError(
            "sweep.gpus_per_trial=auto: the largest trial of the space does not fit a whole GPU; "
            "lower training.batch_size in the space, or set sweep.gpus_per_trial=1"
        )
    return measured


def choose(measured: list[Measured]) -> int:
    """The most trials that were each time worth `GAIN` over fewer."""
    best = measured[0]
    for more in measured[1:]:
        if more.steps_per_s < GAIN * best.steps_per_s:
            break
        best = more
    return best.trials


def _cores_of_a_gpu() -> float:
    """Cores for each GPU, on the node that has the fewest."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return min((n.get("CPU", 0.0) / n["GPU"] for n in nodes if n.get("GPU", 0.0) >= 1), default=1.0)


@contextmanager
def one_gpu(cpus: float) -> Iterator[dict[str, Any]]:
    """A GPU and `cpus` cores of its node, kept free; gives the options of the tasks that run there.

    Waits for them, as trials do, where others use the cluster.
    """
    from ray.util import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    group = placement_group([{"CPU": cpus, "GPU": 1}])
    try:
        yield {"scheduling_strategy": PlacementGroupSchedulingStrategy(group), "max_calls": 1}
    finally:
        remove_placement_group(group)


def _memory_gib(on_it: dict[str, Any]) -> float:
    import ray

    return float(ray.get(ray.remote(num_cpus=0, num_gpus=1, **on_it)(_gpu_gib).remote()))


def _gpu_gib() -> float:
    import torch

    if not torch.cuda.is_available():  # Ray was told of GPUs that torch does not see
        return float("inf")
    return float(torch.cuda.get_device_properties(0).total_memory) / 2**30


def _run_together(
    config: Config, manifest: Path, scratch: Path, count: int, on_it: dict[str, Any]
) -> Measured | None:
    import ray
    from ray.exceptions import RayTaskError

    share = 1 / count
    settings = {
        "sweep.gpus_per_trial": share,
        "training.max_steps": 10**9,
        "training.val_check_interval": INTERVAL,
        "training.early_stopping": False,
        "training.ckpt_every_n_steps": 10**9,
    }
    trial = ray.remote(num_cpus=config.sweep.cpus_per_trial, num_gpus=share, **on_it)(_measure)
    plain = to_dict(with_point(config, settings))
    scratch.mkdir(parents=True, exist_ok=True)
    try:
        found = ray.get(
            [trial.remote(plain, manifest, scratch, number, count) for number in range(count)]
        )
    except RayTaskError as error:
        raise error.cause from None
    if None in found:
        return None
    rates, memory = zip(*found, strict=True)
    return Measured(count, sum(rates), max(memory))


class _Enough(Exception):
    pass


def _measure(
    settings: dict[str, Any], manifest: Path, scratch: Path, number: int, count: int
) -> tuple[float, float] | None:
    """(steps/s, GiB) of one trial while `count` run; None where it ran out of memory."""
    from sesttune.training.records import read_trial
    from sesttune.training.trial import run_trial

    lines: list[dict[str, float]] = []

    def watch(line: dict[str, float]) -> None:
        if line["step"] == 0:
            return
        if not lines:
            _meet(scratch, number, count)
        lines.append(line)
        # The first two intervals began before all were there.
        if len(lines) > 3 and lines[-1]["time"] - lines[1]["time"] >= MEASURED_S:
            raise _Enough

    folder = scratch / f"trial{number}"
    with suppress(_Enough):
        run_trial(from_dict(settings), manifest, folder, watch)
    record = read_trial(folder)
    if record is None or "micro_batch" in record.facts:
        return None
    rates = [line["steps_per_s"] for line in lines[2:]]
    return sum(rates) / len(rates), max(line["gpu_mem_gib"] for line in lines)


def _meet(scratch: Path, number: int, count: int) -> None:
    """Wait until all trials train, so that they are measured beside each other."""
    (scratch / f"ready{number}").touch()
    deadline = time.monotonic() + MEETING_S
    while len(list(scratch.glob("ready*"))) < count:
        if time.monotonic() > deadline:
            raise TimeoutError(f"only some of {count} trials started on one GPU")
        time.sleep(0.01)
