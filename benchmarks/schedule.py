"""What a sweep's schedule is worth: policies compared in virtual time on the same seeds.

    python benchmarks/schedule.py [--repeats 50] [--gpus 8] [--out FOLDER]

Every policy has the same 84 candidates, 3 batch sizes × 4 budgets × 7 learning rates. Cost is what
had been spent until the loss of the incumbent (the trial with lowest validation so far, measured
without its noise) was and stayed within 1 % of what the full grid ends with: optimizer steps,
GPU-hours of the GPUs that were busy, and wall-clock. Regret is how far above that a policy is.
"""

import argparse
import json
import math
import statistics
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from schedule_curves import FAMILIES, draw
from schedule_policies import INTERVAL, PATIENCE, others, ours

from sesttune.search.landscape import PowerLaw
from sesttune.search.simulator import Event, SimulatedCurves, Simulation

NEAR = 0.01
STARTUP_S = 3.0
OURS = "ours"
ABLATIONS: dict[str, tuple[str, ...]] = {
    OURS: (),
    "ours, stopped is stopped": ("sweep.continue_stopped=false",),
    "ours, one finalist": ("sweep.finalists=1",),
    "ours, single seeds": ("sweep.seeds=1",),
    "ours, no training shared": ("training.lr_schedule=cosine",),
    "ours, best third": ("sweep.reduction_factor=3",),
    "ours, best quarter": ("sweep.reduction_factor=4",),
}
GP = "ours, 16 points by GP"


class Incumbent:
    """Curves whose losses are watched: what a person would take as the best so far."""

    def __init__(self, law: PowerLaw) -> None:
        self._law, self._clean = law, replace(law, noise=0.0)
        self._shown, self.loss = math.inf, math.inf

    def val_loss(self, point: Mapping[str, Any], step: int) -> float:
        shown = self._law.val_loss(point, step)
        if shown < self._shown:
            self._shown, self.loss = shown, self._clean.val_loss(point, step)
        return shown

    def step_s(self, point: Mapping[str, Any]) -> float:
        return self._law.step_s(point)


class Cost(NamedTuple):
    steps: float
    gpu_s: float
    wall_s: float

    def of(self, whole: "Cost") -> "Cost":
        """As shares of another."""
        return Cost(*(mine / theirs for mine, theirs in zip(self, whole, strict=True)))


@dataclass(frozen=True)
class Trace:
    """Each change of the incumbent with the cost until then, and the whole sweep's cost."""

    points: tuple[tuple[Cost, float], ...]
    all: Cost

    def cost_to(self, loss: float) -> Cost:
        """What it took until the incumbent stays at `loss` or below; inf where it never does."""
        reached = None
        for cost, found in self.points:
            if found > loss:
                reached = None
            elif reached is None:
                reached = cost
        return reached or Cost(math.inf, math.inf, math.inf)

    @property
    def loss(self) -> float:
        """Of the incumbent at the end."""
        return self.points[-1][1]

    def loss_at(self, gpu_s: float) -> float:
        known = [loss for cost, loss in self.points if cost.gpu_s <= gpu_s]
        return known[-1] if known else math.inf


def run(make: Callable[[], tuple[Any, SimulatedCurves | None]], law: PowerLaw, gpus: int) -> Trace:
    """One sweep from its first trial to its last."""
    incumbent = Incumbent(law)
    points: list[tuple[Cost, float]] = []

    def watch(event: Event) -> None:
        if not points or points[-1][1] != incumbent.loss:
            cost = Cost(event.steps, event.slot_s, event.time_s)
            points.append((cost, incumbent.loss))

    scheduler, curves = make()
    done = Simulation(scheduler, incumbent, gpus, INTERVAL, PATIENCE, STARTUP_S, watch)
    if curves is not None:
        curves.simulation = done
    done.run()
    return Trace(tuple(points), Cost(done.steps, done.slot_s, done.time_s))


def repeat(job: tuple[str, int, int]) -> dict[str, Trace]:
    """All policies on one landscape."""
    family, seed, gpus = job
    law = draw(family, seed)
    traces = {
        name: run(lambda make=make: (make(seed), None), law, gpus)
        for name, make in others().items()
    }
    for name, settings in ABLATIONS.items():
        traces[name] = run(lambda o=settings: ours(seed, *o), law, gpus)
    traces[GP] = run(lambda: ours(seed, "sweep.num_trials=16", rates="all"), law, gpus)
    return traces


