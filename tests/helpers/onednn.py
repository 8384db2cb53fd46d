"""Marks for what a CPU or a PyTorch without oneDNN's products cannot compute."""

import pytest
import torch

from sesttune.model.frozen_linear import onednn_multiplies

needs_onednn = pytest.mark.skipif(
    not onednn_multiplies(torch.float32), reason="this PyTorch has no oneDNN"
)
needs_onednn_bf16 = pytest.mark.skipif(
    not onednn_multiplies(torch.bfloat16), reason="no oneDNN in bfloat16: no AVX-512 on this CPU"
)
