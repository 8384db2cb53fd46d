"""Attention without mask or gradient, as the frozen encoder needs it."""

import itertools
import re
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from sesttune.model.frozen_linear import onednn_is_faster

_ROWS = 256
"""Queries at a time, about: their weights for 2,049 tokens are 2 MB, which a cache can keep."""
_MANY_TOKENS = 1_000
"""From where on the many calls cost less than they save."""
_ZEN4 = 25
"""The family of the AMDs that compute AVX-512 in two halves."""
_FAR_BELOW, _SPAN = 17, 45
"""In exponents: a logistic function of -17 is e^-17 but for 4e-8 of it. And what lies 25 below a
query's largest score, where it counts no longer, is a normal float32 still: e^-(17 + 45 + 25)."""


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k') v [cells, tokens, heads * d]; all are [cells, heads, tokens, d], q scaled."""
    if q.device.type == "cpu":
        k, v = k.contiguous(), v.contiguous()  # read once for every 256 queries
        if q.shape[2] > _MANY_TOKENS and _products_by_onednn(q.dtype):
            return attend_by_onednn(q.contiguous(), k, v)
    return F.scaled_dot_product_attention(q, k, v, scale=1.0).transpose(1, 2).flatten(2)


@cache
def _products_by_onednn(dtype: torch.dtype) -> bool:
    """Whether this CPU multiplies much faster by oneDNN than by what PyTorch's own attention takes.

    That is MKL, which has AVX-512 for Intel's CPUs alone. In float32 Zen 4 gains nothing by it.
    """
    first = _ZEN4 + (dtype == torch.float32)
    return _amd_family(Path("/proc/cpuinfo")) >= first and onednn_is_faster(dtype)


def _amd_family(cpus: Path) -> int:
    """The family of an AMD's first core; 0 of another, and where there is no such file."""
    about = cpus.read_text() if cpus.exists() else ""
    family = re.search(r"^cpu family\s*: (\d+)", about, re.MULTILINE)
    return int(family[1]) if family and "AuthenticAMD" in about else 0


def attend_by_onednn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`attend` with oneDNN's products, which can apply a function before they round and store.

    They know no exponential, but the logistic function, which far below zero is one. All are in
    order, as oneDNN's fast products want them.
    """
    cells, heads, tokens, d = q.shape
    out = q.new_empty(cells, tokens, heads, d)
    tops, near = _tops(q, k)
    values = F.pad(v, (0, 1), value=1).mT.contiguous()  # the row of ones sums the weights
    blocks = max(1, round(tokens / _ROWS))
    for cell, head in itertools.product(range(cells), range(heads)):
        parts = (x[cell, head].tensor_split(blocks) for x in (q, tops))
        mixed = out[cell, :, head].tensor_split(blocks)
        for queries, top, to in zip(*parts, mixed, strict=True):
            _mix(queries, k[cell, head], values[cell, head], top if near[cell, head] else None, to)
    return out.flatten(2)


def _tops(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """No score of a query is above `tops` [cells, heads, tokens]; in which heads all are near it.

    A query's largest score lies above the mean, q k_mean', by |q| |k - k_mean| or less.
    """
    q, k = q.float(), k.float()
    mean = k.mean(2, keepdim=True)
    above = q.norm(dim=-1) * (k - mean).norm(dim=-1).amax(-1, keepdim=True)
    return (q @ mean.mT)[..., 0] + above, above.amax(-1) <= _SPAN


def _mix(q: Tensor, k: Tensor, v: Tensor, top: Tensor | None, out: Tensor) -> None:
    """softmax(q k') v of one head into `out` [queries, d]; v is [d + 1, tokens], the last row 1.

    `top` is what the largest score of each query is near to; where it is not known, it costs one
    product more.
    """
    product = torch.ops.mkldnn._linear_pointwise
    if top is None:
        top = product(k, q, None, "none", [], "none").amax(0)
    weights = product(k, q, (-_FAR_BELOW - top).to(q.dtype), "sigmoid", [], "none")
    mixed = product(v, weights.mT, None, "none", [], "none")
    torch.div(mixed[:-1].mT, mixed[-1, :, None], out=out)
