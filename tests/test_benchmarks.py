import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_encoder_benchmark_runs_and_prints_its_rates() -> None:
    command = [sys.executable, ROOT / "benchmarks" / "encode.py", "--size", "tiny"]
    more = ["--cells", "4", "--rounds", "1", "--device", "cpu"]
    done = subprocess.run([*command, *more], capture_output=True, text=True, check=True)
    assert "tokeniser, one core:" in done.stdout
    assert "fp32, 4 cells a pass" in done.stdout
    lines = [line.split() for line in done.stdout.splitlines()]
    (rate,) = (words[1] for words in lines if words[0] == "sesttune" and words[-1] == "cells/s")
    assert float(rate) > 0
