"""Learning curves as functions of the searched settings, for the simulator.

Losses fall by a power law of the steps towards a floor, as those of neural networks do (Hestness et
al., arXiv:1712.00409), and may rest on a plateau first: the head soon predicts the mean cell, and
learns what a perturbation changes much later. The learning rate sets the pace: above `best_lr` the
floor rises, and far above it the training diverges. `benchmarks/schedule_curves.py` fits the
numbers to recorded curves.
"""

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LR, BATCH, REPLICATE = "training.lr", "training.batch_size", "training.replicate"


@dataclass(frozen=True)
class PowerLaw:
    """val_loss = floor + drop / (1 + x / steps_scale)^power + plateau / (1 + (x / turn)^4).

    x is the step times the pace, which is 1 for batch size 16 at `best_lr`. `noise` and
    `seed_noise` are relative standard deviations, of a validation and of a training's floor;
    `seed` draws both.
    """

    floor: float = 1.0
    drop: float = 3.0
    power: float = 0.6
    steps_scale: float = 1_000.0
    plateau: float = 0.0
    turn: float = 5_000.0
    """Steps after which half of the plateau is left."""
    best_lr: float = 3e-4
    """At batch size 16; it grows with the square root of the batch."""
    slowing: float = 0.5
    """Exponent of lr / best_lr in the pace."""
    rise: float = 0.15
    """How the floor grows with the square of log10(lr / best_lr), above the best rate."""
    diverges_at: float = 30.0
    """Times best_lr from which the loss is soon no number; `math.inf` for never."""
    overfits: float = 0.0
    """How much val_loss rises each 10,000 steps at best_lr, as a share of the floor, after
    `overfits_after` steps."""
    overfits_after: float = 15_000.0
    noise: float = 0.01
    seed_noise: float = 0.01
    fixed_s: float = 0.001
    """Seconds of a step beside its sets, and of each set."""
    set_s: float = 0.0002
    lr: float = 1e-4
    batch_size: int = 16
    """Of points that name none."""
    seed: int = 0

    def val_loss(self, point: Mapping[str, Any], step: int) -> float:
        ratio, batch = self._rate(point)
        if ratio > self.diverges_at and step > 0.3 * self.steps_scale:
            return math.nan
        x = step * ratio**self.slowing * (batch / 16) ** 0.5
        above = max(0.0, math.log10(ratio))
        training = (self.seed, round(ratio, 9), batch, point.get(REPLICATE, 0))
        floor = self.floor * (1 + self.rise * above**2) * _noisy(training, self.seed_noise)
        loss = floor + self.drop / (1 + x / self.steps_scale) ** self.power
        loss += self.plateau / (1 + (x / self.turn) ** 4)
        late = max(0.0, x - self.overfits_after)
        loss += self.overfits * self.floor * late / 10_000
        return loss * _noisy((*training, step), self.noise)

    def step_s(self, point: Mapping[str, Any]) -> float:
        return self.fixed_s + self.set_s * int(point.get(BATCH, self.batch_size))

    def _rate(self, point: Mapping[str, Any]) -> tuple[float, int]:
        batch = int(point.get(BATCH, self.batch_size))
        best = self.best_lr * (batch / 16) ** 0.5
        return float(point.get(LR, self.lr)) / best, batch


def _noisy(key: tuple[Any, ...], sd: float) -> float:
    """1 plus Gaussian noise that is a function of `key`."""
    return 1.0 if sd == 0 else 1 + random.Random(repr(key)).gauss(0, sd)
