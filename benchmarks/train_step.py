"""How fast a trial trains, beside a plain loop written straightforwardly.

    python benchmarks/train_step.py                       # the default sizes, CPU or GPU as found
    python benchmarks/train_step.py --cells 221273        # as many cells as the VCC data
    python benchmarks/train_step.py --expressed 8400      # their density
    python benchmarks/train_step.py --compile none default reduce-overhead --precision 32 bf16

Writes synthetic cells to an h5ad file, builds the store from it, and prints steps/s of
`run_trial` (validation and checkpoints are in its wall-clock, not in steps/s) against a loop
that reads every control and perturbed row of a step from HDF5, encodes the controls by an MLP
18,080 -> 1,024 -> 512 in the loop, and trains the same head with the same loss by its formula, in
float32.

Both train in processes of their own, in turn, so that neither has the other's memory settings.
"""

import argparse
import itertools
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

from sesttune.config.load import with_point
from sesttune.config.schema import Config
from sesttune.data.sampling import CellSetSampler
from sesttune.data.trial_data import TrialData
from sesttune.model.st_head import HeadConfig, STHead
from sesttune.training.records import read_metrics, read_trial
from sesttune.training.trial import run_trial

BASELINE, OURS = "plain loop", "sesttune"
FIGURES = ("steps/s", "cells/s", "waiting, %", "TFLOP/s", "peak GiB", "startup, s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add_sizes(parser)
    parser.add_argument("--hidden-dim", type=int, default=672, help="of the head: %(default)s")
    parser.add_argument("--steps", type=int, default=8, help="a round: %(default)s")
    for name, default, choices in (
        ("--precision", "auto", ("auto", "32", "bf16")),
        ("--compile", "none", ("none", "default", "reduce-overhead")),
    ):
        what = "of ours, one or more"
        parser.add_argument(name, nargs="+", default=[default], choices=choices, help=what)
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--no-baseline", action="store_true", help="ours only")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(work(args.worker[0], Path(args.worker[1]))))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = {
            "model.kwargs.hidden_dim": args.hidden_dim,
            "training.max_steps": 2 * args.steps,
            "training.val_check_interval": args.steps,
        }
        write_trial(folder, args, settings)
        where = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
        print(
            f"{where}, {os.cpu_count()} cores, torch {torch.__version__}; {args.cells:,} cells of "
            f"{args.expressed:,} of {args.genes:,} genes; {args.batch_size} sets of {args.set_len}"
        )
        variants = itertools.product(args.precision, args.compile)
        workers = [
            *([] if args.no_baseline else [BASELINE]),
            *(f"{OURS} {p} {c}" for p, c in variants),
        ]
        found: dict[str, list[dict[str, float]]] = {worker: [] for worker in workers}
        for _ in range(args.rounds):
            for worker in workers:
                found[worker].append(in_process(worker, folder))
        show(found)


def show(found: dict[str, list[dict[str, float]]]) -> None:
    """A row a worker with the medians of its rounds; then the ratios round by round."""
    print(f"{'':<30}" + "".join(f"  {name:>10}" for name in FIGURES))
    for worker, runs in found.items():
        cells = []
        for name in FIGURES:
            values = [run[name] for run in runs if name in run]
            cells.append(f"{statistics.median(values):10.4g}" if values else f"{'-':>10}")
        print(f"{worker:<30}" + "".join(f"  {cell}" for cell in cells))
    for worker in found:
        if BASELINE in found and worker != BASELINE:
            pairs = zip(found[worker], found[BASELINE], strict=True)
            ratios = [ours["steps/s"] / theirs["steps/s"] for ours, theirs in pairs]
            spread = ", ".join(f"{ratio:.2f}" for ratio in ratios)
            print(f"{worker} / {BASELINE}, steps/s: {statistics.median(ratios):.2f} ({spread})")


def in_process(worker: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, "-W", "ignore", __file__, "--worker", worker, str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def work(worker: str, folder: Path) -> dict[str, float]:
    """`FIGURES` of a worker, by its name."""
    if worker == BASELINE:
        return baseline(folder)
    _, precision, mode = worker.split()
    return ours(folder, precision, mode)


def ours(folder: Path, precision: str, mode: str) -> dict[str, float]:
    """A trial as a sweep runs it; figures of its last interval, which is warm."""
    config, manifest = read_job(folder)
    config = with_point(config, {"training.precision": precision, "training.compile": mode})
    with tempfile.TemporaryDirectory() as name:
        trial = Path(name) / "trial"
        result = run_trial(config, manifest, trial)
        last = read_metrics(trial)[-1]
        print(read_trial(trial).facts["data"], file=sys.stderr)  # type: ignore[union-attr]
    on_gpu = torch.cuda.is_available()
    return {
        "steps/s": last["steps_per_s"],
        "cells/s": last["cells_per_s"],
        "waiting, %": 100 * last["data_wait_frac"],
        "TFLOP/s": last["steps_per_s"] * flop_per_step(sizes_of(config)) / 1e12,
        "peak GiB": last["gpu_mem_gib"] if on_gpu else peak_rss_gib(),
        "startup, s": result.startup_s,
    }


def baseline(folder: Path) -> dict[str, float]:
    """The plain loop: HDF5 rows, an encoder MLP in the loop, the loss by its formula."""
    config, manifest = read_job(folder)
    data, kwargs = TrialData(manifest), config.model.kwargs
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
        "steps/s": steps_per_s,
        "cells/s": steps_per_s * cells,
        "waiting, %": 100 * read_s / sum(times),
        "peak GiB": peak_rss_gib()
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


if __name__ == "__main__":
    main()
