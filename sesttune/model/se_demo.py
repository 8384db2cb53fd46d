"""Write a small SE checkpoint of random weights, in the public schema, for the demo and tests.

Random features carry cell state, but most of what an untrained encoder puts out is
the same for every cell. So the value biases are set to cancel the average gene,
and the CLS token to nothing: what is left is what differs between cells. The file
name makes every part of the program call it `demo-encoder (random weights)`.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from sesttune.model.se_checkpoint import DEMO_NAME
from sesttune.model.se_transformer import SETransformer

PROTEIN_WIDTH, WIDTH, HIDDEN, OUTPUT, HEADS, LAYERS = 32, 64, 128, 64, 4, 2
SPREAD = 5.0
"""Scale of the ten free outputs: a head learns from inputs of this size in few steps."""

SETTINGS = """\
experiment: {{name: demo-encoder}}
dataset: {{pad_length: {pad_length}, cls_token_idx: 3}}
model: {{nhead: {nhead}, rda: true, counts: true, dataset_correction: true}}
loss: {{name: tabular}}
"""


def write_demo_encoder(
    folder: Path, symbols: Sequence[str], seed: int = 0, pad_length: int = 256
) -> Path:
    """Write `demo-encoder.ckpt` and `protein_embeddings.pt` into `folder`; returns the former."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    model = SETransformer(PROTEIN_WIDTH, WIDTH, HIDDEN, OUTPUT, HEADS, LAYERS)
    proteins = torch.randn(len(symbols), PROTEIN_WIDTH, generator=generator)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.ndim == 2:
                drawn = torch.randn(tensor.shape, generator=generator) / tensor.shape[1] ** 0.5
                tensor.copy_(drawn)
            else:
                tensor.fill_(1.0 if "norm" in name or name == "encoder.1.weight" else 0.0)
                if name.endswith("bias"):
                    tensor.zero_()
        model.cls_token.zero_()
        model.dataset_token.zero_()
        model.dataset_embedder.weight.mul_(SPREAD)
        model.set_proteins(proteins)
        _cancel_the_average_gene(model)
    path = folder / f"{DEMO_NAME}.ckpt"
    content = {
        "state_dict": model.state_dict(),
        "hyper_parameters": {
            "token_dim": PROTEIN_WIDTH,
            "d_model": WIDTH,
            "nhead": HEADS,
            "d_hid": HIDDEN,
            "nlayers": LAYERS,
            "output_dim": OUTPUT,
        },
        "epoch": 0,
        "global_step": 0,
        "pytorch-lightning_version": "2.0.0",
        "cfg_yaml": SETTINGS.format(pad_length=pad_length, nhead=HEADS),
    }
    torch.save(content, path)
    torch.save(dict(zip(symbols, proteins.unbind(), strict=True)), folder / "protein_embeddings.pt")
    return path


def _cancel_the_average_gene(model: SETransformer) -> None:
    """Set each layer's value bias so that attention over all genes alike gives zero."""
    x = model.gene_table[None]  # [1, genes, d]
    for layer in model.transformer_encoder.layers:
        values = slice(2 * WIDTH, 3 * WIDTH)
        average = layer.qkv_proj.weight[values] @ x.mean((0, 1))  # type: ignore[union-attr, index, operator]
        layer.qkv_proj.bias[values] = -average  # type: ignore[union-attr, index, operator]
        x = layer(x)
