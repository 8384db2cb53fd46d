"""The plan's own command line, word for word, on files of the plan's shape."""

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiny_data import CONTROL, write_cells

from sesttune.config.load import load_config
from sesttune.config.paths import with_whole_paths
from sesttune.model.se_demo import write_demo_encoder
from sesttune.training.records import list_trials

GENES, FEATURES = 18_080, 5_120
PERTURBATIONS = ("P0", "P1", "P2")
COMMAND = """
se-st-train
  ++data.kwargs.toml_config_path="data/starter.toml"
  ++data.kwargs.perturbation_features_file="data/ESM2_pert_features.pt"
  ++data.kwargs.num_workers=8
  ++data.kwargs.batch_col="batch_var"
  ++data.kwargs.pert_col="target_gene"
  ++data.kwargs.cell_type_key="cell_type"
  ++data.kwargs.control_pert="non-targeting"
  ++training.max_steps=40000
  ++training.ckpt_every_n_steps=5000
  ++training.batch_size=16
  ++training.lr=1e-4
  ++training.val_check_interval=500
  ++training.log_every_n_steps=50
  ++training.early_stopping=true
  ++training.patience=10
  ++model.kwargs.input_dim=18080
  ++model.kwargs.hidden_dim=512
  ++model.kwargs.output_dim=18080
  ++model.kwargs.pert_dim=5120
  ++model.kwargs.se_model_path="SE-600M"
  ++model.kwargs.se_checkpoint_path="SE-600M/se600m_epoch15.ckpt"
  ++output_dir="competition"
  ++name="se_st_combined_40k"
"""
SPLIT = """\
[datasets]
starter = "starter"
[training]
starter = "train"
[fewshot."starter.alpha"]
val = ["P0"]
test = ["P1"]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The files that the command names, at the paths it names."""
    rng, genes = np.random.default_rng(0), [f"G{i}" for i in range(GENES)]
    (tmp_path / "data" / "starter").mkdir(parents=True)
    labels = [CONTROL] * 40 + [p for p in PERTURBATIONS for _ in range(20)]
    for cell_type in ("alpha", "beta"):
        path = tmp_path / "data" / "starter" / f"{cell_type}.h5ad"
        write_cells(path, rng, labels, cell_type, genes)
    (tmp_path / "data" / "starter.toml").write_text(SPLIT)
    features = {p: torch.from_numpy(rng.normal(size=FEATURES)).float() for p in PERTURBATIONS}
    torch.save(features, tmp_path / "data" / "ESM2_pert_features.pt")
    encoder = write_demo_encoder(tmp_path / "SE-600M", genes)
    encoder.rename(encoder.with_name("se600m_epoch15.ckpt"))
    return tmp_path


def start(folder: Path, *more: str) -> subprocess.Popen[str]:
    program, *arguments = shlex.split(COMMAND)
    command = [str(Path(sys.executable).with_name(program)), *arguments, *more]
    environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True
    )


def test_the_plans_command_trains(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = start(folder, f"data.cache_dir={folder}/cache")
    assert training.stdout is not None
    assert training.stderr is not None
    first = next((line for line in training.stdout if line.startswith("step ")), "")
    training.send_signal(signal.SIGKILL)
    assert "val_loss" in first, training.stderr.read()
    run = folder / "competition" / "se_st_combined_40k"
    [record] = list_trials(run)
    config = load_config(file=record.folder / "config.yaml")
    asked = load_config([*shlex.split(COMMAND)[1:], f"data.cache_dir={folder}/cache"])
    monkeypatch.chdir(folder)
    assert config == with_whole_paths(asked)
    assert (config.training.lr, config.training.patience) == (1e-4, 10)
    saved = torch.load(record.checkpoints / "last.ckpt", weights_only=True, mmap=True)
    shapes = {name: tuple(weight.shape) for name, weight in saved["model"].items()}
    assert shapes["pert_encoder.0.weight"] == (512, 5_120)  # hidden_dim is the head's width
    assert shapes["project_out.9.weight"] == (18_080, 512)
