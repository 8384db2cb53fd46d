"""A promoted head as a run folder that the public `state tx infer` (arc-state 0.11.1) runs.

Our parameter names are the public ones, so the weights move as they are. Three things differ
from `sesttune predict`, and none can be written into the folder: `infer` draws controls from the
cell type (not the batch), cuts predictions off at 14 (log1p of 10,000 is 9.2), and predicts
control rows, too, which no head was trained for. The control label gets zeros, as in the public
training: it must be there, for `infer` gives its vector to labels it does not know.
"""

import os
import pickle
import shlex
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from sesttune.config.load import from_dict
from sesttune.config.schema import Config
from sesttune.errors import UserError, first_line
from sesttune.model.st_head import MLP_LAYERS, RMS_EPS, HeadConfig, STHead

EMBED_KEY = "X_state"
"""Where `sesttune encode` and the public `state emb transform` write embeddings."""
TOKENS = "transformer_backbone.embed_tokens.weight"


def export_state(
    folder: Path, head: STHead, about: dict[str, Any], features: Mapping[str, np.ndarray]
) -> None:
    """Write `head` as a run folder of the public program, whole or not at all.

    `about` is what `import_head` gave with it; `features` is name -> float32 [pert_dim]. Raises
    UserError where `folder` exists or cannot be written.
    """
    if folder.exists():
        raise UserError(f"{folder} exists already: name a folder that does not")
    draft = folder.with_name(f".{folder.name}-{os.getpid()}")
    try:
        (draft / "checkpoints").mkdir(parents=True)
        _write(draft, head, about, features)
        os.rename(draft, folder)
    except (OSError, RuntimeError) as error:  # torch's zip writer raises RuntimeError
        raise UserError(f"{folder}: cannot write it ({first_line(error)})") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def infer_command(folder: Path, about: dict[str, Any]) -> str:
    """The command that runs `folder`; predictions go to `obsm["<embed key>_pred"]` of OUT.h5ad."""
    data = from_dict(about["config"]).data.kwargs
    words = ["state", "tx", "infer", "--model-dir", str(folder), "--adata", "IN.h5ad"]
    words += ["--embed-key", data.embed_key or EMBED_KEY, "--pert-col", data.pert_col]
    return shlex.join([*words, "--output", "OUT.h5ad"])


def _write(
    draft: Path, head: STHead, about: dict[str, Any], features: Mapping[str, np.ndarray]
) -> None:
    config, genes = from_dict(about["config"]), [str(gene) for gene in about["genes"]]
    control = torch.zeros(head.config.pert_dim)
    vectors = {config.data.kwargs.control_pert: control}
    vectors |= {name: torch.from_numpy(np.array(v, np.float32)) for name, v in features.items()}
    vectors = {name: vectors[name] for name in sorted(vectors)}
    kwargs = _hyper_parameters(head.config, config, genes)
    checkpoint = {
        "state_dict": _state_dict(head),
        "hyper_parameters": kwargs,
        "pytorch-lightning_version": version("lightning"),
    }
    torch.save(checkpoint, draft / "checkpoints" / "final.ckpt")
    torch.save(vectors, draft / "pert_onehot_map.pt")
    dims = {
        "input_dim": head.config.embed_dim,
        "gene_dim": head.config.output_dim,
        "hvg_dim": head.config.output_dim,
        "output_dim": head.config.output_dim,
        "pert_dim": head.config.pert_dim,
        "batch_dim": None,
        "gene_names": genes,
        "pert_names": list(vectors),
    }
    (draft / "var_dims.pkl").write_bytes(pickle.dumps(dims))
    settings = _settings(config, about, {k: v for k, v in kwargs.items() if k != "gene_names"})
    OmegaConf.save(OmegaConf.create(settings), draft / "config.yaml")


def _state_dict(head: STHead) -> dict[str, torch.Tensor]:
    """The head's weights and the token table that the public backbone has but does not use."""
    weights = {name: tensor.detach().cpu().clone() for name, tensor in head.state_dict().items()}
    return {**weights, TOKENS: torch.zeros(1, head.config.hidden_dim)}


def _hyper_parameters(sizes: HeadConfig, config: Config, genes: list[str]) -> dict[str, Any]:
    """What the public model is constructed with: plain values only, or `infer` cannot read them.

    Without `gene_decoder_bool` a decoder from embeddings to genes would be expected behind
    the head; where there is none, the public model ends with a ReLU, as ours does.
    """
    width, data = sizes.hidden_dim, config.data.kwargs
    return {
        "input_dim": sizes.embed_dim,
        "hidden_dim": width,
        "output_dim": sizes.output_dim,
        "pert_dim": sizes.pert_dim,
        "gene_dim": sizes.output_dim,
        "gene_names": genes,
        "n_encoder_layers": MLP_LAYERS,
        "n_decoder_layers": MLP_LAYERS,
        "activation": "gelu",
        "dropout": sizes.dropout,
        "predict_residual": True,
        "output_space": "gene",
        "gene_decoder_bool": False,
        "embed_key": data.embed_key or EMBED_KEY,
        "control_pert": data.control_pert,
        "cell_set_len": config.model.kwargs.st_cell_set_len,
        "distributional_loss": "energy",
        "transformer_backbone_key": "llama",
        "transformer_backbone_kwargs": {
            "bidirectional_attention": True,
            "vocab_size": 1,
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": sizes.n_layers,
            "num_attention_heads": sizes.n_heads,
            "num_key_value_heads": sizes.n_heads,
            "head_dim": width // sizes.n_heads,
            "rms_norm_eps": RMS_EPS,
            "max_position_embeddings": config.model.kwargs.st_cell_set_len,
        },
    }


def _settings(config: Config, about: dict[str, Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """`config.yaml`: the columns and the control label that `infer` looks up, and where from."""
    data = config.data.kwargs
    return {
        "name": config.name,
        "data": {
            "kwargs": {
                "pert_col": data.pert_col,
                "cell_type_key": data.cell_type_key,
                "batch_col": data.batch_col,
                "control_pert": data.control_pert,
                "embed_key": kwargs["embed_key"],
                "output_space": kwargs["output_space"],
            }
        },
        "model": {"name": "state", "kwargs": kwargs},
        "training": {"train_seed": config.training.train_seed},
        "sesttune": {
            "step": about["step"],
            "val_loss": about["val_loss"],
            "encoder": about["encoder"],
            "data_fingerprint": about["data_fingerprint"],
        },
    }
