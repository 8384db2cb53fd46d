"""Write a small SE checkpoint of random weights, in the public schema, for the demo and tests.

Random features still carry cell state, which is all the demo needs; the file name
makes every part of the program call it `demo-encoder (random weights)`.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from sesttune.model.se_checkpoint import DEMO_NAME
from sesttune.model.se_transformer import SETransformer

PROTEIN_WIDTH, WIDTH, HIDDEN, OUTPUT, HEADS, LAYERS = 32, 64, 128, 64, 4, 2

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
    state = {}
    for name, tensor in model.state_dict().items():
        fan_in = tensor.shape[-1] if tensor.ndim == 2 else 1
        drawn = torch.randn(tensor.shape, generator=generator) / fan_in**0.5
        is_norm = tensor.ndim == 1 and name.endswith("weight")
        state[name] = torch.ones_like(tensor) if is_norm else drawn * (tensor.ndim == 2)
    # Spread-out bins let the count of a gene, not only its identity, reach the embedding.
    bins = model.bin_encoder.weight
    state["bin_encoder.weight"] = torch.randn(bins.shape, generator=generator) * WIDTH**0.5
    path = folder / f"{DEMO_NAME}.ckpt"
    content = {
        "state_dict": state,
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
    proteins = torch.randn(len(symbols), PROTEIN_WIDTH, generator=generator)
    torch.save(dict(zip(symbols, proteins.unbind(), strict=True)), folder / "protein_embeddings.pt")
    return path
