"""Two finished trainings on the tiny data, a weak and a strong one, and their MLflow store."""

from collections.abc import Sequence
from pathlib import Path

import anndata
import numpy as np
from helpers.tiny_data import TinyData, write_tiny

from sesttune import train

EMBED_KEY = "X_tiny"
GOOD, POOR = "good", "poor"


def write_embedded(folder: Path) -> TinyData:
    """Tiny data whose files hold embeddings in `obsm[EMBED_KEY]`."""
    tiny = write_tiny(folder)
    for path in tiny.files.values():
        cells = anndata.read_h5ad(path)
        logged = np.log1p(cells.X.toarray()[:, :6]) + 0.1
        cells.obsm[EMBED_KEY] = logged.astype(np.float32)
        cells.write_h5ad(path)
    return tiny


def write_settings(folder: Path) -> Path:
    """A YAML file of settings that use `write_embedded`'s files."""
    from omegaconf import OmegaConf

    tiny = write_embedded(folder)
    settings = tiny.settings(**{"data.kwargs.embed_key": EMBED_KEY})
    settings["output_dir"] = str(folder / "outputs")
    nested = OmegaConf.create({})
    for key, value in settings.items():
        OmegaConf.update(nested, key, value)
    file = folder / "settings.yaml"
    OmegaConf.save(nested, file)
    return file


def run_training(settings: Path, name: str, more: Sequence[str] = ()) -> None:
    """`sesttune train` with these settings."""
    assert train.main(["--config", str(settings), f"name={name}", *more]) in (0, 1)


def write_trained(folder: Path) -> Path:
    """`outputs` with the trainings `poor` (one step) and `good` (sixty)."""
    settings = write_settings(folder)
    run_training(settings, POOR, ["training.max_steps=1", "training.val_check_interval=1"])
    run_training(settings, GOOD, ["training.max_steps=60", "training.ckpt_every_n_steps=20"])
    return folder / "outputs"
