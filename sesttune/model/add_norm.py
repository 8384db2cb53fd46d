"""LN(x + y) in float32 and in the dtype of the next product, which ends each half of a layer.

As three operations a GPU reads and writes 24 bytes a value for it, in bfloat16; as one, 12.
"""

import importlib.util
import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sesttune.errors import first_line
from sesttune.system.compiler import missing

log = logging.getLogger(__name__)

AddNorm = Callable[[Tensor, Tensor, nn.LayerNorm], tuple[Tensor, Tensor]]
"""x [..., d] float32, y [..., d] and a norm of width d, to LN(x + y) in float32 and y's dtype."""


def add_norm(x: Tensor, y: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """An `AddNorm` of three operations."""
    normed = F.layer_norm(x + y, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
    return normed, normed.to(y.dtype)


def fastest_add_norm(norm: nn.LayerNorm, dtype: torch.dtype) -> AddNorm:
    """One kernel on a GPU, if it gives there what three operations do; else those."""
    if not _has_kernels(norm.weight.device):
        return add_norm
    x = torch.linspace(-40, 40, 6 * norm.weight.numel(), device=norm.weight.device).sin()
    x = x.reshape(3, 2, -1)[:, 0]  # rows apart from each other, as the last layer's of one cell
    try:
        from sesttune.model.add_norm_kernel import fused_add_norm

        found, wanted = (function(x, x.to(dtype), norm) for function in (fused_add_norm, add_norm))
        torch.testing.assert_close(found, wanted)
    except Exception as error:  # whatever a compiler and a driver may come up with
        log.warning("the encoder goes on without its own kernel: %s", first_line(error))
        return add_norm
    return fused_add_norm


def _has_kernels(device: torch.device) -> bool:
    """Triton comes with torch for CUDA on Linux, and compiles what launches its kernels."""
    if device.type != "cuda":
        return False
    lacking = missing() or (None if importlib.util.find_spec("triton") else "Triton")
    if lacking is not None:
        log.warning("the encoder goes on without its own kernel, for want of %s", lacking)
    return lacking is None
