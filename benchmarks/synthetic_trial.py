"""Synthetic cells for the benchmarks of a trial: an h5ad file, its store, and settings."""

import argparse
import json
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import torch
from scipy import sparse
from step_variants import EMBED_DIM, PERT_DIM

from sesttune.config.load import from_dict, load_config, to_dict
from sesttune.config.schema import Config
from sesttune.data.trial_data import prepare

PERTURBATIONS, BATCHES, CONTROL, EMBED_KEY = 150, 4, "non-targeting", "X_embedding"


def add_sizes(parser: argparse.ArgumentParser) -> None:
    """Options for the sizes of the data and of a batch; defaults are sesttune's."""
    parser.add_argument("--cells", type=int, default=20_000, help="default: %(default)s")
    parser.add_argument("--genes", type=int, default=18_080, help="default: %(default)s")
    parser.add_argument("--expressed", type=int, default=3_000, help="genes of a cell: %(default)s")
    parser.add_argument("--set-len", type=int, default=128, help="default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=16, help="cell sets: %(default)s")
    parser.add_argument("--gzip", action="store_true", help="compress the h5ad file")


def write_trial(folder: Path, args: argparse.Namespace, more: dict[str, object]) -> None:
    """Cells, store and settings in `folder`, for `read_job`; `more` are settings."""
    write_cells(folder, args)
    config = load_config(
        base={
            "data.kwargs.toml_config_path": str(folder / "split.toml"),
            "data.kwargs.perturbation_features_file": str(folder / "features.pt"),
            "data.kwargs.embed_key": EMBED_KEY,
            "data.cache_dir": str(folder / "cache"),
            "model.kwargs.input_dim": args.genes,
            "model.kwargs.output_dim": args.genes,
            "model.kwargs.st_cell_set_len": args.set_len,
            "training.batch_size": args.batch_size,
            **more,
        }
    )
    manifest = prepare(config, lambda: None)  # type: ignore[arg-type,return-value]
    job = {"config": to_dict(config), "manifest": str(manifest)}
    (folder / "job.json").write_text(json.dumps(job))


def read_job(folder: Path) -> tuple[Config, Path]:
    """Settings and manifest of what `write_trial` wrote."""
    job = json.loads((folder / "job.json").read_text())
    return from_dict(job["config"]), Path(job["manifest"])


def open_matrix(folder: Path) -> h5py.Group:
    """The CSR matrix of the h5ad file."""
    return h5py.File(folder / "cells.h5ad")["X"]


def read_row(x: h5py.Group, row: int, genes: int) -> np.ndarray:
    """One row of a CSR matrix in HDF5, log1p and dense."""
    first, stop = x["indptr"][row], x["indptr"][row + 1]
    values, columns = x["data"][first:stop], x["indices"][first:stop]
    out = np.zeros(genes, np.float32)
    out[columns] = np.log1p(values * (1e4 / values.sum()))
    return out


def write_cells(folder: Path, args: argparse.Namespace) -> None:
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
            size = args.cells * count
            how = {"chunks": (min(2**18, size),), "compression": "gzip" if args.gzip else None}
            x.create_dataset(name, (size,), dtype, **how)
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
