"""Which searcher finds the better point for the same number of trials, in virtual time.

    python benchmarks/searchers.py [--repeats 20] [--trials 16] [--slots 4]

All run under our schedule, over learning rates 1e-5..1e-2 (log) and batch sizes 8, 16, 32. Regret
is how far the best trial's loss, without its noise, is above the best loss of the landscape (on a
fine grid, without the luck of a seed). Seeds and extensions are off: only the points matter here.
"""

import argparse
import math
import statistics
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

from schedule import STARTUP_S, Incumbent
from schedule_curves import FAMILIES, draw
from schedule_policies import BATCHES, INTERVAL, PATIENCE

from sesttune.config.load import load_config
from sesttune.search.landscape import PowerLaw
from sesttune.search.rules import rules_of
from sesttune.search.schedule import Schedule
from sesttune.search.searcher import Suggester
from sesttune.search.simulator import SimulatedCurves, Simulation
from sesttune.search.space_file import parse_space

SEARCHERS = ("random", "qmc", "tpe", "gp")
RATES = [10 ** (-5 + k / 20) for k in range(61)]
CONTENT = {
    "searcher": "random",
    "parameters": {
        "training.lr": {"type": "loguniform", "low": RATES[0], "high": RATES[-1]},
        "training.batch_size": {"type": "choice", "values": BATCHES},
    },
}


def best_loss(law: PowerLaw) -> float:
    """The lowest loss anywhere in the space."""
    plain = replace(law, noise=0.0, seed_noise=0.0)
    losses = (
        plain.val_loss({"training.lr": lr, "training.batch_size": batch}, step)
        for lr in RATES
        for batch in BATCHES
        for step in range(INTERVAL, 40_001, 2_500)
    )
    return min(loss for loss in losses if math.isfinite(loss))


def repeat(job: tuple[str, int, int, int]) -> dict[str, tuple[float, int]]:
    """Regret and steps of each searcher on one landscape."""
    family, seed, trials, slots = job
    warnings.simplefilter("ignore")
    law = draw(family, seed)
    config = load_config(["sweep.seeds=1", "sweep.extend_to=[]", f"sweep.num_trials={trials}"])
    space, lowest, found = parse_space(CONTENT, "benchmark"), best_loss(law), {}
    for kind in SEARCHERS:
        curves, incumbent = SimulatedCurves(PATIENCE * INTERVAL), Incumbent(law)
        suggester = Suggester(space, kind, 1_000 * seed, trials)
        schedule = Schedule(rules_of(config, space), suggester, curves)
        simulation = Simulation(schedule, incumbent, slots, INTERVAL, PATIENCE, STARTUP_S)
        curves.simulation = simulation
        simulation.run()
        found[kind] = (incumbent.loss / lowest - 1, simulation.steps)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--slots", type=int, default=4)
    args = parser.parse_args()
    jobs = [
        (family, seed, args.trials, args.slots)
        for family in FAMILIES
        for seed in range(args.repeats)
    ]
    with ProcessPoolExecutor(2) as pool:
        results = list(pool.map(repeat, jobs))
    print(
        f"{args.trials} trials on {args.slots} slots, {args.repeats} repeats: mean regret (steps)"
    )
    print(f"{'':14}" + "".join(f"{kind:>18}" for kind in SEARCHERS))
    for family in (*FAMILIES, "all"):
        rows = [r for job, r in zip(jobs, results, strict=True) if family in (job[0], "all")]
        cells = []
        for kind in SEARCHERS:
            regret = statistics.fmean(row[kind][0] for row in rows)
            steps = statistics.fmean(row[kind][1] for row in rows)
            cells.append(f"{f'{regret:.2%} ({steps / 1000:.0f}k)':>18}")
        print(f"{family:14}" + "".join(cells), flush=True)


if __name__ == "__main__":
    main()