def table(families: dict[str, list[dict[str, Trace]]]) -> list[dict[str, Any]]:
    """A row per family and policy, of medians over the repeats; costs as shares of the grid's."""
    median = statistics.median
    rows = []
    for family, repeats in families.items():
        for name in repeats[0]:
            near, whole, regret = [], [], []
            for traces in repeats:
                grid, trace = traces["full grid"], traces[name]
                near.append(trace.cost_to((1 + NEAR) * grid.loss).of(grid.all))
                whole.append(trace.all.of(grid.all))
                regret.append(trace.loss / grid.loss - 1)
            hours = sorted(cost.gpu_s for cost in near)
            rows.append(
                {
                    "family": family,
                    "policy": name,
                    "reached": sum(map(math.isfinite, hours)) / len(hours),
                    "near": Cost(*(median(column) for column in zip(*near, strict=True))),
                    "quartiles": [hours[len(hours) * k // 4] for k in (1, 3)],
                    "whole": Cost(*(median(column) for column in zip(*whole, strict=True))),
                    "regret": median(regret),
                    "mean_regret": statistics.fmean(regret),
                    "worst_regret": max(regret),
                }
            )
    return rows


def show(rows: list[dict[str, Any]], repeats: int) -> None:
    print(f"medians of {repeats} repeats; costs as shares of the full grid's")
    families = list(dict.fromkeys(row["family"] for row in rows))
    for family in families:
        print(
            f"\n{family:26} {'near':>5} {'steps':>6} {'GPU-h':>6} {'quartiles':>12} {'wall':>6} |"
            f"{'all steps':>10} {'GPU-h':>6} {'wall':>6} | {'regret':>6} {'mean':>6} {'worst':>6}"
        )
        for row in (row for row in rows if row["family"] == family):
            low, high = row["quartiles"]
            near, whole = row["near"], row["whole"]
            print(
                f"  {row['policy']:24} {row['reached']:5.0%} {near.steps:6.3f} {near.gpu_s:6.3f} "
                f"{low:6.3f}-{high:5.3f} {near.wall_s:6.3f} |{whole.steps:10.3f} "
                f"{whole.gpu_s:6.3f} {whole.wall_s:6.3f} | {row['regret']:6.1%} "
                f"{row['mean_regret']:6.1%} {row['worst_regret']:6.1%}"
            )
    print(
        f"\n{'GPU-hours, times ours':22}{'grid, to 1 %':>14}{'Ray ASHA, to 1 %':>18}"
        f"{'whole sweep':>13}{'without repeats':>17}{'mean regret: ours, ASHA':>25}"
    )
    for family in families:
        by = {row["policy"]: row for row in rows if row["family"] == family}
        own, single, asha = by[OURS], by["ours, single seeds"], by["Ray ASHA"]
        regrets = f"{single['mean_regret']:.1%}, {asha['mean_regret']:.1%}"
        print(
            f"  {family:20}{1 / own['near'].gpu_s:14.1f}"
            f"{asha['near'].gpu_s / own['near'].gpu_s:18.2f}"
            f"{asha['whole'].gpu_s / own['whole'].gpu_s:13.2f}"
            f"{asha['whole'].gpu_s / single['whole'].gpu_s:17.2f}{regrets:>25}"
        )


def plot(families: dict[str, list[dict[str, Trace]]], path: Path) -> None:
    """Median regret of each policy against GPU-hours, one panel a family."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [*others(), OURS]
    # Okabe and Ito's colours, which people of any colour vision tell apart.
    colours = ["#000000", "#999999", "#E69F00", "#56B4E9", "#CC79A7", "#D55E00"][: len(names)]
    if len(names) == 5:
        colours[-1] = "#D55E00"
    figure, axes = plt.subplots(2, 3, figsize=(13, 7.5), sharey=True, layout="constrained")
    shares = [10 ** (-3 + 3 * k / 60) for k in range(61)]
    for axis, (family, repeats) in zip(axes.flat, families.items(), strict=False):
        for name, colour in zip(names, colours, strict=True):
            medians = []
            for share in shares:
                at = [
                    t[name].loss_at(share * t["full grid"].all.gpu_s) / t["full grid"].loss - 1
                    for t in repeats
                ]
                medians.append(max(statistics.median(at), 1e-3))
            width = 2.5 if name == OURS else 1.3
            axis.plot(shares, medians, color=colour, linewidth=width, label=name)
        axis.axhline(NEAR, color="#999999", linestyle=":", linewidth=1)
        axis.set(xscale="log", yscale="log", title=family, ylim=(1e-3, 3))
        axis.set_xlabel("GPU-hours, as a share of the full grid's")
    for axis in axes[:, 0]:
        axis.set_ylabel("median regret (cut at 0.1 %)")
    axes.flat[0].legend(fontsize=8)
    figure.suptitle("How soon each policy's best trial is near what the full grid would find")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--out", type=Path, help="write schedule.json and schedule.png here")
    args = parser.parse_args()
    jobs = [(family, seed, args.gpus) for family in args.families for seed in range(args.repeats)]
    with ProcessPoolExecutor(args.processes) as pool:
        traces = list(pool.map(repeat, jobs))
    families: dict[str, list[dict[str, Trace]]] = {family: [] for family in args.families}
    for (family, _, _), found in zip(jobs, traces, strict=True):
        families[family].append(found)
    rows = table(families)
    show(rows, args.repeats)
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "schedule.json").write_text(json.dumps(rows, indent=1))
        plot(families, args.out / "schedule.png")


if __name__ == "__main__":
    main()
