"""How fast a trial trains, beside the plan's loop written straightforwardly.

    python benchmarks/train_step.py                       # the plan's sizes, CPU or GPU as found
    python benchmarks/train_step.py --cells 221273        # as many cells as the VCC data
    python benchmarks/train_step.py --expressed 8400      # their density

Writes synthetic cells to an h5ad file, builds the store from it, and prints steps/s of
`run_trial` (validation and checkpoints are in its wall-clock, not in steps/s) against a loop
that, as the plan's did, reads every control and perturbed row of a step from HDF5, encodes
the controls by an MLP 18,080 -> 1,024 -> 512 in the loop, and trains the same head with the
same loss by its formula, in float32.

Both train in processes of their own, in turn, so that neither has the other's memory settings.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from step_variants import EMBED_DIM, Sizes, flop_per_step
from synthetic_trial import add_sizes, open_matrix, read_job, read_row, write_trial
from torch import nn

from sesttune.config.schema import Config
from sesttune.data.sampling import CellSetSampler
from sesttune.data.trial_data import TrialData
from sesttune.model.st_head import HeadConfig, STHead
from sesttune.training.records import read_metrics, read_trial
from sesttune.training.trial import run_trial


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add_sizes(parser)
    parser.add_argument("--hidden-dim", type=int, default=672, help="of the head: %(default)s")
    parser.add_argument("--steps", type=int, default=8, help="a round: %(default)s")
    parser.add_argument("--precision", default="auto", help="of ours: %(default)s")
    parser.add_argument("--compile", default="none", help="of our head: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--no-baseline", action="store_true", help="ours only")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(WORKERS[args.worker](Path(sys.stdin.readline().strip()))))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = {
            "model.kwargs.hidden_dim": args.hidden_dim,
            "training.max_steps": 2 * args.steps,
            "training.precision": args.precision,
            "training.compile": args.compile,
            "training.val_check_interval": args.steps,
        }
        write_trial(folder, args, settings)
        where = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
        print(
            f"{where}, {os.cpu_count()} cores, torch {torch.__version__}; {args.cells:,} cells of "
            f"{args.expressed:,} of {args.genes:,} genes; {args.batch_size} sets of {args.set_len}"
        )
        workers = [*([] if args.no_baseline else ["baseline"]), "ours"]
        found: dict[str, list[dict[str, float]]] = {worker: [] for worker in workers}
        for _ in range(args.rounds):
            for worker in workers:
                found[worker].append(in_process(worker, folder))
        show(found)


def show(found: dict[str, list[dict[str, float]]]) -> None:
    def median(worker: str, key: str) -> float:
        return statistics.median(run[key] for run in found[worker])

    for worker in ("baseline", "ours"):
        if worker in found:
            print(f"{worker}:")
            for key in found[worker][0]:
                print(f"  {key:<32}{median(worker, key):12.4g}")
    if "baseline" in found:
        pairs = zip(found["ours"], found["baseline"], strict=True)
        ratios = [ours["steps_per_s"] / theirs["steps_per_s"] for ours, theirs in pairs]
        print(f"ours / baseline, steps/s: {statistics.median(ratios):.2f} ({ratios})")


def in_process(worker: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, "-W", "ignore", __file__, "--worker", worker]
    done = subprocess.run(
        command, input=f"{folder}\n", stdout=subprocess.PIPE, text=True, check=True
    )
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def ours(folder: Path) -> dict[str, float]:
    """A trial as a sweep runs it; figures of its last interval, which is warm."""
    config, manifest = read_job(folder)
    with tempfile.TemporaryDirectory() as name:
        trial = Path(name) / "trial"
        result = run_trial(config, manifest, trial)
        last = read_metrics(trial)[-1]
        print(read_trial(trial).facts["data"], file=sys.stderr)  # type: ignore[union-attr]
    on_gpu = torch.cuda.is_available()
    return {
        "steps_per_s": last["steps_per_s"],
        "cells_per_s": last["cells_per_s"],
        "waiting_for_data_pct": 100 * last["data_wait_frac"],
        "tflop_per_s": last["steps_per_s"] * flop_per_step(sizes_of(config)) / 1e12,
        "peak_memory_gib": last["gpu_mem_gib"] if on_gpu else peak_rss_gib(),
        "startup_s": result.startup_s,
    }


def baseline(folder: Path) -> dict[str, float]:
    """The plan's loop: HDF5 rows, an encoder MLP in the loop, the loss by its formula."""
    config, manifest = read_job(folder)
    data, kwargs = TrialData.open(manifest), config.model.kwargs
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder = nn.Sequential(
        nn.Linear(data.n_genes, 1_024), nn.ReLU(), nn.Linear(1_024, EMBED_DIM)
    ).to(device)
    head = STHead(HeadConfig(EMBED_DIM, data.pert_dim, data.n_genes, kwargs.hidden_dim)).to(device)
    parameters = [*encoder.parameters(), *head.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=config.training.lr)
    sampler = CellSetSampler(data, kwargs.st_cell_set_len, 0)
    times, read_s = [], 0.0
    x = open_matrix(folder)
    for _ in range(config.training.max_steps // 2 + 1):
        start = time.perf_counter()
        sets = sampler.next_sets(config.training.batch_size)
        control, target = (
            np.stack([np.stack([read_row(x, int(r), data.n_genes) for r in rows]) for rows in s])
            for s in (sets.control_rows, sets.pert_rows)
        )
        features = torch.from_numpy(data.features[sets.pert_codes]).to(device)
        tensors = [torch.from_numpy(part).to(device) for part in (control, target)]
        read = time.perf_counter()
        predicted = head(encoder(tensors[0]), features)
        loss = plain_energy(predicted, tensors[1]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
        times.append(time.perf_counter() - start)
        read_s += read - start
    steps_per_s = 1 / statistics.median(times[1:])
    cells = config.training.batch_size * kwargs.st_cell_set_len
    return {
        "steps_per_s": steps_per_s,
        "cells_per_s": steps_per_s * cells,
        "waiting_for_data_pct": 100 * read_s / sum(times),
        "peak_memory_gib": peak_rss_gib()
        if device.type == "cpu"
        else torch.cuda.max_memory_allocated() / 2**30,
    }


def plain_energy(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    def mean_distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.cdist(a, b).mean((-2, -1))

    return mean_distance(x, y) - mean_distance(x, x) / 2 - mean_distance(y, y) / 2


def sizes_of(config: Config) -> Sizes:
    kwargs = config.model.kwargs
    return Sizes(
        config.training.batch_size,
        kwargs.st_cell_set_len,
        kwargs.output_dim or 0,
        kwargs.hidden_dim,
    )


def peak_rss_gib() -> float:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) / 2**20


WORKERS = {"baseline": baseline, "ours": ours}

if __name__ == "__main__":
    main()
