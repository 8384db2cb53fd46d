"""Distances between a predicted and a real set of cells, one value a set.

All take [sets, cells, genes] twice and return float32 [sets], computed in float32 also where
the head is under autocast (but see `_tf32_suffices`). Conventions follow geomloss, so values
compare with those of the public model.
"""

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]

PIECES = (8, 4, 2, 1)
"""Into how many a GPU takes the genes: the first that divides them."""
ROUNDING = 1e-6
"""Squared distances below this share of |x|^2 + |y|^2 are float32 rounding: taken as zero."""
BLUR, SCALING, STEPS = 0.05, 0.5, 16
"""Sinkhorn: final length scale, its ratio between two steps of the annealing, and the steps.

Their number is fixed, so that no step waits for the device to say how far apart the cells are:
lengths up to 1,600 are annealed in full, and 18,080 log1p values of 0 to 9.2 span 1,240.
"""


def _in_float32(loss: Loss) -> Loss:
    """`loss` without autocast, which takes every matrix product in bfloat16."""

    @functools.wraps(loss)
    def exact(predicted: Tensor, real: Tensor) -> Tensor:
        with torch.autocast(predicted.device.type, enabled=False):
            return loss(predicted, real)

    return exact


@_in_float32
def energy_distance(predicted: Tensor, real: Tensor) -> Tensor:
    """E|x-y| - E|x-x'|/2 - E|y-y'|/2 (Székely and Rizzo, 2013, halved as in geomloss).

    `real` gets no gradient, and there is no second derivative.
    """
    distance: Tensor = _EnergyDistance.apply(predicted, real.detach(), torch.is_grad_enabled())
    return distance


class _EnergyDistance(torch.autograd.Function):
    """Value and gradient in one pass: d|x-y|/dx = (x-y)/|x-y|, so both come of the distances.

    Two matrix products for the value and one for the gradient, where differentiating
    `distances` takes eight, and copies of the cells at each.
    """

    @staticmethod
    def forward(ctx: Any, predicted: Tensor, real: Tensor, differentiate: bool) -> Tensor:
        differentiate = differentiate and predicted.requires_grad
        gradient = torch.empty_like(predicted) if differentiate else None
        with _in_tf32(differentiate and _tf32_suffices(predicted)):
            values = _EnergyDistance._values(predicted, real, gradient)
        ctx.gradient = gradient
        return values

    @staticmethod
    def _values(predicted: Tensor, real: Tensor, gradient: Tensor | None) -> Tensor:
        """The distance of each set; its gradient is written to `gradient`, where there is one."""
        step, pieces = _at_once(predicted)
        values = []
        for first in range(0, len(predicted), step):
            here = slice(first, first + step)
            both = _centred(predicted[here], real[here], pieces)
            sizes = predicted.shape[1], real.shape[1]
            x, y = both.split(sizes, dim=-2)
            self_x, to_y = (_product(a, b.mT).sum(1) for a, b in ((x, x), (both, y)))
            x_to_y, self_y = to_y.split(sizes, dim=-2)
            square_x, square_y = (gram.diagonal(dim1=-2, dim2=-1) for gram in (self_x, self_y))
            across = _gram_distances(x_to_y, square_x, square_y)
            within = _gram_distances(self_x, square_x, square_x)
            within_real = _gram_distances(self_y, square_y, square_y)
            values.append(
                across.mean((-2, -1)) - within.mean((-2, -1)) / 2 - within_real.mean((-2, -1)) / 2
            )
            if gradient is not None:
                to_real, to_self = (_inverse(d) / d[0].numel() for d in (across, within))
                # Of x - y and x - x', what multiplies each cell: x itself on the diagonal.
                weights = torch.cat([to_self, -to_real], -1)
                own = to_real.sum(-1) - to_self.sum(-1)
                weights.diagonal(dim1=-2, dim2=-1).add_(own)
                part = _product(weights[:, None], both)
                gradient[here].unflatten(-1, (pieces, -1)).copy_(part.transpose(1, 2))
        return torch.cat(values)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None]:
        gradient, ctx.gradient = ctx.gradient, None
        gradient *= outer[0][:, None, None]
        return gradient, None, None


def _tf32_suffices(predicted: Tensor) -> bool:
    """Whether a step's products may round their factors to 11 bits: these come rounded to 8.

    At the default sizes they are 47 GFLOP, which a GPU's tensor cores do not take in float32.
    Rounded once and alike in all products, cells still have distances of points.
    """
    return predicted.is_cuda and predicted.dtype == torch.bfloat16


@contextmanager
def _in_tf32(wanted: bool) -> Iterator[None]:
    """Float32 products of a GPU in TF32, where `wanted`; nothing is set where it is not."""
    if not wanted:
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _at_once(x: Tensor) -> tuple[int, int]:
    """Sets at once, and the pieces that their genes are taken in, each a product of its own.

    On a CPU one set, which fits the cache, as a batch does not. On a GPU all, in pieces: a product
    of 128 cells with 128 over all genes is one or two tiles, so sixteen sets would be work for a
    quarter of the processors.
    """
    if x.device.type == "cpu":
        return 1, 1
    return len(x), next(count for count in PIECES if x.shape[-1] % count == 0)


