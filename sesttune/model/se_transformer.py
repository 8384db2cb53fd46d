"""The State Embedding transformer, inference only, with the public parameter names.

Post-norm layers, no mask, no positions; formulas follow the published checkpoint's
behaviour. Three exact savings: gene embeddings are a table made once, the last
layer computes two tokens instead of all, and the decoder runs on those two.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sesttune.errors import UserError
from sesttune.model.se_checkpoint import KEY, SEFiles, SEWeights

COUNT_HIDDEN, COUNT_BINS, DATASET_DIM = 512, 10, 10


class Layer(nn.Module):
    """Self-attention and feed-forward, each followed by its LayerNorm."""

    def __init__(self, d: int, d_hid: int, nhead: int) -> None:
        super().__init__()
        self.nhead = nhead
        self.qkv_proj = nn.Linear(d, 3 * d)
        self.out_proj = nn.Linear(d, d)
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.linear1, self.linear2 = nn.Linear(d, d_hid), nn.Linear(d_hid, d)

    def forward(self, x: Tensor, ends_only: bool = False) -> Tensor:
        """[cells, tokens, d]; with `ends_only` just the first and last token, [cells, 2, d]."""
        cells, tokens, d = x.shape
        heads = (cells, -1, self.nhead, d // self.nhead)
        q, k, v = self.qkv_proj(x).chunk(3, dim=-1)
        if ends_only:
            ends = [0, tokens - 1]
            x, q = x[:, ends], q[:, ends]
        q, k, v = (part.reshape(heads).transpose(1, 2) for part in (q, k, v))
        attended = F.scaled_dot_product_attention(q, k, v)  # [cells, heads, tokens, d/heads]
        x = self.norm1(x + self.out_proj(attended.transpose(1, 2).reshape(x.shape)))
        return self.norm2(x + self.linear2(F.gelu(self.linear1(x))))


class Skip(nn.Module):
    """LN(y + W relu(V y))."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.intermediate_dense = nn.Linear(d, 2 * d)
        self.dense = nn.Linear(2 * d, d)
        self.layer_norm = nn.LayerNorm(d)

    def forward(self, y: Tensor) -> Tensor:
        return self.layer_norm(y + self.dense(F.relu(self.intermediate_dense(y))))


class Layers(nn.Module):
    def __init__(self, d: int, d_hid: int, nhead: int, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(d, d_hid, nhead) for _ in range(count))


class SETransformer(nn.Module):
    """Tokens to embeddings; sizes: protein width E, width d, output O."""

    gene_table: Tensor

    def __init__(self, e: int, d: int, d_hid: int, o: int, nhead: int, layers: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.empty(1, e))
        self.dataset_token = nn.Parameter(torch.empty(1, e))
        self.encoder = nn.Sequential(nn.Linear(e, d), nn.LayerNorm(d), nn.SiLU())
        self.transformer_encoder = Layers(d, d_hid, nhead, layers)
        self.decoder = nn.Sequential(Skip(d), nn.Linear(d, o))
        self.count_encoder = nn.Sequential(
            nn.Linear(1, COUNT_HIDDEN), nn.LeakyReLU(0.01), nn.Linear(COUNT_HIDDEN, COUNT_BINS)
        )
        self.bin_encoder = nn.Embedding(COUNT_BINS, d)
        self.dataset_embedder = nn.Linear(o, DATASET_DIM)
        self.d, self.embed_dim = d, o + DATASET_DIM

    def set_proteins(self, proteins: Tensor) -> None:
        """Make the gene table [vocabulary, d] from protein rows [vocabulary, E]."""
        with torch.inference_mode():
            table = self.encoder(F.normalize(proteins.to(self.cls_token.device), dim=-1))
            self.gene_table = math.sqrt(self.d) * table

    def forward(self, ids: Tensor, counts: Tensor) -> Tensor:
        """Embeddings float32 [cells, O + 10] of ids [cells, P-1] and counts [cells, P]."""
        cells = len(ids)
        ends = math.sqrt(self.d) * self.encoder(torch.cat([self.cls_token, self.dataset_token]))
        bins = self.count_encoder(counts[..., None]).softmax(-1)  # [cells, P, 10]
        count = bins @ self.bin_encoder.weight
        x = torch.cat([ends[:1].expand(cells, 1, -1), self.gene_table[ids]], dim=1) + count
        x = torch.cat([x, ends[1:].expand(cells, 1, -1)], dim=1)  # [cells, P + 1, d]
        layers = self.transformer_encoder.layers
        for number, layer in enumerate(layers):
            x = layer(x, ends_only=number == len(layers) - 1)
        decoded = self.decoder(x).float()  # [cells, 2, O]
        embedding = F.normalize(decoded[:, 0], dim=-1)
        return torch.cat([embedding, self.dataset_embedder(decoded[:, 1]).float()], dim=-1)


def build_transformer(weights: SEWeights, files: SEFiles) -> SETransformer:
    """The module with the checkpoint's tensors; raises UserError naming what is missing."""
    tensors = weights.tensors
    sized_by = ("encoder.0.weight", "decoder.1.weight", "dataset_embedder.weight")
    first = "transformer_encoder.layers.0.linear1.weight"
    _refuse_missing([name for name in (*sized_by, first) if name not in tensors], files)
    d, e = tensors["encoder.0.weight"].shape
    numbers = [int(n.split(".")[2]) for n in tensors if n.startswith("transformer_encoder.layers.")]
    with torch.device("meta"):
        model = SETransformer(
            e,
            d,
            len(tensors[first]),
            len(tensors["decoder.1.weight"]),
            weights.nhead,
            1 + max(numbers),
        )
    wanted = model.state_dict()
    _refuse_missing([name for name in wanted if name not in tensors], files)
    for name, tensor in wanted.items():
        if tensors[name].shape != tensor.shape:
            raise UserError(
                f"{KEY}: {files.checkpoint}: {name} has shape {tuple(tensors[name].shape)}, "
                f"expected {tuple(tensor.shape)}"
            )
    if weights.proteins.shape[1] != e:
        raise UserError(
            f"{files.proteins or files.checkpoint}: protein embeddings have width "
            f"{weights.proteins.shape[1]}, the checkpoint expects {e}"
        )
    model.load_state_dict({name: tensors[name].float() for name in wanted}, assign=True)
    return model.requires_grad_(False).eval()


def _refuse_missing(names: list[str], files: SEFiles) -> None:
    if names:
        shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        raise UserError(f"{KEY}: {files.checkpoint} is not an SE checkpoint: it lacks {shown}")
