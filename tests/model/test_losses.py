import math

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from sesttune.model import losses
from sesttune.model.losses import (
    energy_distance,
    loss_function,
    mean_squared_error,
    sinkhorn_divergence,
)
from sesttune.model.st_head import HeadConfig, STHead


def in_double(x: Tensor, y: Tensor) -> Tensor:
    """The energy distance by its definition, in float64 and one pair at a time."""
    x, y = x.double(), y.double()

    def mean_distance(a: Tensor, b: Tensor) -> Tensor:
        return (a[:, :, None] - b[:, None]).norm(dim=-1).mean((-2, -1))

    return mean_distance(x, y) - mean_distance(x, x) / 2 - mean_distance(y, y) / 2


def sets(seed: int, offset: float = 0.0, shift: float = 0.3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(3, 16, 40, generator=generator) + offset
    y = torch.rand(3, 16, 40, generator=generator) + offset + shift
    return x, y


@pytest.mark.parametrize("offset", [0.0, 5.0, 100.0])
def test_energy_distance_equals_its_definition(offset: float) -> None:
    x, y = sets(0, offset)
    assert torch.allclose(energy_distance(x, y).double(), in_double(x, y), rtol=1e-5, atol=1e-5)


def test_energy_distance_gradient_equals_that_of_the_definition() -> None:
    for x, y in (sets(1), realistic(4)):
        x.requires_grad_()
        weights = torch.arange(1.0, 1.0 + len(x))  # sets count differently in what follows
        (energy_distance(x, y) * weights).sum().backward()
        assert x.grad is not None
        wide = x.detach().double().requires_grad_()
        pairs = (wide[:, :, None] - wide[:, None]).square().sum(-1)
        apart = pairs > 0
        within = torch.where(apart, pairs, 1.0).sqrt() * apart
        across = (wide[:, :, None] - y.double()[:, None]).norm(dim=-1)
        value = across.mean((-2, -1)) - within.mean((-2, -1)) / 2
        (value * weights).sum().backward()
        assert wide.grad is not None
        assert (x.grad - wide.grad).abs().max() < 1e-4 * wide.grad.abs().max()


@pytest.mark.parametrize("pieces", [2, 8])
def test_genes_in_pieces_as_on_a_gpu_are_the_same_distance(
    monkeypatch: pytest.MonkeyPatch, pieces: int
) -> None:
    x, y = realistic(7)
    weights = torch.arange(1.0, 1.0 + len(x))
    found = []
    for at_once in ((1, 1), (len(x), pieces)):
        monkeypatch.setattr(losses, "_at_once", lambda _, at_once=at_once: at_once)
        predicted = x.clone().requires_grad_()
        values = energy_distance(predicted, y)
        (values * weights).sum().backward()
        assert predicted.grad is not None
        found += [values.detach(), predicted.grad]
    assert torch.allclose(found[0], found[2], rtol=1e-6)
    assert (found[1] - found[3]).abs().max() < 1e-6 * found[1].abs().max()


def test_a_gpu_takes_the_genes_in_as_many_pieces_as_divide_them() -> None:
    with FakeTensorMode():  # no values, so no GPU is needed
        for genes, pieces in ((18_080, 8), (18_082, 2), (18_081, 1)):
            x = torch.empty(16, 4, genes, device="cuda")
            assert losses._at_once(x) == (16, pieces)
    assert losses._at_once(torch.empty(16, 4, 8)) == (1, 1)


def to_tf32(x: Tensor, nearest: bool) -> Tensor:
    """As tensor cores take float32: to 11 bits, the nearest value or what is left of it."""
    bits = x.contiguous().view(torch.int32) + 0x1000 * nearest
    return (bits & ~0x1FFF).view(torch.float32)


@pytest.mark.parametrize("nearest", [False, True])
def test_products_in_tf32_are_off_by_less_than_bfloat16_rounds(
    monkeypatch: pytest.MonkeyPatch, nearest: bool
) -> None:
    x, y = realistic(8)
    x = x.bfloat16()
    found = []
    for rounded in (False, True):
        if rounded:
            monkeypatch.setattr(
                losses, "_product", lambda a, b: to_tf32(a, nearest) @ to_tf32(b, nearest)
            )
        predicted = x.float().clone().requires_grad_()
        value = energy_distance(predicted, y)
        value.sum().backward()
        assert predicted.grad is not None
        found += [value.detach(), predicted.grad]
    value, gradient, in_tf32, its_gradient = found
    assert not torch.equal(value, in_tf32)
    assert torch.allclose(value, in_tf32, rtol=5e-4)
    assert (gradient - its_gradient).abs().max() < 2e-3 * gradient.abs().max()
    assert (gradient - its_gradient).norm() < (gradient - gradient.bfloat16().float()).norm()


def test_a_step_in_bfloat16_on_a_gpu_takes_tf32_and_nothing_else_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with FakeTensorMode():  # no values, so no GPU is needed
        half, full = (torch.empty(2, device="cuda", dtype=t) for t in (torch.bfloat16, None))
        assert losses._tf32_suffices(half)
        assert not losses._tf32_suffices(full)
    x, y = sets(0)
    assert not losses._tf32_suffices(x.bfloat16())
    seen = []

    def noted(a: Tensor, b: Tensor) -> Tensor:
        seen.append(torch.get_float32_matmul_precision())
        return a @ b

    monkeypatch.setattr(losses, "_product", noted)
    monkeypatch.setattr(losses, "_tf32_suffices", lambda _: True)
    with torch.no_grad():
        energy_distance(x, y)  # validation
    assert set(seen) == {"highest"}
    del seen[:]
    energy_distance(x.requires_grad_(), y)
    assert set(seen) == {"high"}
    with pytest.raises(RuntimeError):
        energy_distance(x, y[..., 1:])
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize("in_tf32", [False, True])
def test_what_was_compiled_before_a_loss_is_found_again_after_it(
    monkeypatch: pytest.MonkeyPatch, in_tf32: bool
) -> None:
    """torch's cache has this among its keys; it is as a trial sets it, or as a process begins."""
    monkeypatch.setattr(losses, "_tf32_suffices", lambda _: in_tf32)
    x, y = sets(0)
    settings = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
    earlier = [setting.fp32_precision for setting in settings]
    try:
        for setting in settings:
            setting.fp32_precision = begun = "ieee" if in_tf32 else "none"
        energy_distance(x.requires_grad_(), y)
        assert {setting.fp32_precision for setting in settings} == {begun}
    finally:
        for setting, value in zip(settings, earlier, strict=True):
            setting.fp32_precision = value


@pytest.mark.parametrize("name", ["energy", "sinkhorn", "mse"])
def test_mixed_precision_leaves_the_loss_in_float32(name: str) -> None:
    """Autocast would take its products in bfloat16, which loses two of three digits."""
    x, y = realistic(5)
    x = x.bfloat16()  # what the head gives then
    found = {}
    for mixed in (False, True):
        predicted = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            values = loss_function(name)(predicted, y)
        values.sum().backward()
        assert values.dtype == torch.float32
        found[mixed] = (values.detach(), predicted.grad)
    assert torch.equal(found[True][0], found[False][0])
    assert torch.equal(found[True][1], found[False][1])


@pytest.mark.parametrize("name", ["energy", "sinkhorn", "mse"])
def test_a_step_asks_the_device_for_no_value(name: str) -> None:
    """Tensors without values raise where one is asked for, as a GPU would make the host wait."""
    with FakeTensorMode():
        head = STHead(HeadConfig(32, 64, 200, 32, n_layers=2, n_heads=4))
        predicted = head(torch.rand(2, 8, 32), torch.rand(2, 64))
        loss = loss_function(name)(predicted, torch.rand(2, 8, 200)).mean()
        loss.backward()
        with pytest.raises(DataDependentOutputException):
            float(loss)


def realistic(seed: int) -> tuple[Tensor, Tensor]:
    """Predictions near zero-inflated log1p cells, of more genes than cells."""
    generator = torch.Generator().manual_seed(seed)
    cells = torch.rand(2, 64, 1_000, generator=generator) * 4
    y = cells * (torch.rand(cells.shape, generator=generator) < 0.2)
    x = (y.mean(1, keepdim=True) + 0.1 * torch.randn(y.shape, generator=generator)).relu()
    return x, y


def test_energy_distance_without_gradient_is_the_same_value() -> None:
    x, y = realistic(5)
    with torch.no_grad():
        plain = energy_distance(x, y)
    assert torch.equal(plain, energy_distance(x.requires_grad_(), y).detach())
    assert torch.allclose(plain.double(), in_double(x.detach(), y), rtol=1e-5)


def test_energy_distance_takes_bfloat16_and_gives_its_gradient_in_it() -> None:
    x, y = realistic(6)
    half = x.bfloat16().requires_grad_()
    value = energy_distance(half, y)
    value.sum().backward()
    assert value.dtype == torch.float32
    assert half.grad is not None
    assert half.grad.dtype == torch.bfloat16
    full = half.detach().float().requires_grad_()
    energy_distance(full, y).sum().backward()
    assert full.grad is not None
    assert torch.allclose(half.grad.float(), full.grad, rtol=1e-2, atol=1e-6)


def test_energy_distance_is_zero_and_smooth_at_equality() -> None:
    x, _ = sets(2)
    same = x.clone().requires_grad_()
    value = energy_distance(same, x)
    value.sum().backward()
    assert value.abs().max() < 1e-3
    assert same.grad is not None
    assert same.grad.isfinite().all()
    flat = torch.zeros(1, 8, 4, requires_grad=True)  # all cells alike: every distance is zero
    energy_distance(flat, torch.zeros(1, 8, 4)).sum().backward()
    assert flat.grad is not None
    assert flat.grad.abs().max() == 0


def test_losses_are_per_set_and_grow_with_the_shift() -> None:
    for loss in (energy_distance, sinkhorn_divergence, mean_squared_error):
        near, far = loss(*sets(3, shift=0.1)), loss(*sets(3, shift=1.0))
        assert near.shape == (3,)
        assert (far > near).all()
        whole = loss(*sets(3))
        x, y = sets(3)
        assert torch.allclose(whole[1:2], loss(x[1:2], y[1:2]), rtol=1e-3)


def test_the_set_losses_ignore_the_order_of_cells() -> None:
    x, y = sets(4)
    turned = x.flip(1)
    assert torch.allclose(energy_distance(x, y), energy_distance(turned, y), rtol=1e-5)
    assert torch.allclose(sinkhorn_divergence(x, y), sinkhorn_divergence(turned, y), rtol=1e-4)
    assert not torch.allclose(mean_squared_error(x, y), mean_squared_error(turned, y), rtol=1e-4)


def test_sinkhorn_approaches_the_transport_cost_of_shifted_points() -> None:
    x = torch.rand(1, 16, 10, generator=torch.Generator().manual_seed(5))
    shift = torch.full((10,), 0.2)
    cost = float(shift.square().sum() / 2)  # every point moves by the shift
    assert float(sinkhorn_divergence(x + shift, x)) == pytest.approx(cost, rel=0.05)


def test_sinkhorn_of_cells_that_coincide_is_zero_and_no_nan() -> None:
    """Counts of nothing: an untrained head's zeros beside real ones."""
    x = torch.zeros(1, 4, 3, requires_grad=True)
    value = sinkhorn_divergence(x, torch.zeros(1, 4, 3))
    value.sum().backward()
    assert value.item() == 0
    assert x.grad is not None
    assert not x.grad.any()


def test_sinkhorn_has_a_gradient_towards_the_target() -> None:
    x, y = sets(6)
    x.requires_grad_()
    before = sinkhorn_divergence(x, y).sum()
    before.backward()
    assert x.grad is not None
    after = sinkhorn_divergence(x.detach() - 1.0 * x.grad, y).sum()
    assert after < before


@pytest.mark.oracle
def test_energy_and_sinkhorn_equal_geomloss() -> None:
    geomloss = pytest.importorskip("geomloss")
    x, y = sets(7)
    energy = geomloss.SamplesLoss("energy")(x, y)
    assert torch.allclose(energy_distance(x, y), energy, rtol=1e-3)
    sinkhorn = geomloss.SamplesLoss("sinkhorn", blur=0.05)(x, y)
    assert torch.allclose(sinkhorn_divergence(x, y), sinkhorn, rtol=1e-2)


@pytest.mark.parametrize("name", ["energy", "sinkhorn", "mse"])
@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_a_model_that_has_diverged_has_no_loss_that_another_could_be_compared_with(name, value):
    real = torch.rand(2, 4, 6)
    for part in (slice(None), slice(1)):  # all cells, or one of them
        predicted = torch.rand(2, 4, 6)
        predicted[:, part] = value
        assert not torch.isfinite(loss_function(name)(predicted, real)).any()