def _centred(x: Tensor, y: Tensor, pieces: int) -> Tensor:
    """The cells of x, then those of y, float32 [sets, pieces, n + m, genes / pieces].

    Less the mean of y: Gram matrices lose digits when cells are close and far from the origin.
    """
    centre = y.mean(-2, keepdim=True, dtype=torch.float32)
    x, y, centre = (part.unflatten(-1, (pieces, -1)).transpose(1, 2) for part in (x, y, centre))
    sets, _, n, genes = x.shape
    both = centre.new_empty(sets, pieces, n + y.shape[2], genes)
    torch.sub(x, centre, out=both[:, :, :n])
    torch.sub(y, centre, out=both[:, :, n:])
    return both


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Every matrix product of the energy distance."""
    return a @ b


def _gram_distances(gram: Tensor, square_x: Tensor, square_y: Tensor) -> Tensor:
    """Distances [sets, n, m] from products and squared lengths; a cell to itself exactly 0."""
    lengths = square_x[..., :, None] + square_y[..., None, :]
    return _root(lengths - 2 * gram, lengths)


def _inverse(distance: Tensor) -> Tensor:
    """1 / distance, and 0 where cells coincide: there is no direction to move in."""
    return torch.where(distance > 0, 1 / distance, 0.0)


@_in_float32
def sinkhorn_divergence(predicted: Tensor, real: Tensor) -> Tensor:
    """Debiased entropic transport cost of |x-y|^2/2 (Feydy et al., 2019), annealed to BLUR."""
    x, y = predicted.float(), real.float()
    lengths = (distances(x, y), distances_within(x), distances_within(y))
    costs = [length.square() / 2 for length in lengths]
    widest = costs[0].detach().amax().sqrt()
    cross, self_x, self_y = (_transport(cost, widest) for cost in costs)
    return cross - self_x / 2 - self_y / 2


@_in_float32
def mean_squared_error(predicted: Tensor, real: Tensor) -> Tensor:
    """Mean of (x - y)^2 over cells and genes, cells taken in the order they come."""
    return (predicted.float() - real.float()).square().mean((-2, -1))


def distances(x: Tensor, y: Tensor) -> Tensor:
    """Euclidean distances [sets, n, m]; no gradient where two cells coincide."""
    # |x|^2 + |y|^2 - 2xy loses digits when cells are close and far from the origin.
    centre = y.detach().mean(-2, keepdim=True)
    x, y = x - centre, y - centre
    lengths = x.square().sum(-1)[..., :, None] + y.square().sum(-1)[..., None, :]
    return _root(lengths - 2 * x @ y.transpose(-1, -2), lengths)


def distances_within(x: Tensor) -> Tensor:
    """Euclidean distances [sets, n, n] of a set to itself, exactly zero on the diagonal."""
    x = x - x.detach().mean(-2, keepdim=True)
    lengths = x.square().sum(-1)[..., :, None] + x.square().sum(-1)[..., None, :]
    squared = lengths - 2 * x @ x.transpose(-1, -2)
    # Rounding leaves about 1e-7 there, whose root would bias the mean by 1e-4.
    same = torch.eye(x.shape[-2], dtype=torch.bool, device=x.device)
    return _root(squared.masked_fill(same, 0.0), lengths)


def _root(squared: Tensor, lengths: Tensor) -> Tensor:
    """sqrt with value and gradient zero where the difference is lost in rounding.

    NaN where a length is NaN or overflows: no comparison holds then, and a distance of zero would
    make a model that has diverged the best of all.
    """
    apart = squared > ROUNDING * lengths
    root = torch.where(apart, squared, torch.ones_like(squared)).sqrt() * apart
    return root + 0 * lengths.detach()


def loss_function(name: str) -> Loss:
    """The loss of `model.kwargs.loss`, which `config/checks.py` has checked."""
    known = {
        "energy": energy_distance,
        "sinkhorn": sinkhorn_divergence,
        "mse": mean_squared_error,
    }
    return known[name]


def _transport(cost: Tensor, scale: Tensor) -> Tensor:
    """Entropic transport cost [sets] of uniform weights for costs [sets, n, m].

    `scale` is the length (a scalar) that the annealing begins with.
    """
    with torch.no_grad():
        f, g = torch.zeros_like(cost[..., 0]), torch.zeros_like(cost[..., 0, :])
        for _ in range(STEPS):
            scale = scale.clamp(min=BLUR)
            epsilon = scale.square()
            f, g = (
                (f + _softmin(cost, g, epsilon)) / 2,
                (g + _softmin(cost.transpose(-1, -2), f, epsilon)) / 2,
            )
            scale = scale * SCALING
    # One last step carries the gradient: the potentials are at their optimum (envelope theorem).
    final = cost.new_full((), BLUR**2)
    f, g = _softmin(cost, g, final), _softmin(cost.transpose(-1, -2), f, final)
    return f.mean(-1) + g.mean(-1)


def _softmin(cost: Tensor, potential: Tensor, epsilon: Tensor) -> Tensor:
    scores = (potential[..., None, :] - cost) / epsilon
    return -epsilon * (scores.logsumexp(-1) - math.log(potential.shape[-1]))
