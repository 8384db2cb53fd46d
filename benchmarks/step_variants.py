"""What a step costs on a GPU, computed in several ways: which of them is worth its complexity.

    python benchmarks/step_variants.py                 # the default sizes; needs a GPU
    python benchmarks/step_variants.py --only bf16     # variants whose name has this in it

A loop without Lightning and without data, so what `train_step.py` takes more is theirs. For each
variant:

- steps/s, the median of `--rounds` blocks of `--steps`;
- host: milliseconds until a step is queued (where that is 1,000 / steps/s, only fewer
  launches help);
- device: milliseconds the GPU computes in a step, and the number of kernels it starts;
- TFLOP/s, peak memory, seconds until the first step (compiling, capturing);
- error: largest relative difference of a gradient to that of eager float32, without dropout.

`genes whole`: the loss's products over all genes at once, not in pieces; `loss in float32`: not in
TF32 (`model/losses.py`). A variant that fails says why, and the next one runs.
"""

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sesttune.model import losses
from sesttune.model.losses import energy_distance
from sesttune.model.st_head import HeadConfig, STHead

VARIANTS: dict[str, frozenset[str]] = {
    "fp32": frozenset(),
    "bf16": frozenset({"bf16"}),
    "bf16, genes whole": frozenset({"bf16", "whole"}),
    "bf16, loss in float32": frozenset({"bf16", "exact"}),
    "bf16, compiled head": frozenset({"bf16", "compile"}),
    "bf16, captured": frozenset({"bf16", "capture"}),
    "bf16, captured, loss in float32": frozenset({"bf16", "capture", "exact"}),
    "bf16, compiled head, captured": frozenset({"bf16", "compile", "capture"}),
}
EMBED_DIM, PERT_DIM = 512, 5_120
PIECES, TF32_SUFFICES = losses.PIECES, losses._tf32_suffices


@dataclass(frozen=True)
class Sizes:
    """Of a batch and of the head."""

    sets: int
    cells: int
    genes: int
    width: int


@dataclass(frozen=True)
class Measured:
    """Of one variant; times in milliseconds of a step unless named otherwise."""

    steps_per_s: float
    host_ms: float
    device_ms: float
    kernels: int
    peak_gib: float
    first_s: float
    error: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--sets", type=int, default=16, help="default: %(default)s")
    parser.add_argument("--cells", type=int, default=128, help="of a set: %(default)s")
    parser.add_argument("--genes", type=int, default=18_080, help="default: %(default)s")
    parser.add_argument("--hidden-dim", type=int, default=672, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=50, help="a block: %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--only", default="", help="variants with this in their name")
    args = parser.parse_args()
    device = torch.device(args.device)
    sizes = Sizes(args.sets, args.cells, args.genes, args.hidden_dim)
    where = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{where}, torch {torch.__version__}, {sizes}")
    heads = ("steps/s", "host", "device", "kernels", "TFLOP/s", "GiB", "first s", "error")
    print(f"{'':<46}" + "".join(f"{head:>9}" for head in heads))
    expected = gradient(sizes, device, frozenset())
    for name, options in VARIANTS.items():
        if args.only not in name:
            continue
        if device.type == "cpu" and "capture" in options:
            print(f"{name:<46} needs a GPU")
            continue
        try:
            found = measure(sizes, device, options, expected, args.steps, args.rounds)
        except Exception as error:  # a variant that this machine cannot run is a result too
            print(f"{name:<46} failed: {type(error).__name__}: {str(error).splitlines()[0][:120]}")
            continue
        tflop = found.steps_per_s * flop_per_step(sizes) / 1e12
        print(
            f"{name:<46}{found.steps_per_s:9.1f}{found.host_ms:9.2f}{found.device_ms:9.2f}"
            f"{found.kernels:9d}{tflop:9.3g}{found.peak_gib:9.2f}{found.first_s:9.1f}"
            f"{found.error:9.1e}",
            flush=True,
        )


