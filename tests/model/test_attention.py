"""The encoder's attention against the formula, by each of its ways."""

from pathlib import Path

import pytest
import torch

from sesttune.model import attention
from sesttune.model.attention import attend

needs_onednn = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this PyTorch has no oneDNN"
)


@pytest.mark.parametrize("tokens", [300, 1_100])
@pytest.mark.parametrize("faster", [False, pytest.param(True, marks=needs_onednn)])
def test_attention_equals_the_formula(
    tokens: int, faster: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_products_by_onednn", lambda: faster)
    projected = torch.randn(2, tokens, 3, 4, 16, generator=torch.Generator().manual_seed(0))
    q, k, v = (2 * projected).permute(2, 0, 3, 1, 4)  # scores far apart
    scores = q.double() @ k.double().mT / 4
    expected = (scores.softmax(-1) @ v.double()).transpose(1, 2).flatten(2)
    with torch.inference_mode():
        torch.testing.assert_close(attend(q, k, v), expected.float(), rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("vendor", "family", "found"),
    [("AuthenticAMD", 25, 25), ("AuthenticAMD", 26, 26), ("GenuineIntel", 6, 0), (None, 0, 0)],
)
def test_the_family_of_an_amd_is_read(
    tmp_path: Path, vendor: str | None, family: int, found: int
) -> None:
    about = tmp_path / "cpuinfo"
    if vendor is not None:
        core = f"processor\t: 0\nvendor_id\t: {vendor}\ncpu family\t: {family}\nmodel\t\t: 17\n"
        about.write_text(2 * core)
    assert attention._amd_family(about) == found


def test_a_cell_has_the_same_attention_alone_and_among_others() -> None:
    q, k, v = torch.randn(3, 3, 2, 1_100, 16, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        together, alone = attend(q, k, v), attend(q[1:2], k[1:2], v[1:2])
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=1e-6)
