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


def test_the_training_benchmark_runs_and_compares() -> None:
    command = [sys.executable, ROOT / "benchmarks" / "train_step.py", "--rounds", "1"]
    more = ["--cells", "600", "--genes", "400", "--expressed", "50", "--hidden-dim", "32"]
    more += ["--set-len", "8", "--batch-size", "2", "--steps", "4"]
    done = subprocess.run([*command, *more], capture_output=True, text=True, check=True)
    rows = {line.partition("  ")[0] for line in done.stdout.splitlines() if "rows/s" in line}
    assert {"store, 1 at once", "HDF5, row by row"} <= rows
    figures = dict(line.rsplit(maxsplit=1) for line in done.stdout.splitlines() if line[:2] == "  ")
    named = {name.strip(): float(value) for name, value in figures.items()}
    assert named["steps_per_s"] > 0
    assert named["tflop_per_s"] > 0
    assert 0 <= named["waiting_for_data_pct"] <= 100
    assert "ours / baseline, steps/s:" in done.stdout


def test_the_benchmark_of_the_parts_names_every_variant() -> None:
    command = [sys.executable, ROOT / "benchmarks" / "step_parts.py", "--rounds", "1"]
    more = ["--genes", "100", "--hidden-dim", "16"]
    done = subprocess.run([*command, *more], capture_output=True, text=True, check=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("loss")]
    assert len(lines) == 4
    for line in lines:
        *parts, total = (float(word) for word in line.split()[-5:])
        assert 0 < total < 2 * sum(parts)
