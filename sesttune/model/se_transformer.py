"""The State Embedding transformer, inference only, with the public parameter names.

Post-norm layers, no mask, no positions; formulas follow the published checkpoint's
behaviour. Exact savings: gene embeddings and what the first layer projects from them are
tables made once, and the last layer and the decoder compute the two tokens that are read.
In bfloat16 the matrix products and attention are low precision; norms, residuals, softmax
and decoder stay float32.
"""

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sesttune.errors import UserError
from sesttune.model.add_norm import AddNorm, add_norm, fastest_add_norm
from sesttune.model.attention import attend
from sesttune.model.frozen_linear import freeze
from sesttune.model.se_checkpoint import KEY, SEFiles, SEWeights

COUNT_HIDDEN, COUNT_BINS, DATASET_DIM = 512, 10, 10


class Layer(nn.Module):
    """Self-attention and feed-forward, each followed by its LayerNorm.

    x is [cells, tokens, d] float32, `low` the same in the dtype of the products. `freeze` comes
    before the first forward.
    """

    def __init__(self, d: int, d_hid: int, nhead: int) -> None:
        super().__init__()
        self.nhead = nhead
        self.qkv_proj = nn.Linear(d, 3 * d)
        self.out_proj = nn.Linear(d, d)
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.linear1, self.linear2 = nn.Linear(d, d_hid), nn.Linear(d_hid, d)
        self.add_norm: AddNorm = add_norm

    def projection(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of queries, keys and values; attention's 1/sqrt(d) is in the queries'."""
        d = self.qkv_proj.in_features
        scale = torch.ones(3 * d, device=self.qkv_proj.weight.device)
        scale[:d] = (d // self.nhead) ** -0.5
        return self.qkv_proj.weight * scale[:, None], self.qkv_proj.bias * scale

    def freeze(self, dtype: torch.dtype) -> None:
        """Bring the weights into the form they are used in, and let go of the originals."""
        self._qkv = freeze(*self.projection(), dtype)
        self._freeze_rest(dtype)
        del self.qkv_proj

    def _freeze_rest(self, dtype: torch.dtype) -> None:
        self._out = freeze(self.out_proj.weight, self.out_proj.bias, dtype)
        self._up = freeze(self.linear1.weight, self.linear1.bias, dtype, gelu=True)
        self._down = freeze(self.linear2.weight, self.linear2.bias, dtype)
        del self.out_proj, self.linear1, self.linear2

    def forward(self, x: Tensor, low: Tensor, qkv: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The next x and `low`; from `qkv` [cells, tokens, 3d] where it is known already."""
        qkv = self._qkv(low) if qkv is None else qkv
        q, k, v = qkv.unflatten(-1, (3, self.nhead, -1)).permute(2, 0, 3, 1, 4)
        return self._after(x, attend(q, k, v))

    def _after(self, x: Tensor, attended: Tensor) -> tuple[Tensor, Tensor]:
        x, low = self.add_norm(x, self._out(attended), self.norm1)
        return self.add_norm(x, self._down(self._up(low)), self.norm2)


class LastLayer(Layer):
    """A layer of which only the first and the last token are read.

    So few queries need no keys and values: q (W x)' is (q W) x', and the biases of the keys
    shift all scores alike.
    """

    def freeze(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._freeze_rest(dtype)

    def forward(self, x: Tensor, low: Tensor, qkv: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """[cells, 2, d]; `low` and `qkv` are not used."""
        wq, wk, wv = self.qkv_proj.weight.chunk(3)
        bq, _, bv = self.qkv_proj.bias.chunk(3)
        wk, wv = (weight.unflatten(0, (self.nhead, -1)) for weight in (wk, wv))
        read = x[:, :: x.shape[1] - 1]  # by a list, a GPU would be waited for
        q = F.linear(read, wq, bq).unflatten(-1, (self.nhead, -1)) * wk.shape[1] ** -0.5
        # By einsum, as a matrix product would copy the weights for each cell.
        queries = torch.einsum("cthe,hed->chtd", q, wk).flatten(1, 2)  # [cells, 2 heads, d]
        mixed = ((queries @ x.mT).softmax(-1) @ x).unflatten(1, (self.nhead, 2))
        attended = torch.einsum("chtd,hed->cthe", mixed, wv).flatten(2) + bv
        return self._after(read, attended.to(self.dtype))


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
        kinds = [Layer] * (count - 1) + [LastLayer]
        self.layers = nn.ModuleList(kind(d, d_hid, nhead) for kind in kinds)


class SETransformer(nn.Module):
    """Tokens to embeddings; sizes: protein width E, width d, output O.

    `freeze` comes before the first forward.
    """

    table: Tensor  # [vocabulary + 2, d]: tokens without their counts; last CLS and dataset
    first_qkv: Tensor  # [vocabulary + 2, 3d]: what the first layer projects from them
    first_bins: Tensor  # [10, 3d]: the same of the count bins

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

    def freeze(self, proteins: Tensor, dtype: torch.dtype) -> None:
        """Compute what does not depend on a cell; `proteins` is [vocabulary, E].

        `dtype` (float32 or bfloat16) is that of the layers' matrix products from here on.
        """
        layers = self.transformer_encoder.layers
        with torch.inference_mode():
            rows = F.normalize(proteins.to(self.cls_token.device), dim=-1)
            genes = torch.cat([self.encoder(rows), self.encoder(self.cls_token)])
            self.table = math.sqrt(self.d) * torch.cat([genes, self.encoder(self.dataset_token)])
            weight, bias = cast(Layer, layers[0]).projection()
            self.first_qkv = F.linear(self.table, weight, bias).to(dtype)
            self.first_bins = (self.bin_encoder.weight @ weight.T).to(dtype)
            fastest = fastest_add_norm(cast(Layer, layers[0]).norm1, dtype)
            for layer in layers:
                cast(Layer, layer).freeze(dtype)
                cast(Layer, layer).add_norm = fastest

    def forward(self, ids: Tensor, counts: Tensor) -> Tensor:
        """Embeddings float32 [cells, O + 10] of ids [cells, P-1] and counts [cells, P]."""
        vocabulary = len(self.table) - 2
        tokens = F.pad(F.pad(ids, (1, 0), value=vocabulary), (0, 1), value=vocabulary + 1)
        bins = self.count_encoder(counts[..., None]).softmax(-1)  # [cells, P, 10]
        bins = F.pad(bins, (0, 0, 0, 1)).flatten(0, 1)  # the dataset token has no count
        x = F.embedding(tokens, self.table)  # [cells, P + 1, d]
        x.flatten(0, 1).addmm_(bins, self.bin_encoder.weight)
        qkv = F.embedding(tokens, self.first_qkv)
        qkv.flatten(0, 1).addmm_(bins.to(qkv.dtype), self.first_bins)
        low = x  # not read by the first layer, which has `qkv`
        for number, layer in enumerate(self.transformer_encoder.layers):
            x, low = layer(x, low, qkv if number == 0 else None)
        decoded = self.decoder(x)  # [cells, 2, O]
        embedding = F.normalize(decoded[:, 0], dim=-1)
        return torch.cat([embedding, self.dataset_embedder(decoded[:, 1])], dim=-1)


def build_transformer(weights: SEWeights, files: SEFiles) -> SETransformer:
    """The module with the checkpoint's tensors; raises UserError naming what is missing."""
    tensors = weights.tensors
    sized_by = ("encoder.0.weight", "decoder.1.weight", "dataset_embedder.weight")
    first = "transformer_encoder.layers.0.linear1.weight"
    _refuse_missing([name for name in (*sized_by, first) if name not in tensors], files)
    flat = [name for name in (*sized_by, first) if tensors[name].ndim != 2]
    if flat:
        raise UserError(f"{KEY}: {files.checkpoint}: {flat[0]} is not a matrix")
    d, e = tensors["encoder.0.weight"].shape
    if d % weights.nhead:
        raise UserError(
            f"{KEY}: {files.checkpoint}: {weights.nhead} heads do not divide a width of {d}"
        )
    inside = [n for n in tensors if n.startswith("transformer_encoder.layers.")]
    layers = sum(n.endswith(".linear1.weight") for n in inside)
    with torch.device("meta"):
        model = SETransformer(
            e,
            d,
            len(tensors[first]),
            len(tensors["decoder.1.weight"]),
            weights.nhead,
            layers,
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
