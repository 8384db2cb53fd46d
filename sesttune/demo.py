"""The bundled demo: small files in the real formats, with a planted answer.

Three cell types, 40 perturbations, 2,000 genes of negative-binomial counts in
batches. Every perturbation has a hidden 4-d vector that sets both its effect on
gene programs and its 5,120-d feature vector, so an unseen perturbation can be
predicted from its features and nothing else can. The encoder is a small SE
checkpoint of random weights, and is called that wherever it is shown.
Made once in about ten seconds and kept in the cache folder.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sesttune.command import run
from sesttune.config.schema import DataConfig
from sesttune.system.cached_folder import COMPLETE, cached_folder

DEMO_VERSION = 2
SEED = 7
N_GENES = 2_000
N_PERTURBATIONS = 40
CELL_TYPES = ("alpha", "beta", "gamma")
CELLS_PER_CONDITION = 32
CONTROLS_PER_CELL_TYPE = 240
N_BATCHES = 3
LATENT = 4
FEATURE_DIM = 5_120
DISPERSION = 6.0
"""Negative-binomial size: variance = mean + mean^2 / 6."""

SPLIT_FILE = """\
# cell type gamma is never trained on; some of beta's perturbations are held out
[datasets]
demo = "{alpha,beta,gamma}.h5ad"

[training]
demo = "train"

[zeroshot]
"demo.gamma" = "test"

[fewshot."demo.beta"]
val = [VAL]
test = [TEST]
"""


def demo_folder(cache_dir: str | Path) -> Path:
    """Where the demo lies, making it on first use."""
    return cached_folder(Path(cache_dir).expanduser() / f"demo-v{DEMO_VERSION}", write_demo)


def demo_settings(folder: Path) -> dict[str, object]:
    """Settings that run the demo in a few minutes on two CPU cores."""
    return {
        "data.kwargs.toml_config_path": str(folder / "split.toml"),
        "data.kwargs.perturbation_features_file": str(folder / "features.pt"),
        "data.kwargs.num_workers": 1,
        "model.kwargs.input_dim": N_GENES,
        "model.kwargs.output_dim": N_GENES,
        "model.kwargs.pert_dim": FEATURE_DIM,
        "model.kwargs.hidden_dim": 64,
        "model.kwargs.n_layers": 2,
        "model.kwargs.st_cell_set_len": 32,
        "model.kwargs.se_model_path": str(folder / "encoder"),
        "model.kwargs.se_checkpoint_path": None,
        "training.max_steps": 600,
        "training.batch_size": 8,
        "training.lr": 3e-3,
        "training.val_check_interval": 40,
        "training.patience": 4,
        "training.log_every_n_steps": 20,
        "training.ckpt_every_n_steps": 200,
        "sweep.space": "demo",
        "sweep.reduction_factor": 2,
        "sweep.extend_to": [800, 1_000],
    }


def write_demo(folder: Path) -> None:
    """Write the h5ad files, split file, feature file and encoder into `folder`."""
    import torch

    from sesttune.model.se_demo import write_demo_encoder

    rng = np.random.default_rng(SEED)
    genes = [f"DEMO{number:04d}" for number in range(N_GENES)]
    targets = [genes[i] for i in rng.choice(N_GENES, N_PERTURBATIONS, replace=False)]
    hidden = rng.normal(size=(N_PERTURBATIONS, LATENT)).astype(np.float32)
    effects = _effects(rng, hidden, [genes.index(target) for target in targets])
    baseline = rng.gamma(0.6, 1.0, N_GENES)
    for cell_type in CELL_TYPES:
        profile = baseline * np.exp(rng.normal(0, 0.4, N_GENES))
        # The same programs answer in every cell type, a little more or less strongly.
        strength = rng.uniform(0.85, 1.15)
        _write_cell_type(folder, rng, cell_type, genes, targets, profile, strength * effects)
    held_out = [f'"{target}"' for target in targets]
    text = SPLIT_FILE.replace("VAL", ", ".join(held_out[:6]))
    (folder / "split.toml").write_text(text.replace("TEST", ", ".join(held_out[6:12])))
    projection = rng.normal(size=(LATENT, FEATURE_DIM)) / np.sqrt(LATENT)
    features = hidden @ projection + 0.1 * rng.normal(size=(N_PERTURBATIONS, FEATURE_DIM))
    torch.save(
        {t: torch.tensor(f, dtype=torch.float32) for t, f in zip(targets, features, strict=True)},
        folder / "features.pt",
    )
    write_demo_encoder(folder / "encoder", genes, SEED)


def _effects(
    rng: np.random.Generator, hidden: np.ndarray, target_genes: Sequence[int]
) -> np.ndarray:
    """Natural-log fold change of every gene, [perturbations, genes]."""
    programs = rng.normal(0, 0.9, (LATENT, N_GENES)) * (rng.random((LATENT, N_GENES)) < 0.2)
    effects = hidden @ programs
    effects[np.arange(len(target_genes)), target_genes] = np.log(0.15)  # the knock-down itself
    return effects


def _write_cell_type(
    folder: Path,
    rng: np.random.Generator,
    cell_type: str,
    genes: Sequence[str],
    targets: Sequence[str],
    profile: np.ndarray,
    effects: np.ndarray,
) -> None:
    import anndata
    import pandas as pd
    from scipy import sparse

    labels = np.repeat(np.arange(-1, len(targets)), CELLS_PER_CONDITION)
    extra = CONTROLS_PER_CELL_TYPE - CELLS_PER_CONDITION
    labels = np.concatenate([np.full(extra, -1), labels])
    batch = rng.integers(0, N_BATCHES, len(labels))
    log_fold = np.vstack([effects, np.zeros(len(genes))])[labels]  # row -1 is the control
    batch_shift = rng.normal(0, 0.1, (N_BATCHES, len(genes)))[batch]
    share = profile * np.exp(log_fold + batch_shift)
    depth = rng.lognormal(np.log(12_000), 0.25, len(labels))
    mean = share / share.sum(1, keepdims=True) * depth[:, None]
    counts = rng.poisson(rng.gamma(DISPERSION, mean / DISPERSION))
    names = np.array([*targets, "non-targeting"])
    obs = pd.DataFrame(
        {
            "target_gene": pd.Categorical(names[labels]),
            "cell_type": pd.Categorical([cell_type] * len(labels)),
            "batch_var": pd.Categorical([f"{cell_type}-{b}" for b in batch]),
        },
        index=[f"{cell_type}_{i}" for i in range(len(labels))],
    )
    cells = anndata.AnnData(
        X=sparse.csr_matrix(counts.astype(np.float32)), obs=obs, var=pd.DataFrame(index=list(genes))
    )
    cells.write_h5ad(folder / f"{cell_type}.h5ad")


def main(argv: Sequence[str]) -> int:
    """Write the demo files and say where."""
    parser = argparse.ArgumentParser("sesttune demo", description=main.__doc__)
    parser.add_argument("--cache-dir", default=DataConfig.cache_dir, help="default: %(default)s")
    folder = demo_folder(parser.parse_args(argv).cache_dir)
    names = sorted(path.name for path in folder.iterdir() if path.name != COMPLETE)
    print(f"demo data in {folder}: {', '.join(names)}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
