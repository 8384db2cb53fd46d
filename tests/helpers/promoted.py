"""A head as it comes out of the registry, of random weights."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

from sesttune.config.load import load_config, to_dict
from sesttune.model.head_checkpoint import FEATURES_FILE, export_head, import_head
from sesttune.model.st_head import HeadConfig, STHead

SIZES = HeadConfig(12, 8, 30, hidden_dim=32, n_layers=2, n_heads=4)
SET_LENGTH = 6
FEATURES = {
    name: np.random.default_rng(seed).normal(size=8).astype(np.float32)
    for seed, name in enumerate(("P2", "a gene", "P1"))
}


def promoted(
    folder: Path, sizes: HeadConfig = SIZES, **settings: object
) -> tuple[STHead, dict[str, Any]]:
    """Write the files of a registered model into `folder` and read them back."""
    config = load_config(base={"model.kwargs.st_cell_set_len": SET_LENGTH, **settings})
    torch.manual_seed(0)
    about = {
        "step": 7,
        "val_loss": 0.5,
        "config": to_dict(config),
        "encoder": {"path": "se.ckpt", "sha256": "e" * 64, "label": "tiny encoder"},
        "data_fingerprint": "f" * 16,
        "genes": [f"G{i}" for i in range(sizes.output_dim)],
    }
    folder.mkdir()
    export_head(folder, STHead(sizes), about)
    save_file(FEATURES, folder / FEATURES_FILE)
    return import_head(folder)
