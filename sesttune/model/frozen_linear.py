"""Linear layers whose weights will not change: cast, or packed for oneDNN, once.

On a CPU with AVX-512 oneDNN's packed weights run up to 1.6 times as fast as PyTorch's own call of
MKL (float32, two cores, the encoder's shapes), and take the GELU along for nothing; with AVX2 alone
MKL is the faster by a tenth. The operators are those that PyTorch's compiler emits; where this
PyTorch has not got them, the plain call serves.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

FrozenLinear = Callable[[Tensor], Tensor]
"""x [..., in], of the dtype it was frozen in, to [..., out]."""


def freeze(weight: Tensor, bias: Tensor, dtype: torch.dtype, gelu: bool = False) -> FrozenLinear:
    """x W' + b, then exact GELU where asked; holds its own copy of the weights."""
    weight, bias = weight.to(dtype), bias.to(dtype)
    if weight.device.type == "cpu":
        # Copies, not views of the checkpoint's file, which can then be let go.
        bias = bias.clone()
        if onednn_is_faster(dtype):
            packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
            after = "gelu" if gelu else "none"
            return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, bias, after, [], "none")
        weight = weight.clone()
    if gelu:
        return lambda x: F.gelu(F.linear(x, weight, bias))
    return lambda x: F.linear(x, weight, bias)


def onednn_is_faster(dtype: torch.dtype) -> bool:
    """Whether this CPU multiplies faster by oneDNN's operators, and this PyTorch has them."""
    slower = dtype == torch.float32 and torch.backends.cpu.get_cpu_capability() == "AVX2"
    return onednn_multiplies(dtype) and not slower


def onednn_multiplies(dtype: torch.dtype) -> bool:
    """Whether oneDNN's operators take `dtype` here.

    For bfloat16 they want AVX-512; PyTorch itself computes it anywhere.
    """
    names = ("_linear_pointwise", "_reorder_linear_weight", "_is_mkldnn_bf16_supported")
    if not torch.backends.mkldnn.is_available():
        return False
    if not all(hasattr(torch.ops.mkldnn, name) for name in names):
        return False
    return dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
