"""Write a small SE checkpoint of random weights, in the public schema, for the demo and tests.

Random features carry cell state, but most of what an untrained encoder puts out is
the same for every cell. So the value biases are set to cancel the average gene,
and the CLS token to nothing: what is left is what differs between cells. The file
name makes every part of the program call it `demo-encoder (random weights)`.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch.nn import functional as F

from sesttune.model.se_checkpoint import DEMO_NAME
from sesttune.model.se_transformer import Layer, SETransformer

SPREAD = 5.0
"""Scale of the ten free outputs: a head learns from inputs of this size in few steps."""

SETTINGS = """\
experiment: {{name: {name}}}
dataset: {{pad_length: {pad_length}, cls_token_idx: 3}}
model: {{nhead: {heads}, rda: true, counts: true, dataset_correction: true}}
loss: {{name: tabular}}
"""


@dataclass(frozen=True)
class SESizes:
    """Sizes of an SE model; `pad_length` is P, the slots of the sequence with CLS."""

    protein: int
    width: int
    hidden: int
    output: int
    heads: int
    layers: int
    pad_length: int


DEMO = SESizes(32, 64, 128, 64, 4, 2, 256)


def write_demo_encoder(folder: Path, symbols: Sequence[str], seed: int = 0) -> Path:
    """Write `demo-encoder.ckpt` and `protein_embeddings.pt` into `folder`; returns the former."""
    model, proteins = random_encoder(len(symbols), DEMO, seed)
    with torch.no_grad():
        model.cls_token.zero_()
        model.dataset_token.zero_()
        model.dataset_embedder.weight.mul_(SPREAD)
        _cancel_the_average_gene(model, proteins)
    return write_encoder(folder, DEMO_NAME, model, symbols, proteins, DEMO)


def random_encoder(
    vocabulary: int, sizes: SESizes, seed: int
) -> tuple[SETransformer, torch.Tensor]:
    """A transformer of random weights, and protein rows [vocabulary, protein width]."""
    generator = torch.Generator().manual_seed(seed)
    model = SETransformer(
        sizes.protein, sizes.width, sizes.hidden, sizes.output, sizes.heads, sizes.layers
    )
    proteins = torch.randn(vocabulary, sizes.protein, generator=generator)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.ndim == 2:
                drawn = torch.randn(tensor.shape, generator=generator) / tensor.shape[1] ** 0.5
                tensor.copy_(drawn)
            elif name.endswith("bias"):
                tensor.zero_()
            else:
                tensor.fill_(1.0 if "norm" in name or name == "encoder.1.weight" else 0.0)
    return model, proteins


def write_encoder(
    folder: Path,
    name: str,
    model: SETransformer,
    symbols: Sequence[str],
    proteins: torch.Tensor,
    sizes: SESizes,
) -> Path:
    """Write `name.ckpt` in the public schema and `protein_embeddings.pt` into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.ckpt"
    content = {
        "state_dict": model.state_dict(),
        "hyper_parameters": {
            "token_dim": sizes.protein,
            "d_model": sizes.width,
            "nhead": sizes.heads,
            "d_hid": sizes.hidden,
            "nlayers": sizes.layers,
            "output_dim": sizes.output,
        },
        "epoch": 0,
        "global_step": 0,
        "pytorch-lightning_version": "2.0.0",
        "cfg_yaml": SETTINGS.format(name=name, pad_length=sizes.pad_length, heads=sizes.heads),
    }
    torch.save(content, path)
    rows = dict(zip(symbols, proteins.unbind(), strict=True))
    torch.save(rows, folder / "protein_embeddings.pt")
    return path


def _cancel_the_average_gene(model: SETransformer, proteins: torch.Tensor) -> None:
    """Set each layer's value bias so that attention over all genes alike gives zero."""
    x = model.d**0.5 * model.encoder(F.normalize(proteins, dim=-1))[None]  # [1, genes, d]
    for module in model.transformer_encoder.layers:
        layer = cast(Layer, module)
        project, values = layer.qkv_proj, slice(2 * model.d, 3 * model.d)
        project.bias[values] = -(project.weight[values] @ x.mean((0, 1)))
        frozen = copy.deepcopy(layer)
        frozen.freeze(torch.float32)
        x, _ = frozen(x, x)
