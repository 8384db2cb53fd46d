"""Attention without mask or gradient, as the frozen encoder needs it."""

import re
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from sesttune.model.frozen_linear import onednn_is_faster

_ROWS = 256
"""Queries at a time: their scores for 2,049 tokens are 2 MB, which a core's cache can keep."""
_MANY_TOKENS = 1_000
"""From where on the many calls cost less than they save."""
_LAST_OF_HALVES = 25


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k' / sqrt(d)) v [cells, tokens, heads * d]; all are [cells, heads, tokens, d]."""
    if q.device.type == "cpu":
        if q.dtype == torch.float32 and q.shape[2] > _MANY_TOKENS and _products_by_onednn():
            return _attend_by_onednn(q, k, v)
        k, v = k.contiguous(), v.contiguous()  # read once for every 256 queries
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


@cache
def _products_by_onednn() -> bool:
    """Whether PyTorch's own attention would leave half of the CPU unused.

    It takes MKL's products, and MKL has AVX-512 for Intel's alone, where that attention is 1.4
    times as fast. AMD's of family 25 (Zen 4) compute AVX-512 in two halves, at no gain.
    """
    return _amd_family(Path("/proc/cpuinfo")) > _LAST_OF_HALVES and onednn_is_faster(torch.float32)


def _amd_family(cpus: Path) -> int:
    """The family of an AMD's first core; 0 of another, and where there is no such file."""
    about = cpus.read_text() if cpus.exists() else ""
    family = re.search(r"^cpu family\s*: (\d+)", about, re.MULTILINE)
    return int(family[1]) if family and "AuthenticAMD" in about else 0


def _attend_by_onednn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As PyTorch's own attention on a CPU, but for the products: it always takes MKL's."""
    product = torch.ops.mkldnn._linear_pointwise
    cells, heads, tokens, d = q.shape
    out = q.new_empty(cells, tokens, heads, d)
    # oneDNN's fast products are of tensors in order.
    q, k, v = (q * d**-0.5).contiguous(), k.contiguous(), v.mT.contiguous()
    for cell in range(cells):
        for head in range(heads):
            for first in range(0, tokens, _ROWS):
                rows = slice(first, first + _ROWS)
                scores = product(q[cell, head, rows], k[cell, head], None, "none", [], "none")
                torch.softmax(scores, -1, out=scores)
                mixed = product(scores, v[cell, head], None, "none", [], "none")
                out[cell, rows, head] = mixed
    return out.flatten(2)
