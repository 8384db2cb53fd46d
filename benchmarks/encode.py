"""How fast cells become SE embeddings, beside the public implementation where it is installed.

    python benchmarks/encode.py                           # mid size, CPU or GPU as found
    python benchmarks/encode.py --precision fp32 bf16     # both, side by side
    python benchmarks/encode.py --size se600m             # SE-600M's shape, random weights
    pip install -e '.[oracle]'                            # adds arc-state to the comparison

Prints the tokeniser's cells/s on one core, then end-to-end cells/s from an h5ad file (read,
tokenise, compute; models loaded before) of each implementation in turn, and their ratio.
"""

import argparse
import contextlib
import importlib.util
import itertools
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import torch
from omegaconf import OmegaConf
from scipy import sparse
from torch.nn.attention import SDPBackend, sdpa_kernel

from sesttune.data.h5ad import H5adFile
from sesttune.model.add_norm import add_norm
from sesttune.model.se_checkpoint import SEFiles
from sesttune.model.se_demo import SESizes, random_encoder, write_encoder
from sesttune.model.se_encoder import SEEncoder
from sesttune.model.se_genes import GeneMatch
from sesttune.model.se_tokens import tokenize

SIZES = {
    "tiny": SESizes(32, 64, 128, 64, 4, 2, 256),
    "mid": SESizes(5_120, 512, 1_024, 512, 8, 4, 2_048),
    "se600m": SESizes(5_120, 2_048, 2_048, 2_048, 16, 16, 2_048),
}
GENES, VOCABULARY, EXPRESSED = 36_600, 19_790, 3_000
PUBLIC = "arc-state"
ATTENTION = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
"""What torch chooses between by itself, on a GPU."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="mid")
    parser.add_argument("--cells", type=int, default=24, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--precision", nargs="+", default=["auto"], choices=("auto", "fp32", "bf16")
    )
    parser.add_argument("--compiled", action="store_true", help="also with torch.compile")
    parser.add_argument("--apart", action="store_true", help="also without our kernel for norms")
    parser.add_argument(
        "--attention", nargs="+", default=[], choices=ATTENTION, help="also with this alone"
    )
    parser.add_argument("--batch-size", type=int, help="ours; default: by device")
    parser.add_argument("--public-batch-size", type=int, default=8, help="arc-state: %(default)s")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    if args.worker:
        return work(*args.worker, args)
    rate = tokeniser_rate()
    print(f"tokeniser, one core: {rate:,.0f} cells/s ({EXPRESSED:,} of {GENES:,} genes)")
    with tempfile.TemporaryDirectory() as name:
        write_model(Path(name), SIZES[args.size])
        write_cells(Path(name) / "cells.h5ad", args.cells)
        variants = ["", *args.attention, *(n for n in ("compiled", "apart") if vars(args)[n])]
        workers = [
            f"sesttune {precision} {variant}".strip()
            for precision, variant in itertools.product(args.precision, variants)
        ]
        if importlib.util.find_spec("state") is None:
            print("arc-state is not installed: no comparison (pip install -e '.[oracle]')")
        elif args.size == "se600m":
            print("arc-state: not run at this size (it needs hours on a CPU)")
        else:
            workers.append(PUBLIC)
        compare(workers, name, args)


def compare(workers: Sequence[str], folder: str, args: argparse.Namespace) -> None:
    """Run the workers in turn and print their rates."""
    started = {worker: Worker(worker, folder) for worker in workers}
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} cores"
    print(f"{where}, torch {torch.__version__}, {SIZES[args.size]}, {args.cells} cells")
    for number in range(args.rounds + 1):  # the first round warms up
        for name, worker in list(started.items()):
            try:
                worker.encode(counted=number > 0)
            except WorkerFailed:
                print(f"{name:<30} failed")
                del started[name]
    tflop = flop_per_cell(SIZES[args.size]) / 1e12
    rates = {}
    for name, worker in started.items():
        worker.end()
        rate = rates[name] = args.cells / statistics.median(worker.seconds)
        computed = "" if name == PUBLIC else f"{rate * tflop:8.3g} TFLOP/s"
        print(f"{name:<30}{rate:9.3g} cells/s{computed}   {worker.about}")
    print(f"left to compute: {tflop:.3g} TFLOP a cell")
    for name in rates:
        if PUBLIC in rates and name != PUBLIC:
            pairs = zip(started[PUBLIC].seconds, started[name].seconds, strict=True)
            ratios = [public / own for public, own in pairs]
            spread = f"{min(ratios):.3g} to {max(ratios):.3g}"
            print(f"{name} / {PUBLIC}: {statistics.median(ratios):.3g} ({spread} over the rounds)")


class WorkerFailed(Exception):
    """Its error has been printed; the others go on."""


class Worker:
    """An implementation in a process of its own, so that none has another's memory settings."""

    def __init__(self, name: str, folder: str) -> None:
        self.seconds: list[float] = []
        command = [sys.executable, __file__, "--worker", name, folder, *sys.argv[1:]]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen(command, **pipes)  # type: ignore[call-overload]
        self.about = ""

    def encode(self, counted: bool) -> None:
        """All cells once. Raises WorkerFailed."""
        self.about = self.about or self._say("")
        took = float(self._say("encode"))
        self.seconds += [took] if counted else []

    def end(self) -> None:
        self._process.communicate()

    def _say(self, what: str) -> str:
        answer = ""
        with contextlib.suppress(BrokenPipeError):  # of one that has ended already
            self._process.stdin.write(f"{what}\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        if not answer:
            raise WorkerFailed
        return str(answer).strip()


def work(name: str, folder: str, args: argparse.Namespace) -> None:
    """A worker: says what it is, then encodes at every line it gets and says the seconds."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what the libraries print is no answer
    checkpoint, path = Path(folder) / "random.ckpt", Path(folder) / "cells.h5ad"
    about = ""
    if name == PUBLIC:
        run = public(checkpoint, path, SIZES[args.size], args.public_batch_size)
    else:
        _, precision, *options = name.split()
        files = SEFiles(checkpoint, Path(folder) / "protein_embeddings.pt")
        encoder = SEEncoder(
            files, device=args.device, precision=precision, batch_size=args.batch_size
        )
        about = f"{encoder.device}, {encoder.precision}, {encoder.batch_size} cells a pass"
        if "apart" in options:
            for layer in encoder._load().transformer_encoder.layers:
                layer.add_norm = add_norm
        if "compiled" in options:
            encoder._load().compile()
        asked = [backend for name, backend in ATTENTION.items() if name in options]

        def run() -> None:
            with sdpa_kernel(asked) if asked else contextlib.nullcontext():
                ours(encoder, path)

    for line in sys.stdin:
        start = time.perf_counter()
        if line.strip():
            run()
        print(about if not line.strip() else time.perf_counter() - start, file=answers, flush=True)


def write_model(folder: Path, sizes: SESizes) -> None:
    symbols = [f"G{i}" for i in range(VOCABULARY)]
    model, proteins = random_encoder(VOCABULARY, sizes, 0)
    write_encoder(folder, "random", model, symbols, proteins, sizes)


def tokeniser_rate() -> float:
    """Cells/s of `tokenize` alone, one thread, best of five."""
    torch.set_num_threads(1)
    x = random_counts(256)
    rng = np.random.default_rng(1)
    columns = np.sort(rng.choice(GENES, VOCABULARY, replace=False))
    match = GeneMatch(columns, rng.permutation(VOCABULARY), "var index", GENES)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        for first in range(0, x.shape[0], 32):
            tokenize(x[first : first + 32], match, 2_048, 3, 0)
        times.append(time.perf_counter() - start)
    return x.shape[0] / min(times)


def flop_per_cell(sizes: SESizes) -> float:
    """Multiply-adds (2 each) that are left after the exact savings."""
    n, d = sizes.pad_length + 1, sizes.width
    rest = 2 * n * d * d + 4 * n * d * sizes.hidden  # output projection, feed-forward
    attention = 4 * n * n * d
    full = 6 * n * d * d + rest + attention
    first, last = full - 6 * n * d * d, 8 * n * d * sizes.heads
    return first + last + (sizes.layers - 2) * full


def ours(encoder: SEEncoder, path: Path) -> np.ndarray:
    with H5adFile(path) as file:
        match = encoder.match(file.var_names, file.var_columns())
        blocks = [encoder.encode(block, match) for block in file.iter_csr()]
    return np.concatenate(blocks)


def public(
    checkpoint: Path, path: Path, sizes: SESizes, batch_size: int
) -> Callable[[], np.ndarray]:
    """arc-state's own way from the same file with the same weights, loaded once."""
    from state.emb.inference import Inference

    logging.disable(logging.WARNING)
    os.environ["TQDM_DISABLE"] = "1"
    content = torch.load(checkpoint, weights_only=True)
    settings = public_settings(sizes)
    content["hyper_parameters"] |= {
        "dropout": 0.1,
        "warmup_steps": 3,
        "compiled": False,
        "max_lr": 1e-5,
        "emb_cnt": VOCABULARY,
        "emb_size": sizes.protein,
    }
    whole = checkpoint.with_name("public.ckpt")
    torch.save(content, whole)
    proteins = torch.load(checkpoint.with_name("protein_embeddings.pt"), weights_only=True)
    inference = Inference(OmegaConf.create(settings), proteins)
    inference.load_model(str(whole))
    return lambda: inference.encode_adata(str(path), batch_size=batch_size)


def public_settings(sizes: SESizes) -> dict[str, object]:
    """The settings arc-state's loader and model read."""
    return {
        "experiment": {"name": "random", "compiled": False},
        "embeddings": {"current": "x", "x": {"size": sizes.protein, "num": VOCABULARY}},
        "dataset": {
            **{"name": "vci", "seed": 42, "current": "y", "P": 16, "N": 16, "S": 16},
            "y": {"data_dir": "none", "ds_type": "h5ad", "filter": False, "num_datasets": 7},
            **{"pad_length": sizes.pad_length, "pad_token_idx": 0, "cls_token_idx": 3},
            **{"chrom_token_right_idx": 2, "num_cells": 100},
        },
        "tokenizer": {"token_dim": sizes.protein},
        "model": {
            **{"name": "vci", "batch_size": 8, "emsize": sizes.width, "d_hid": sizes.hidden},
            **{"nhead": sizes.heads, "nlayers": sizes.layers, "dropout": 0.1},
            **{"output_dim": sizes.output, "use_flash_attention": True, "rda": True},
            **{"counts": True, "dataset_correction": True, "ema": False, "sample_rda": False},
            **{"batch_tabular_loss": False, "num_downsample": 1, "variable_masking": True},
        },
        "task": {"mask": 0.2},
        "optimizer": {"max_lr": 1e-5, "weight_decay": 0.01},
        "loss": {"name": "tabular", "apply_normalization": False, "kernel": "energy"},
    }


def random_counts(cells: int) -> sparse.csr_matrix:
    """Raw counts of `EXPRESSED` genes a cell."""
    rng = np.random.default_rng(0)
    rows = [np.sort(rng.choice(GENES, EXPRESSED, replace=False)) for _ in range(cells)]
    values = rng.poisson(2.0, cells * EXPRESSED).astype(np.float32) + 1
    indptr = np.arange(0, cells * EXPRESSED + 1, EXPRESSED)
    return sparse.csr_matrix((values, np.concatenate(rows), indptr), shape=(cells, GENES))


def write_cells(path: Path, cells: int) -> None:
    names = [f"G{i}" if i < VOCABULARY else f"other{i}" for i in range(GENES)]
    var = pd.DataFrame(index=np.random.default_rng(2).permutation(names))
    obs = pd.DataFrame(index=[f"c{i}" for i in range(cells)])
    anndata.AnnData(random_counts(cells), obs=obs, var=var).write_h5ad(path)


if __name__ == "__main__":
    main()
