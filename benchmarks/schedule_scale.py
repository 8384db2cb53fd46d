"""What the driver's own work costs at a size nobody has.

    python benchmarks/schedule_scale.py [--trials 10000] [--slots 512]

First the schedule in virtual time, with the memory it holds, then the ledger, with its files.
"""

import argparse
import statistics
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import Any

from schedule import STARTUP_S
from schedule_curves import draw
from schedule_policies import INTERVAL, PATIENCE, ours

from sesttune.config.load import load_config
from sesttune.search.ledger import TrialLedger
from sesttune.search.simulator import Simulation
from sesttune.search.space_file import parse_space


def scale(trials: int, slots: int) -> None:
    """Cost of the driver's own work at a size nobody has."""
    law = draw("fitted", 0)
    settings = [f"sweep.num_trials={trials}", "sweep.searcher=random", "sweep.seeds=1"]
    scheduler, curves = ours(0, *settings, rates="all")
    took: list[float] = []
    report = scheduler.report

    def timed(*args: Any) -> Any:
        start = time.perf_counter()
        answer = report(*args)
        took.append(time.perf_counter() - start)
        if len(took) % 50_000 == 0:
            peak = tracemalloc.get_traced_memory()[0] / 2**20
            print(f"  {len(scheduler.trials):6,} trials, {len(took):8,} reports: {peak:6.1f} MiB")
        return answer

    scheduler.report = timed  # type: ignore[method-assign]
    simulation = Simulation(scheduler, law, slots, INTERVAL, PATIENCE, STARTUP_S, None, False)
    curves.simulation = simulation
    tracemalloc.start()
    started = time.perf_counter()
    simulation.run()
    took.sort()
    print(
        f"{len(scheduler.trials):,} trials on {slots} slots, {len(took):,} reports in "
        f"{time.perf_counter() - started:.0f} s: {1e3 * statistics.fmean(took):.3f} ms a report, "
        f"99.9 % under {1e3 * took[len(took) * 999 // 1000]:.2f} ms, the slowest "
        f"{1e3 * took[-1]:.1f} ms"
    )


def scale_on_disk(trials: int) -> None:
    """The same with the ledger, which keeps every trial's folder and counts the limits."""
    content = {
        "searcher": "random",
        "num_trials": trials,
        "parameters": {"training.lr": {"type": "loguniform", "low": 1e-5, "high": 1e-2}},
    }
    handed_out, took = [], []
    with tempfile.TemporaryDirectory() as folder:
        ledger = TrialLedger(Path(folder), load_config(), parse_space(content, "benchmark"))
        for _ in range(trials):
            started = time.perf_counter()
            job = ledger.next()
            handed_out.append(time.perf_counter() - started)
            assert job is not None, "every point of a real range is another"
            if len(handed_out) % 50 == 0:
                for step in range(0, 5_500, INTERVAL):
                    started = time.perf_counter()
                    ledger.report(job.id, step, 1 / (1 + step))
                    took.append(time.perf_counter() - started)
    print(
        f"with its files: {1e3 * statistics.fmean(handed_out):.2f} ms to hand a trial out, "
        f"{1e3 * statistics.fmean(took):.2f} ms a report, the slowest {1e3 * max(took):.1f} ms"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--slots", type=int, default=512)
    args = parser.parse_args()
    scale(args.trials, args.slots)
    scale_on_disk(args.trials)


if __name__ == "__main__":
    main()
