import logging
import sys

import pytest
import torch
from torch import nn

from sesttune.model import add_norm as module
from sesttune.model.add_norm import add_norm, fastest_add_norm


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the kernel runs: by Triton's interpreter, if there is no GPU."""
    if not torch.cuda.is_available():
        monkeypatch.setenv("TRITON_INTERPRET", "1")  # which Triton reads when it is imported
    pytest.importorskip("triton", reason="no Triton, which comes with torch for CUDA")
    return "cuda" if torch.cuda.is_available() else "cpu"


def norm_of(d: int, device: str = "cpu") -> nn.LayerNorm:
    norm = nn.LayerNorm(d, device=device).requires_grad_(False)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


@pytest.mark.gpu
@pytest.mark.parametrize("d", [64, 100, 2_048])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernel_gives_what_three_operations_do(device: str, dtype: torch.dtype, d: int) -> None:
    from sesttune.model.add_norm_kernel import fused_add_norm

    torch.manual_seed(0)
    norm = norm_of(d, device)
    every = (3 * torch.randn(3, 9, d) + 5).to(device)
    # The last layer's tokens too, of some cells and of one.
    for x in (every, every[:, ::8], every[:1, ::8], every[0, :1]):
        y = torch.randn_like(x).to(dtype)
        with torch.inference_mode():
            found, wanted = fused_add_norm(x, y, norm), add_norm(x, y, norm)
        torch.testing.assert_close(found[0], wanted[0], rtol=1e-6, atol=3e-6)
        torch.testing.assert_close(found[1], wanted[1])  # a step of its own dtype
        assert found[1].dtype == dtype


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_has_the_kernel(caplog: pytest.LogCaptureFixture) -> None:
    found = fastest_add_norm(norm_of(2_048, "cuda"), torch.bfloat16)
    assert caplog.messages == []
    assert found is not add_norm


def test_without_the_kernel_the_encoder_goes_on_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    norm = norm_of(64)
    assert fastest_add_norm(norm, torch.float32) is add_norm
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(module, "missing", lambda: "a C++ compiler")
        assert not module._has_kernels(torch.device("cuda"))
    assert "the encoder goes on without its own kernel, for want of a C++ compiler" in caplog.text
    monkeypatch.setattr(module, "_has_kernels", lambda device: True)
    monkeypatch.setitem(sys.modules, "sesttune.model.add_norm_kernel", None)  # fails to import
    with caplog.at_level(logging.WARNING):
        assert fastest_add_norm(norm, torch.float32) is add_norm
    assert caplog.text.count("the encoder goes on without its own kernel: ") == 1
