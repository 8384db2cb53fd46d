"""The exported run folder: its files and, where arc-state is there, what `state tx infer` says."""

import os
import pickle
import shutil
import subprocess
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from helpers.promoted import FEATURES, SET_LENGTH, SIZES, promoted

from sesttune.errors import UserError
from sesttune.model.st_head import HeadConfig, STHead
from sesttune.model.state_export import TOKENS, export_state


def test_every_file_is_plain_and_the_weights_are_the_heads(tmp_path: Path) -> None:
    head, about = promoted(tmp_path / "head", **{"data.kwargs.cell_type_key": "line"})
    export_state(tmp_path / "state", head, about, FEATURES)
    found = sorted(str(p.relative_to(tmp_path)) for p in (tmp_path / "state").rglob("*.*"))
    assert found == [
        "state/checkpoints/final.ckpt",
        "state/config.yaml",
        "state/pert_onehot_map.pt",
        "state/var_dims.pkl",
    ]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["head", "state"]  # no draft is left
    content = torch.load(tmp_path / "state/checkpoints/final.ckpt", weights_only=True)
    assert set(content) == {"state_dict", "hyper_parameters", "pytorch-lightning_version"}
    weights = content["state_dict"]
    assert weights.pop(TOKENS).shape == (1, 32)
    again = STHead(SIZES)
    again.load_state_dict(weights, strict=True)
    assert all(torch.equal(weights[k], v) for k, v in head.state_dict().items())
    backbone = {
        "bidirectional_attention": True,
        "vocab_size": 1,
        "hidden_size": 32,
        "intermediate_size": 128,
        "num_hidden_layers": SIZES.n_layers,
        "num_attention_heads": SIZES.n_heads,
        "num_key_value_heads": SIZES.n_heads,
        "head_dim": 32 // SIZES.n_heads,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": SET_LENGTH,
    }
    kwargs = {
        "input_dim": SIZES.embed_dim,
        "hidden_dim": 32,
        "output_dim": 30,
        "pert_dim": 8,
        "gene_dim": 30,
        "gene_names": about["genes"],
        "n_encoder_layers": 4,
        "n_decoder_layers": 4,
        "activation": "gelu",
        "dropout": SIZES.dropout,
        "predict_residual": True,
        "output_space": "gene",
        "gene_decoder_bool": False,
        "embed_key": "X_state",
        "control_pert": "non-targeting",
        "cell_set_len": SET_LENGTH,
        "distributional_loss": "energy",
        "transformer_backbone_key": "llama",
        "transformer_backbone_kwargs": backbone,
    }
    assert content["hyper_parameters"] == kwargs
    settings = yaml.safe_load((tmp_path / "state/config.yaml").read_text())
    columns = settings["data"]["kwargs"]
    assert columns == {
        "pert_col": "target_gene",
        "cell_type_key": "line",
        "batch_col": "batch_var",
        "control_pert": "non-targeting",
        "embed_key": "X_state",
        "output_space": "gene",
    }
    del kwargs["gene_names"]
    assert settings["model"] == {"name": "state", "kwargs": kwargs}
    dims = pickle.loads((tmp_path / "state/var_dims.pkl").read_bytes())
    assert dims == {
        "input_dim": SIZES.embed_dim,
        **dict.fromkeys(("gene_dim", "hvg_dim", "output_dim"), 30),
        "pert_dim": 8,
        "batch_dim": None,
        "gene_names": about["genes"],
        "pert_names": ["P1", "P2", "a gene", "non-targeting"],
    }


def test_labels_are_sorted_and_the_control_gets_zeros(tmp_path: Path) -> None:
    head, about = promoted(tmp_path / "head")
    export_state(tmp_path / "state", head, about, FEATURES)
    vectors = torch.load(tmp_path / "state/pert_onehot_map.pt", weights_only=True)
    assert list(vectors) == ["P1", "P2", "a gene", "non-targeting"]
    assert not vectors["non-targeting"].any()
    assert all(np.array_equal(vectors[name].numpy(), FEATURES[name]) for name in FEATURES)