def measure(
    sizes: Sizes,
    device: torch.device,
    options: frozenset[str],
    expected: Tensor,
    steps: int,
    rounds: int,
) -> Measured:
    """Time `rounds` blocks of `steps`, after the error and after a warm-up."""
    error = (gradient(sizes, device, options) - expected).norm() / expected.norm()
    started = time.perf_counter()
    step, _ = make_step(sizes, device, options, dropout=0.1)
    step()
    wait(device)
    first_s = time.perf_counter() - started
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    whole, queued = [], []
    for _ in range(rounds + 1):  # the first block warms up
        start = time.perf_counter()
        for _ in range(steps):
            step()
        queued.append((time.perf_counter() - start) / steps)
        wait(device)
        whole.append((time.perf_counter() - start) / steps)
    device_ms, kernels = traced(step, device)
    peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0
    median = statistics.median
    return Measured(
        1 / median(whole[1:]),
        1e3 * median(queued[1:]),
        device_ms,
        kernels,
        peak,
        first_s,
        float(error),
    )


def make_step(
    sizes: Sizes, device: torch.device, options: frozenset[str], dropout: float
) -> tuple[Callable[[], None], STHead]:
    """One optimizer step on a fixed batch, as a call; and the head it trains."""
    torch.manual_seed(0)
    losses._tf32_suffices = (lambda _: False) if "exact" in options else TF32_SUFFICES
    losses.PIECES = (1,) if "whole" in options else PIECES
    config = HeadConfig(EMBED_DIM, PERT_DIM, sizes.genes, sizes.width, dropout=dropout)
    head = STHead(config).to(device)
    control = torch.randn(sizes.sets, sizes.cells, EMBED_DIM, device=device)
    feature = torch.randn(sizes.sets, PERT_DIM, device=device)
    target = torch.rand(sizes.sets, sizes.cells, sizes.genes, device=device)
    target *= torch.rand_like(target) < 1 / 6
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-4, weight_decay=0, fused=True)
    predict = torch.compile(head) if "compile" in options else head

    def differentiate() -> None:
        bf16 = torch.autocast(device.type, torch.bfloat16, enabled="bf16" in options)
        with bf16:
            predicted = predict(control, feature)
            loss = energy_distance(predicted, target).mean()
        loss.backward()

    run = capture(differentiate, head) if "capture" in options else differentiate

    def step() -> None:
        if "capture" not in options:  # a replay writes the gradients, it does not add to them
            optimizer.zero_grad()
        run()
        optimizer.step()

    return step, head


def capture(differentiate: Callable[[], None], head: STHead) -> Callable[[], None]:
    """The same as one CUDA graph: one launch for all kernels of a step."""
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(3):  # what allocates, compiles or chooses at first must not be captured
            head.zero_grad()
            differentiate()
    torch.cuda.current_stream().wait_stream(beside)
    head.zero_grad()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        differentiate()
    return graph.replay


def gradient(sizes: Sizes, device: torch.device, options: frozenset[str]) -> Tensor:
    """Of all parameters at the first step, without dropout, on the host."""
    step, head = make_step(sizes, device, options, dropout=0.0)
    step()
    parts = [p.grad.flatten().double().cpu() for p in head.parameters() if p.grad is not None]
    return torch.cat(parts)


def traced(step: Callable[[], None], device: torch.device) -> tuple[float, int]:
    """(milliseconds of the device, kernels) of a step; zeros on a CPU."""
    if device.type != "cuda":
        return 0.0, 0
    with contextlib.redirect_stdout(None), torch.profiler.profile() as profile:
        step()
        wait(device)
    gpu = torch.autograd.DeviceType.CUDA
    # What is annotated, as the optimizer's step is, would count its kernels again.
    kernels = [e for e in profile.events() if e.device_type == gpu and not e.is_user_annotation]
    return sum(e.device_time for e in kernels) / 1e3, len(kernels)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def flop_per_step(sizes: Sizes) -> float:
    """Of the head and the energy distance, forward and backward (2 a multiply-add)."""
    width, cells = sizes.width, sizes.sets * sizes.cells
    inputs = EMBED_DIM * width + 3 * width**2
    layers = 4 * (16 * width**2 + 2 * sizes.cells * width)
    outputs = 3 * width**2 + width * sizes.genes
    feature = PERT_DIM * width + 3 * width**2
    head = 2 * (cells * (inputs + layers + outputs) + sizes.sets * feature)
    # The loss has three products, its gradient two.
    return 3 * head + 5 * 2 * cells * sizes.cells * sizes.genes


if __name__ == "__main__":
    main()
