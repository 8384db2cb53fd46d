"""Distances between a predicted and a real set of cells, one value a set.

All take [sets, cells, genes] twice and return float32 [sets], computed in float32 also where
the head is under autocast. Conventions follow geomloss, so values compare with those of the
public model.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sesttune.errors import UserError

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

    Three matrix products for the value and two for the gradient, where differentiating
    `distances` takes eight, and copies of the cells at each.
    """

    @staticmethod
    def forward(ctx: Any, predicted: Tensor, real: Tensor, differentiate: bool) -> Tensor:
        differentiate = differentiate and predicted.requires_grad
        step, pieces = _at_once(predicted)
        values, gradient = [], torch.empty_like(predicted) if differentiate else None
        for first in range(0, len(predicted), step):
            x, y = (part[first : first + step].float() for part in (predicted, real))
            # Gram matrices lose digits when cells are close and far from the origin.
            centre = y.mean(-2, keepdim=True)
            x, y = (_in_pieces(cells, centre, pieces) for cells in (x, y))
            self_x, self_y = _products(x, x), _products(y, y)
            square_x, square_y = (gram.diagonal(dim1=-2, dim2=-1) for gram in (self_x, self_y))
            across = _gram_distances(_products(x, y), square_x, square_y)
            within = _gram_distances(self_x, square_x, square_x)
            within_real = _gram_distances(self_y, square_y, square_y)
            values.append(
                across.mean((-2, -1)) - within.mean((-2, -1)) / 2 - within_real.mean((-2, -1)) / 2
            )
            if gradient is not None:
                to_real, to_self = (_inverse(d) / d[0].numel() for d in (across, within))
                part = x * (to_real.sum(-1) - to_self.sum(-1))[:, None, :, None]
                for weights, cells, sign in ((to_real, y, -1), (to_self, x, 1)):
                    weights = weights[:, None].expand(-1, pieces, -1, -1)
                    part.flatten(0, 1).baddbmm_(
                        weights.flatten(0, 1), cells.flatten(0, 1), alpha=sign
                    )
                whole = gradient[first : first + step].unflatten(-1, (pieces, -1))
                whole.copy_(part.transpose(1, 2))
        ctx.gradient = gradient
        return torch.cat(values)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None]:
        gradient, ctx.gradient = ctx.gradient, None
        gradient *= outer[0][:, None, None]
        return gradient, None, None


def _at_once(x: Tensor) -> tuple[int, int]:
    """Sets at once, and the pieces that their genes are taken in, each a product of its own.

    On a CPU one set, which fits the cache, as a batch does not. On a GPU all, in pieces: a product
    of 128 cells with 128 over all genes is one or two tiles, so sixteen sets would be work for a
    quarter of the processors.
    """
    if x.device.type == "cpu":
        return 1, 1
    return len(x), next(count for count in PIECES if x.shape[-1] % count == 0)


def _in_pieces(x: Tensor, centre: Tensor, pieces: int) -> Tensor:
    """x - centre of [sets, cells, genes], laid out as [sets, pieces, cells, genes / pieces]."""
    x, centre = (part.unflatten(-1, (pieces, -1)).transpose(1, 2) for part in (x, centre))
    return torch.sub(x, centre, out=x.new_empty(x.shape))


def _products(x: Tensor, y: Tensor) -> Tensor:
    """Products [sets, n, m] of each cell of x with each of y, both `_in_pieces`."""
    return (x @ y.transpose(-1, -2)).sum(1)


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
    """The loss of `model.kwargs.loss`; raises UserError for another name."""
    known = {
        "energy": energy_distance,
        "sinkhorn": sinkhorn_divergence,
        "mse": mean_squared_error,
    }
    if name not in known:
        raise UserError(f"model.kwargs.loss={name} is not one of {', '.join(known)}")
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