def test_a_folder_that_exists_is_refused_and_stays(tmp_path: Path) -> None:
    head, about = promoted(tmp_path / "head")
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="state exists already: name a folder that does not"):
        export_state(tmp_path / "state", head, about, FEATURES)
    assert [p.name for p in (tmp_path / "state").iterdir()] == ["notes.txt"]
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write it"):
        export_state(tmp_path / "file" / "state", head, about, FEATURES)


def program() -> str:
    """The public `state` program; its environment may be another one than ours."""
    found = os.environ.get("STATE_PROGRAM") or shutil.which("state")
    if found is None:
        pytest.skip("no `state` program (arc-state) on PATH or in $STATE_PROGRAM")
    return found


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("sizes", "gain", "highest"),
    # So that cells differ; of the small head some values pass 14, where `infer` cuts.
    [(SIZES, 300, 14), (HeadConfig(2_058, 8, 18_080), 200, 1)],
    ids=["small", "the plan's size"],
)
def test_the_public_infer_predicts_what_the_head_predicts(
    tmp_path: Path, sizes: HeadConfig, gain: float, highest: float
) -> None:
    head, about = promoted(tmp_path / "head", sizes)
    with torch.no_grad():
        head.project_out[-1].weight.mul_(gain)
    export_state(tmp_path / "state", head, about, FEATURES)
    rng = np.random.default_rng(0)
    # Two cell types; windows that are full and that are not.
    counts = {"P1": 2 * SET_LENGTH + 1, "P2": SET_LENGTH, "a gene": 3, "non-targeting": 5}
    labels = [name for name, count in counts.items() for _ in range(count)]
    obs = pd.DataFrame(
        {"target_gene": labels * 2, "cell_type": ["alpha"] * len(labels) + ["beta"] * len(labels)},
        index=[f"cell{i}" for i in range(2 * len(labels))],
    )
    cells = anndata.AnnData(np.zeros((len(obs), sizes.output_dim), np.float32), obs)
    cells.obsm["X_state"] = rng.normal(size=(len(obs), sizes.embed_dim)).astype(np.float32)
    cells.write_h5ad(tmp_path / "in.h5ad")
    call = [program(), "tx", "infer", "--model-dir", str(tmp_path / "state"), "--seed", "3"]
    call += ["--adata", str(tmp_path / "in.h5ad"), "--output", str(tmp_path / "out.h5ad")]
    call += ["--embed-key", "X_state", "--pert-col", "target_gene"]
    done = subprocess.run(call, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    found = anndata.read_h5ad(tmp_path / "out.h5ad").obsm["X_state_pred"]
    ours = predictions(head, cells, seed=3)
    expected = ours.clip(0, 14)
    difference = float(np.abs(found - expected).max())
    print(f"largest difference {difference:.2g}, values up to {ours.max():.3g}")
    assert ours.max() > highest
    assert expected.std(0).max() > 0.1, "cells and perturbations differ"
    assert difference <= 1e-4


def predictions(head: STHead, cells: anndata.AnnData, seed: int) -> np.ndarray:
    """What our head predicts from the controls that `infer` draws with this seed."""
    rng = np.random.RandomState(seed)
    pert, kind = (cells.obs[column].astype(str).to_numpy() for column in cells.obs.columns)
    out = np.full((cells.n_obs, head.config.output_dim), np.nan, np.float32)
    vectors = {**FEATURES, "non-targeting": np.zeros(8, np.float32)}
    for cell_type in np.unique(kind):
        pool = np.flatnonzero((kind == cell_type) & (pert == "non-targeting"))
        for name in np.unique(pert):
            rows = np.flatnonzero((kind == cell_type) & (pert == name))
            for start in range(0, len(rows), SET_LENGTH):
                window = rows[start : start + SET_LENGTH]
                drawn = cells.obsm["X_state"][rng.choice(pool, len(window))]
                with torch.inference_mode():
                    vector = torch.from_numpy(vectors[name])[None]
                    out[window] = head(torch.from_numpy(drawn)[None], vector)[0].numpy()
    return out
