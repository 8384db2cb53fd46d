"""The encoder's attention against the formula, by each of its ways."""

from pathlib import Path

import pytest
import torch
from helpers.onednn import needs_onednn, needs_onednn_bf16
from torch import Tensor

from sesttune.model import attention
from sesttune.model.attention import attend


def projected(tokens: int, spread: float) -> tuple[Tensor, Tensor, Tensor]:
    """q (scaled), k and v of 2 cells and 4 heads of 16; scores lie about `spread`^2 apart."""
    made = torch.randn(2, tokens, 3, 4, 16, generator=torch.Generator().manual_seed(0))
    q, k, v = (spread * made).permute(2, 0, 3, 1, 4)
    return q / 4, k, v / spread


def formula(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q.double() @ k.double().mT
    return (scores.softmax(-1) @ v.double()).transpose(1, 2).flatten(2).float()


@pytest.mark.parametrize("spread", [0.5, 1, 2])
@pytest.mark.parametrize("tokens", [300, 1_100])
@pytest.mark.parametrize("faster", [False, pytest.param(True, marks=needs_onednn)])
def test_attention_equals_the_formula(
    tokens: int, faster: bool, spread: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_products_by_onednn", lambda dtype: faster)
    q, k, v = projected(tokens, spread)
    with torch.inference_mode():
        torch.testing.assert_close(attend(q, k, v), formula(q, k, v), rtol=0, atol=2e-5)


@pytest.mark.parametrize("faster", [False, pytest.param(True, marks=needs_onednn_bf16)])
def test_bfloat16_costs_a_few_thousandths(faster: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_products_by_onednn", lambda dtype: faster)
    q, k, v = (x.bfloat16() for x in projected(1_100, 1))
    expected = formula(q, k, v)
    with torch.inference_mode():
        error = attend(q, k, v).float() - expected
    assert error.norm() < 6e-3 * expected.norm()


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        pytest.param(torch.float32, 1e-5, marks=needs_onednn),
        pytest.param(torch.bfloat16, 6e-3, marks=needs_onednn_bf16),
    ],
)
def test_scores_far_apart_are_shifted_by_the_largest(
    dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of three heads of eight are, by hundreds: no bound is near the largest then."""
    monkeypatch.setattr(attention, "_products_by_onednn", lambda dtype: True)
    tops, mix = list[object](), attention._mix
    monkeypatch.setattr(attention, "_mix", lambda *args: (tops.append(args[3]), mix(*args)))
    q, k, v = projected(1_100, 1)
    q[:, 1] *= 40
    q[1, 2] -= 300 * k[1, 2].mean(0)  # every score of this head is low, and some are far lower
    q, k, v = (x.to(dtype) for x in (q, k, v))
    expected = formula(q, k, v)
    with torch.inference_mode():
        error = attend(q, k, v).float() - expected
    assert error.norm() < tolerance * expected.norm()
    assert sum(top is None for top in tops) == 3 * len(tops) // 8


@needs_onednn
def test_no_score_is_above_its_bound() -> None:
    q, k, _ = projected(1_100, 1)
    k = k + 5  # which shifts all scores of a query alike
    tops, near = attention._tops(q, k)
    largest = (q @ k.mT).amax(-1)
    assert (largest <= tops).all()
    assert (tops - largest < attention._SPAN).all()
    assert near.all()


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


def test_zen_4_takes_onednn_in_bfloat16_and_its_successor_in_float32_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention, "onednn_is_faster", lambda dtype: True)
    pays = attention._products_by_onednn.__wrapped__
    for family, expected in ((6, (False, False)), (25, (True, False)), (26, (True, True))):
        monkeypatch.setattr(attention, "_amd_family", lambda path, family=family: family)
        assert (pays(torch.bfloat16), pays(torch.float32)) == expected
