"""What inference needs of an SE checkpoint, as one safetensors file beside the cache.

SE-600M's Lightning file is 11.5 GB, most of it optimizer state and tables of the training
data; this is a fifth of it, opened by mmap, and read by every GPU's worker.
"""

import json
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sesttune.model.se_checkpoint import SEFiles, SEWeights
from sesttune.model.se_transformer import build_transformer

FILE, PROTEINS = "encoder.safetensors", "protein_embeddings"


def save_converted(folder: Path, weights: SEWeights, files: SEFiles) -> None:
    """Write `weights` into `folder`; raises UserError naming what they lack."""
    tensors = build_transformer(weights, files).state_dict()
    about = {
        "nhead": weights.nhead,
        "pad_length": weights.pad_length,
        "cls_token_idx": weights.cls_token_idx,
        "symbols": weights.symbols,
    }
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    contiguous[PROTEINS] = weights.proteins
    save_file(contiguous, folder / FILE, {"sesttune": json.dumps(about)})


def load_converted(folder: Path) -> SEWeights:
    """The weights that `save_converted` wrote."""
    with safe_open(folder / FILE, "pt") as file:
        about = json.loads(file.metadata()["sesttune"])
    tensors = load_file(folder / FILE)
    proteins = tensors.pop(PROTEINS)
    return SEWeights(tensors=tensors, proteins=proteins, **about)
