"""Families of learning curves for `benchmarks/schedule.py`, around numbers fitted to real ones.

`python benchmarks/schedule_curves.py SWEEP_FOLDER` fits the base family to the recorded curves of a
sweep (least squares on log losses) and prints its numbers, which stand in FITTED below. They are of
a grid on the bundled demo, lr 1e-4..1e-2 x batch 2, 4, 8, 1,200 steps, no early stopping.
"""

import json
import math
import random
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from sesttune.search.landscape import BATCH, LR, PowerLaw

# Where the best rate lies and how the first fall ends cannot be told apart from the pace: given.
GIVEN = PowerLaw(best_lr=4e-3, power=2.0, noise=0.0, seed_noise=0.0, diverges_at=math.inf)
FITTED = {"floor": 4.38, "drop": 39.0, "plateau": 8.64, "slowing": 0.488, "turn": 294.0}

Drawn = Callable[[random.Random], dict[str, Any]]
FAMILIES: dict[str, Drawn] = {
    # The shape of the demo's curves, their 294 steps stretched to the thousands of a real
    # training; not their noise, which is that of six small validation sets.
    "fitted": lambda rng: {
        **FITTED,
        "power": GIVEN.power,
        "turn": FITTED["turn"] * 10 ** rng.uniform(1.0, 1.5),
    },
    "smooth": lambda rng: {},
    "noisy": lambda rng: {"noise": rng.uniform(0.02, 0.04), "seed_noise": 0.03},
    # Small rates are slow, but end lower: the leaders at the first rung are not those at the end.
    "crossing": lambda rng: {"rise": rng.uniform(0.5, 1.0), "slowing": rng.uniform(0.8, 1.2)},
    "divergent": lambda rng: {"diverges_at": rng.uniform(1.5, 4.0)},
    "overfitting": lambda rng: {
        "overfits": rng.uniform(0.1, 0.4),
        "overfits_after": rng.uniform(8_000, 25_000),
        "set_s": 0.0004,  # and dear large batches
    },
}


def draw(family: str, seed: int) -> PowerLaw:
    """The landscape of one repeat: the family's numbers, moved as data sets differ."""
    rng = random.Random(f"{family} {seed}")
    common = {
        "best_lr": 10 ** rng.uniform(-4.0, -3.0),
        "floor": rng.uniform(0.5, 2.0),
        "power": rng.uniform(0.4, 0.9),
        "steps_scale": 10 ** rng.uniform(2.7, 3.5),
        "rise": rng.uniform(0.1, 0.3),
    }
    return PowerLaw(seed=seed, **(common | FAMILIES[family](rng)))


def recorded(sweep: Path) -> list[tuple[Mapping[str, Any], list[tuple[int, float]]]]:
    """(point, its (step, val_loss) pairs) of every trial of a sweep."""
    curves = []
    for trial in sorted((sweep / "trials").iterdir()):
        params = json.loads((trial / "trial.json").read_text())["params"]
        lines = [json.loads(line) for line in (trial / "metrics.jsonl").read_text().splitlines()]
        curves.append((params, [(int(line["step"]), line["val_loss"]) for line in lines]))
    return curves


def fit(curves: list[tuple[Mapping[str, Any], list[tuple[int, float]]]]) -> tuple[PowerLaw, float]:
    """The curves' PowerLaw without noise, and the residuals' relative standard deviation."""
    import numpy as np
    from scipy.optimize import least_squares

    def law(x: Any) -> PowerLaw:
        names = ("floor", "drop", "steps_scale", "plateau", "turn", "slowing")
        values = dict(zip(names, np.exp(x), strict=True))
        return replace(GIVEN, **values)

    def residuals(x: Any) -> Any:
        found = law(x)
        return np.array(
            [
                math.log(found.val_loss(point, step) / loss)
                for point, lines in curves
                for step, loss in lines
            ]
        )

    highest = max(loss for _, lines in curves for _, loss in lines)
    start = np.log([4.0, highest, 100.0, 8.0, 400.0, 0.5])
    found = least_squares(residuals, start, loss="soft_l1", f_scale=0.1)
    return law(found.x), float(np.std(residuals(found.x)))


def main() -> None:
    curves = recorded(Path(sys.argv[1]))
    law, left = fit(curves)
    rates = sorted({point[LR] for point, _ in curves})
    print(
        f"{len(curves)} curves, lr {rates[0]:g}..{rates[-1]:g}, "
        f"batch {sorted({point[BATCH] for point, _ in curves})}"
    )
    print(
        {
            name: float(f"{value:.3g}")
            for name, value in asdict(law).items()
            if isinstance(value, float)
        }
    )
    print(f"residuals: {100 * left:.1f} % (relative standard deviation)")


if __name__ == "__main__":
    main()
