"""How fast a trial trains, beside the plan's loop written straightforwardly.

    python benchmarks/train_step.py                       # the plan's sizes, CPU or GPU as found
    python benchmarks/train_step.py --cells 221273        # as many cells as the VCC data
    python benchmarks/train_step.py --expressed 8400      # their density

Writes synthetic cells to an h5ad file, builds the store from it, and prints
- densified rows/s from the store (and, on a GPU, from device memory) against reading the
  rows of the file one by one;
- steps/s of `run_trial` (validation and checkpoints included in its wall-clock, not in
  steps/s) against a loop that, as the plan's did, reads every control and perturbed row of a
  step from HDF5, encodes the controls by an MLP 18,080 -> 1,024 -> 512 in the loop, and trains the
  same head with the same loss by its formula, in float32.

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
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import torch
from scipy import sparse
from step_variants import EMBED_DIM, PERT_DIM, Sizes, flop_per_step
from torch import nn

from sesttune.config.load import from_dict, load_config, to_dict
from sesttune.config.schema import Config
from sesttune.data.readers import HostReader, ResidentReader
from sesttune.data.sampling import CellSets, CellSetSampler
from sesttune.data.trial_data import TrialData, prepare
from sesttune.model.st_head import HeadConfig, STHead
from sesttune.training.records import read_metrics, read_trial
from sesttune.training.trial import run_trial

PERTURBATIONS, BATCHES, CONTROL, EMBED_KEY = 150, 4, "non-targeting", "X_embedding"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cells", type=int, default=20_000, help="default: %(default)s")
    parser.add_argument("--genes", type=int, default=18_080, help="default: %(default)s")
    parser.add_argument("--expressed", type=int, default=3_000, help="genes of a cell: %(default)s")
    parser.add_argument("--hidden-dim", type=int, default=672, help="of the head: %(default)s")
    parser.add_argument("--set-len", type=int, default=128, help="default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=16, help="cell sets: %(default)s")
    parser.add_argument("--steps", type=int, default=8, help="a round: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--no-baseline", action="store_true", help="ours only")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(WORKERS[args.worker](Path(sys.stdin.readline().strip()))))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder, args)
        config = settings(folder, args)
        manifest = prepare(config, lambda: None)  # type: ignore[arg-type,return-value]
        (folder / "job.json").write_text(
            json.dumps({"config": to_dict(config), "manifest": str(manifest)})
        )
        where = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
        print(
            f"{where}, {os.cpu_count()} cores, torch {torch.__version__}; {args.cells:,} cells of "
            f"{args.expressed:,} of {args.genes:,} genes; {args.batch_size} sets of {args.set_len}"
        )
        workers = ["rows", *([] if args.no_baseline else ["baseline"]), "ours"]
        found: dict[str, list[dict[str, float]]] = {worker: [] for worker in workers}
        for _ in range(args.rounds):
            for worker in workers:
                found[worker].append(in_process(worker, folder))
        show(found)


def show(found: dict[str, list[dict[str, float]]]) -> None:
    def median(worker: str, key: str) -> float:
        return statistics.median(run[key] for run in found[worker])

    for key in found["rows"][0]:
        print(f"{key:<34}{median('rows', key):12,.0f} rows/s")
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


def read_job(folder: Path) -> tuple[Config, Path]:
    job = json.loads((folder / "job.json").read_text())
    return from_dict(job["config"]), Path(job["manifest"])


def rows_rate(folder: Path) -> dict[str, float]:
    """Rows/s of the perturbed cells of batches, as the reader threads make them."""
    config, manifest = read_job(folder)
    data = TrialData.open(manifest)
    sampler = CellSetSampler(data, config.model.kwargs.st_cell_set_len, 0)
    sets = [sampler.next_sets(config.training.batch_size) for _ in range(12)]
    found = {}
    for count in sorted({1, os.cpu_count() or 1}):
        host, threads = HostReader(data), ThreadPoolExecutor(count)

        def from_store(sets: list[CellSets], host=host, threads=threads, count=count) -> None:
            for first in range(0, len(sets), count):
                for _ in threads.map(host.prepare, sets[first : first + count]):
                    pass

        found[f"store, {count} at once"] = best_rate(from_store, sets)
    with h5py.File(folder / "cells.h5ad") as file:
        x = file["X"]

        def one_by_one(sets: list[CellSets]) -> None:
            for row in sets[0].pert_rows.ravel():
                read_row(x, int(row), data.n_genes)

        found["HDF5, row by row"] = best_rate(one_by_one, sets[:1])
    if torch.cuda.is_available():
        reader = ResidentReader(data, torch.device("cuda"))

        def on_device(sets: list[CellSets]) -> None:
            for part in sets:
                reader.finish(reader.prepare(part))
            torch.cuda.synchronize()

        found["device memory"] = best_rate(on_device, sets)
    return found


def best_rate(read: Callable[[list[CellSets]], None], sets: list[CellSets]) -> float:
    """Rows/s of the best of five passes over `sets`, after one that warms memory up."""
    times = []
    for _ in range(6):
        start = time.perf_counter()
        read(sets)
        times.append(time.perf_counter() - start)
    return sum(part.pert_rows.size for part in sets) / min(times[1:])


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
    with h5py.File(folder / "cells.h5ad") as file:
        x = file["X"]
        for _ in range(config.training.max_steps // 2 + 1):
            start = time.perf_counter()
            sets = sampler.next_sets(config.training.batch_size)
            control, target = (
                np.stack(
                    [np.stack([read_row(x, int(r), data.n_genes) for r in rows]) for rows in s]
                )
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


def read_row(x: h5py.Group, row: int, genes: int) -> np.ndarray:
    """One row of a CSR matrix in HDF5, log1p and dense."""
    first, stop = x["indptr"][row], x["indptr"][row + 1]
    values, columns = x["data"][first:stop], x["indices"][first:stop]
    out = np.zeros(genes, np.float32)
    out[columns] = np.log1p(values * (1e4 / values.sum()))
    return out


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


def settings(folder: Path, args: argparse.Namespace) -> Config:
    return load_config(
        base={
            "data.kwargs.toml_config_path": str(folder / "split.toml"),
            "data.kwargs.perturbation_features_file": str(folder / "features.pt"),
            "data.kwargs.embed_key": EMBED_KEY,
            "data.cache_dir": str(folder / "cache"),
            "model.kwargs.input_dim": args.genes,
            "model.kwargs.output_dim": args.genes,
            "model.kwargs.hidden_dim": args.hidden_dim,
            "model.kwargs.st_cell_set_len": args.set_len,
            "training.batch_size": args.batch_size,
            "training.max_steps": 2 * args.steps,
            "training.val_check_interval": args.steps,
        }
    )


def write_data(folder: Path, args: argparse.Namespace) -> None:
    """Cells of one type in blocks (a whole VCC-sized matrix would not fit), features, splits."""
    rng = np.random.default_rng(0)
    names = np.array([CONTROL] + [f"P{i}" for i in range(PERTURBATIONS)])
    labels = np.where(rng.random(args.cells) < 0.2, 0, rng.integers(1, len(names), args.cells))
    frame = pd.DataFrame(
        {
            "target_gene": pd.Categorical(names[labels]),
            "cell_type": pd.Categorical(["A"] * args.cells),
            "batch_var": pd.Categorical([f"b{i % BATCHES}" for i in range(args.cells)]),
        },
        index=[f"c{i}" for i in range(args.cells)],
    )
    var = pd.DataFrame(index=[f"G{i}" for i in range(args.genes)])
    embedding = rng.normal(size=(args.cells, EMBED_DIM)).astype(np.float32)
    path = folder / "cells.h5ad"
    empty = sparse.csr_matrix((args.cells, args.genes), dtype=np.float32)
    anndata.AnnData(empty, frame, var, obsm={EMBED_KEY: embedding}).write_h5ad(path)
    count = args.expressed
    patterns = [np.sort(rng.choice(args.genes, count, replace=False)) for _ in range(64)]
    with h5py.File(path, "r+") as file:
        x = file["X"]
        for name, dtype in (("data", np.float32), ("indices", np.int32)):
            del x[name]
            x.create_dataset(
                name, (args.cells * count,), dtype, chunks=(min(2**18, args.cells * count),)
            )
        x["indptr"][...] = np.arange(0, args.cells * count + 1, count)
        for first in range(0, args.cells, 2_000):
            cells = min(2_000, args.cells - first)
            part = slice(first * count, (first + cells) * count)
            x["data"][part] = rng.geometric(0.4, cells * count).astype(np.float32)
            x["indices"][part] = np.concatenate([patterns[i] for i in rng.integers(64, size=cells)])
    held_out = ", ".join(f'"P{i}"' for i in range(8))
    (folder / "split.toml").write_text(
        f'[datasets]\nbench = "cells.h5ad"\n[training]\nbench = "train"\n'
        f'[fewshot."bench.A"]\nval = [{held_out}]\ntest = []\n'
    )
    features = {
        str(name): torch.from_numpy(rng.normal(size=PERT_DIM)).float() for name in names[1:]
    }
    torch.save(features, folder / "features.pt")


WORKERS = {"rows": rows_rate, "baseline": baseline, "ours": ours}

if __name__ == "__main__":
    main()
