"""A tiny data set in the real formats: three cell types, six perturbations, sixty genes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import anndata
import numpy as np
import pandas as pd
import torch
from scipy import sparse

from sesttune.errors import UserError

CELL_TYPES = ("alpha", "beta", "gamma")
PERTURBATIONS = tuple(f"P{i}" for i in range(6))
CONTROL = "non-targeting"
N_GENES = 60
FEATURE_DIM = 8

SPLIT = """\
[datasets]
tiny = "{alpha,beta,gamma}.h5ad"
[training]
tiny = "train"
[zeroshot]
"tiny.gamma" = "test"
[fewshot."tiny.beta"]
val = ["P0", "P1"]
test = ["P2"]
"""


@dataclass(frozen=True)
class TinyData:
    folder: Path
    split_file: Path
    features: Path
    files: dict[str, Path]

    def settings(self, **more: object) -> dict[str, object]:
        """Dotted settings that point at these files and fit a test's patience."""
        return {
            "data.kwargs.toml_config_path": str(self.split_file),
            "data.kwargs.perturbation_features_file": str(self.features),
            "data.kwargs.num_workers": 0,
            "data.cache_dir": str(self.folder / "cache"),
            "model.kwargs.input_dim": N_GENES,
            "model.kwargs.output_dim": N_GENES,
            "model.kwargs.pert_dim": FEATURE_DIM,
            "model.kwargs.hidden_dim": 16,
            "model.kwargs.n_layers": 1,
            "model.kwargs.n_heads": 2,
            "model.kwargs.st_cell_set_len": 8,
            "training.max_steps": 20,
            "training.batch_size": 4,
            "training.lr": 1e-3,
            "training.val_check_interval": 5,
            "training.patience": 10,
            "training.log_every_n_steps": 5,
            "training.ckpt_every_n_steps": 10,
            "training.device": "cpu",
            # Each worker process takes some ten seconds of a core to start.
            "sweep.max_concurrent": 1,
            **more,
        }


def write_tiny(folder: Path, seed: int = 0, encoding: str = "csr", split: str = SPLIT) -> TinyData:
    """Write the files; `encoding` of X is `csr`, `csc` or `dense`."""
    rng = np.random.default_rng(seed)
    genes = [f"G{i}" for i in range(N_GENES)]
    files = {}
    for cell_type in CELL_TYPES:
        labels = [CONTROL] * 40 + [p for p in PERTURBATIONS for _ in range(10)]
        files[cell_type] = write_cells(
            folder / f"{cell_type}.h5ad", rng, labels, cell_type, genes, encoding
        )
    (folder / "split.toml").write_text(split)
    features = {
        p: torch.tensor(rng.normal(size=FEATURE_DIM), dtype=torch.float32) for p in PERTURBATIONS
    }
    torch.save(features, folder / "features.pt")
    return TinyData(folder, folder / "split.toml", folder / "features.pt", files)


def write_cells(
    path: Path,
    rng: np.random.Generator,
    labels: list[str],
    cell_type: str,
    genes: list[str],
    encoding: str = "csr",
) -> Path:
    """Write one h5ad of raw counts through anndata."""
    counts = rng.poisson(rng.gamma(1.0, 2.0, (1, len(genes))).repeat(len(labels), 0))
    x = counts.astype(np.float32)
    convert = {"csr": sparse.csr_matrix, "csc": sparse.csc_matrix, "dense": np.asarray}[encoding]
    obs = pd.DataFrame(
        {
            "target_gene": pd.Categorical(labels),
            "cell_type": pd.Categorical([cell_type] * len(labels)),
            "batch_var": pd.Categorical([f"b{i % 2}" for i in range(len(labels))]),
        },
        index=[f"{cell_type}{i}" for i in range(len(labels))],
    )
    anndata.AnnData(X=convert(x), obs=obs, var=pd.DataFrame(index=genes)).write_h5ad(path)
    return path


class MeanEncoder:
    """A tiny deterministic encoder for data tests: log1p expression of the first genes."""

    key = "mean-encoder"
    min_matched = 0.2
    calls_at_once = 1
    embed_dim = 6
    identity = {"path": "none", "sha256": "0" * 64, "label": "test encoder"}  # noqa: RUF012

    def __init__(self) -> None:
        self.encoded = 0

    def match(self, gene_names: Sequence[str], var_columns: Mapping[str, Sequence[str]]) -> object:
        if self.min_matched > 1:
            raise UserError("too few genes are known")
        return SimpleNamespace(report=f"{len(gene_names)} genes known")

    def encode(self, x: sparse.csr_matrix, match: object) -> np.ndarray:
        self.encoded += x.shape[0]
        return np.log1p(x[:, : self.embed_dim].toarray()).astype(np.float32)
