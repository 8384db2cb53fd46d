"""Is one model better than another on held-out data, or may it be chance?

A paired t-test of the losses over held-out conditions: both models predicted the same cell sets, so
what makes a condition hard cancels. It says nothing of another seed of the same training; a
sweep's finals do (`search/finals.py`).
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import ttest_rel

SURE = 0.05
"""Below this p-value (two-sided) a difference is called one."""


@dataclass(frozen=True)
class Challenge:
    """Mean losses over `conditions` held-out conditions; `p_value` is nan for fewer than two."""

    candidate: float
    champion: float
    conditions: int
    p_value: float

    @property
    def better(self) -> bool:
        """Whether the candidate is better beyond noise."""
        return self.candidate < self.champion and self.p_value < SURE

    def __str__(self) -> str:
        gap = f"loss {self.candidate:.4g} against {self.champion:.4g}"
        if math.isnan(self.p_value):
            return f"{gap} over {self.conditions} condition: too few to tell from noise"
        over = f"{gap} over {self.conditions} conditions, p = {self.p_value:.2g}"
        if self.better:
            return f"better beyond noise ({over})"
        if self.p_value < SURE:
            return f"worse beyond noise ({over})"
        return f"differs by noise only ({over})"


def challenge(candidate: np.ndarray, champion: np.ndarray) -> Challenge:
    """Compare losses [conditions] of two models on the same cell sets."""
    p_value = math.nan
    if len(candidate) > 1:
        same = bool((candidate == champion).all())
        p_value = 1.0 if same else float(ttest_rel(candidate, champion).pvalue)
    return Challenge(float(candidate.mean()), float(champion.mean()), len(candidate), p_value)
