"""How fast a CPU core computes the encoder's attention by each of its ways.

    python benchmarks/attention.py                      # 2,049 tokens, 8 heads of 64
    python benchmarks/attention.py --heads 16 --width 128    # SE-600M's

GFLOP/s of one core, the best of so many rounds in turn, and the error relative to float64. Scores
far apart are those to whose largest no bound comes near, which costs one product more by oneDNN.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from sesttune.model.attention import attend_by_onednn
from sesttune.model.frozen_linear import freeze, onednn_multiplies

Way = Callable[[Tensor, Tensor, Tensor], Tensor]
FAR = 20.0
"""Times which queries have scores far apart."""


def by_pytorch(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, scale=1.0).transpose(1, 2).flatten(2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=2_049, help="default: %(default)s")
    parser.add_argument("--heads", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--width", type=int, default=64, help="of a head; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, one core")
    made = torch.randn(3, 2, args.heads, args.tokens, args.width)
    made[0] *= args.width**-0.5
    for dtype in (torch.float32, torch.bfloat16):
        of_product = product_rate(args.tokens, args.heads * args.width, dtype, args.rounds)
        print(f"{name(dtype) + ', a linear layer':<46}{of_product:5.0f} GFLOP/s")
        for what, far in (("near each other", 1.0), ("far apart", FAR)):
            q, k, v = (made * torch.tensor([far, 1, 1]).view(3, 1, 1, 1, 1)).to(dtype)
            rate_ways(f"{name(dtype)}, scores {what}", (q, k, v), args.rounds)


def rate_ways(what: str, qkv: tuple[Tensor, Tensor, Tensor], rounds: int) -> None:
    q, k, v = (x.double() for x in qkv)
    expected = ((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2)
    ways: dict[str, Way] = {"PyTorch": by_pytorch}
    if onednn_multiplies(qkv[0].dtype):
        ways["oneDNN"] = attend_by_onednn
    took = dict.fromkeys(ways, float("inf"))
    errors = dict[str, float]()
    with torch.inference_mode():
        for _ in range(rounds + 1):  # the first warms up
            for way, attend in ways.items():
                begun = time.perf_counter()
                found = attend(*qkv)
                took[way] = min(took[way], time.perf_counter() - begun)
                errors[way] = float((found - expected).norm() / expected.norm())
    work = 4 * q.numel() * q.shape[2] / 1e9
    for way in ways:
        rate = work / took[way]
        print(f"{what + ', ' + way:<46}{rate:5.0f} GFLOP/s   error {errors[way]:.1e}", flush=True)


def product_rate(tokens: int, width: int, dtype: torch.dtype, rounds: int) -> float:
    layer = freeze(torch.randn(width, width), torch.zeros(width), dtype)
    x, best = torch.randn(tokens, width).to(dtype), float("inf")
    with torch.inference_mode():
        for _ in range(4 * rounds):
            begun = time.perf_counter()
            layer(x)
            best = min(best, time.perf_counter() - begun)
    return 2 * tokens * width**2 / best / 1e9


def name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


if __name__ == "__main__":
    main()
