"""How well a predicted perturbation effect agrees with the real one. Plain numpy in and out.

An *effect* is the mean log1p expression of the perturbed cells of a condition minus that of its
context's controls, float [genes]. Names and directions follow cell-eval, the metrics of the Virtual
Cell Challenge, where there is one there (`docs/evaluation.md` lists the differences).
"""

from dataclasses import dataclass

import numpy as np
from scipy.spatial.distance import cdist
from scipy.stats import false_discovery_control, ttest_ind_from_stats

TOP_GENES = 50
FALSE_DISCOVERIES = 0.05
"""Share of false ones among the genes called differentially expressed (Benjamini-Hochberg)."""


@dataclass(frozen=True)
class Moments:
    """Mean and unbiased variance of every gene, float64 [genes], over `cells` cells."""

    mean: np.ndarray
    variance: np.ndarray
    cells: int

    @classmethod
    def of(cls, cells: np.ndarray) -> "Moments":
        """Of log1p expression [cells, genes]."""
        spread = cells.var(0, ddof=1, dtype=np.float64) if len(cells) > 1 else np.nan
        mean = cells.mean(0, dtype=np.float64)
        return cls(mean, np.broadcast_to(spread, mean.shape), len(cells))


def pearson_delta(predicted: np.ndarray, real: np.ndarray) -> float:
    """Pearson correlation of two effects over genes; nan where one of them is flat."""
    if np.ptp(predicted) == 0 or np.ptp(real) == 0:
        return float("nan")
    return float(np.corrcoef(predicted, real)[0, 1])


def mean_absolute_error(predicted: np.ndarray, real: np.ndarray) -> float:
    """Mean over genes of |predicted - real|, in units of log1p expression."""
    return float(np.abs(predicted - real).mean())


def changed_genes(perturbed: Moments, controls: Moments) -> np.ndarray:
    """Indices of the differentially expressed genes, the largest |effect| first.

    Welch's t-test on log1p expression, at most `FALSE_DISCOVERIES` false ones.
    """
    spread = perturbed.variance + controls.variance
    testable = np.flatnonzero(spread > 0)  # nan (a single cell) is not
    if not len(testable):
        return testable
    p_values = ttest_ind_from_stats(
        perturbed.mean[testable],
        np.sqrt(perturbed.variance[testable]),
        perturbed.cells,
        controls.mean[testable],
        np.sqrt(controls.variance[testable]),
        controls.cells,
        equal_var=False,
    ).pvalue
    found = testable[false_discovery_control(p_values) < FALSE_DISCOVERIES]
    return largest(perturbed.mean - controls.mean, found)


def largest(effect: np.ndarray, genes: np.ndarray) -> np.ndarray:
    """`genes` (indices) by falling |effect|; those that are equal in their order."""
    return genes[np.argsort(-np.abs(effect[genes]), kind="stable")]


def top_overlap(predicted: np.ndarray, changed: np.ndarray, top: int = TOP_GENES) -> float:
    """Share of the `top` changed genes that are among as many largest predicted effects.

    Fewer where fewer genes changed; nan where none did. `changed` as of `changed_genes`.
    """
    count = min(top, len(changed))
    if count == 0:
        return float("nan")
    guessed = largest(predicted, np.arange(len(predicted)))[:count]
    return len(np.intersect1d(guessed, changed[:count])) / count


def discrimination(predicted: np.ndarray, real: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """How well each predicted effect is told from those of other perturbations, float [n].

    `predicted` and `real` are effects [n, genes] of n perturbations of one context. 1 where the
    real effect nearest to a prediction (L1) is its own, 1 - r/n where r others are nearer; by
    chance 0.5 on average. `targets` (int64 [n], -1: none) are the perturbed genes: each is left
    out, or a knock-down would be recognised by its own gene. nan for a single perturbation.
    """
    count = len(predicted)
    if count < 2:
        return np.full(count, np.nan)
    distance = cdist(predicted, real, "cityblock")
    rows = np.flatnonzero(targets >= 0)
    own = targets[rows]
    distance[rows] -= np.abs(predicted[rows, own][:, None] - real[:, own].T)
    nearer = (distance < np.diagonal(distance)[:, None]).sum(1)
    result: np.ndarray = 1 - nearer / count
    return result
