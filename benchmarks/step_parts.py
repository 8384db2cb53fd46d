"""What each part of a step costs on a CPU, with and without what makes it cheaper.

    python benchmarks/step_parts.py            # the default sizes; minutes
    python benchmarks/step_parts.py --compile  # also torch.compile of the head

Each variant runs in a process of its own (the C library's settings cannot be taken back), in turn
for `--rounds`; printed are medians of seconds a step.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time

import torch
from torch import Tensor

from sesttune.model.losses import distances, distances_within, energy_distance
from sesttune.model.st_head import HeadConfig, STHead
from sesttune.system.host_memory import keep_freed_memory

VARIANTS = {
    "loss differentiated, memory given back": (),
    "loss differentiated, memory kept": ("kept",),
    "loss in one pass, memory given back": ("one pass",),
    "loss in one pass, memory kept": ("one pass", "kept"),
}
PARTS = ("forward", "loss", "backward", "optimizer")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--genes", type=int, default=18_080, help="default: %(default)s")
    parser.add_argument("--hidden-dim", type=int, default=672, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--compile", action="store_true", help="one more variant")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker is not None:
        print(json.dumps(measure(json.loads(args.worker), args.genes, args.hidden_dim)))
        return
    variants = dict(VARIANTS)
    if args.compile:
        variants["all that, and torch.compile"] = ("one pass", "kept", "compile")
    found: dict[str, list[list[float]]] = {name: [] for name in variants}
    for _ in range(args.rounds):
        for name, options in variants.items():
            command = [sys.executable, "-W", "ignore", __file__, "--worker", json.dumps(options)]
            sizes = ["--genes", str(args.genes), "--hidden-dim", str(args.hidden_dim)]
            done = subprocess.run([*command, *sizes], stdout=subprocess.PIPE, check=True)
            found[name].append(json.loads(done.stdout))
    print(f"{'seconds a step':<42}" + "".join(f"{part:>11}" for part in (*PARTS, "all")))
    for name, rounds in found.items():
        medians = [statistics.median(part) for part in zip(*rounds, strict=True)]
        total = statistics.median(sum(parts) for parts in rounds)
        print(f"{name:<42}" + "".join(f"{seconds:11.3f}" for seconds in (*medians, total)))


def measure(options: list[str], genes: int, width: int, steps: int = 5) -> list[float]:
    """Seconds of each part, medians over the steps after the first two."""
    if "kept" in options:
        keep_freed_memory()
    loss_of = energy_distance if "one pass" in options else differentiated
    torch.manual_seed(0)
    head = STHead(HeadConfig(512, 5_120, genes, width))
    if "compile" in options:
        head.compile()
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-4, weight_decay=0, fused=True)
    control, feature = torch.randn(16, 128, 512), torch.randn(16, 5_120)
    target = torch.rand(16, 128, genes) * (torch.rand(16, 128, genes) < 1 / 6)
    taken = []
    for _ in range(2 + steps):
        marks = [time.perf_counter()]
        predicted = head(control, feature)
        marks.append(time.perf_counter())
        loss = loss_of(predicted, target).mean()
        marks.append(time.perf_counter())
        loss.backward()
        marks.append(time.perf_counter())
        optimizer.step()
        optimizer.zero_grad()
        marks.append(time.perf_counter())
        taken.append([after - before for before, after in itertools.pairwise(marks)])
    return [statistics.median(part) for part in zip(*taken[2:], strict=True)]


def differentiated(x: Tensor, y: Tensor) -> Tensor:
    """The energy distance, its gradient left to automatic differentiation."""
    with torch.no_grad():
        within_real = distances_within(y).mean((-2, -1))
    across, within = distances(x, y).mean((-2, -1)), distances_within(x).mean((-2, -1))
    return across - within / 2 - within_real / 2


if __name__ == "__main__":
    main()
