import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


def test_the_encoder_benchmark_runs_and_prints_its_rates() -> None:
    command = [sys.executable, ROOT / "benchmarks" / "encode.py", "--size", "tiny"]
    more = ["--cells", "4", "--rounds", "1", "--device", "cpu", "--precision", "fp32", "bf16"]
    done = subprocess.run([*command, *more], capture_output=True, text=True, check=True)
    assert "tokeniser, one core:" in done.stdout
    for precision in ("fp32", "bf16"):
        (line,) = (li for li in done.stdout.splitlines() if li.startswith(f"sesttune {precision}"))
        assert line.endswith(f"cpu, {precision}, 2 cells a pass")
        assert float(line.split()[2]) > 0


def test_the_attention_benchmark_rates_each_way_and_says_how_exact_it_is() -> None:
    command = [sys.executable, ROOT / "benchmarks" / "attention.py", "--rounds", "1"]
    more = ["--tokens", "300", "--heads", "2", "--width", "16"]
    done = subprocess.run([*command, *more], capture_output=True, text=True, check=True)
    rows = [line for line in done.stdout.splitlines() if "error" in line]
    assert len(rows) >= 4
    for row in rows:
        assert float(row.split(" GFLOP/s")[0].split()[-1]) > 0
        assert float(row.split()[-1]) < (1e-5 if row.startswith("float32") else 1e-2)


def test_the_benchmark_of_ways_to_compute_a_step_says_what_each_costs_and_errs() -> None:
    command = [sys.executable, ROOT / "benchmarks" / "step_variants.py", "--device", "cpu"]
    more = ["--sets", "2", "--cells", "8", "--genes", "60", "--hidden-dim", "16"]
    more += ["--steps", "2", "--rounds", "1"]
    done = subprocess.run([*command, *more], capture_output=True, text=True, check=True)
    lines = {line[:46].strip(): line[46:].split() for line in done.stdout.splitlines()[2:]}
    exact, rounded = float(lines["fp32"][-1]), float(lines["bf16"][-1])
    assert exact < 1e-5 < rounded < 0.1
    assert float(lines["bf16"][0]) > 0
    assert lines["bf16, captured"] == ["needs", "a", "GPU"]


def test_the_training_benchmark_runs_and_compares() -> None:
    command = [sys.executable, ROOT / "benchmarks" / "train_step.py", "--rounds", "1"]
    more = ["--cells", "600", "--genes", "400", "--expressed", "50", "--hidden-dim", "32"]
    more += ["--set-len", "8", "--batch-size", "2", "--steps", "4", "--precision", "32", "bf16"]
    done = subprocess.run([*command, *more], capture_output=True, text=True, check=True)
    table = [line.split("  ") for line in done.stdout.splitlines()[1:]]
    rows = {cells[0]: [c.strip() for c in cells[1:] if c.strip()] for cells in table}
    names = rows[""]
    for trained in ("sesttune 32 none", "sesttune bf16 none"):
        named = dict(zip(names, map(float, rows[trained]), strict=True))
        assert named["steps/s"] > 0
        assert named["TFLOP/s"] > 0
        assert 0 <= named["waiting, %"] <= 100
    assert rows["plain loop"][names.index("TFLOP/s")] == "-"
    assert "sesttune bf16 none / plain loop, steps/s: " in done.stdout


def test_the_benchmark_of_dense_rows_counts_each_way_to_read_them() -> None:
    command = [sys.executable, ROOT / "benchmarks" / "dense_rows.py", "--cells", "600"]
    more = ["--genes", "400", "--expressed", "50", "--set-len", "8", "--batch-size", "2"]
    done = subprocess.run([*command, *more], capture_output=True, text=True, check=True)
    lines = [line.rpartition("  ") for line in done.stdout.splitlines()[1:]]
    rates = {name.strip(): int(rate.split()[0].replace(",", "")) for name, _, rate in lines}
    assert {"HDF5, row by row", "store, 1 thread"} <= set(rates)
    assert min(rates.values()) > 0


def test_the_benchmark_of_preparing_times_each_part() -> None:
    command = [sys.executable, ROOT / "benchmarks" / "prepare.py", "--cells", "600", "--gzip"]
    more = ["--genes", "400", "--expressed", "50"]
    done = subprocess.run([*command, *more], capture_output=True, text=True, check=True)
    built, planned, encoded = done.stdout.splitlines()[1:]
    assert planned.startswith("planning the shards")
    for line, unit in ((built, "cells/s"), (encoded, "controls/s")):
        assert line.endswith(unit)
        assert float(line.split()[-2].replace(",", "")) > 0


def test_the_benchmark_of_the_parts_names_every_variant() -> None:
    command = [sys.executable, ROOT / "benchmarks" / "step_parts.py", "--rounds", "1"]
    more = ["--genes", "100", "--hidden-dim", "16"]
    done = subprocess.run([*command, *more], capture_output=True, text=True, check=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("loss")]
    assert len(lines) == 4
    for line in lines:
        *parts, total = (float(word) for word in line.split()[-5:])
        assert 0 < total < 2 * sum(parts)


def test_the_schedule_is_several_times_cheaper_than_the_grid_and_than_rays_asha(
    tmp_path: Path,
) -> None:
    command = [sys.executable, ROOT / "benchmarks" / "schedule.py", "--repeats", "3"]
    more = ["--families", "smooth", "crossing", "--out", tmp_path]
    done = subprocess.run([*command, *more], capture_output=True, text=True, check=True)
    assert "GPU-hours, times ours" in done.stdout
    assert (tmp_path / "schedule.png").stat().st_size > 10_000
    rows = json.loads((tmp_path / "schedule.json").read_text())
    for family in ("smooth", "crossing"):
        by = {row["policy"]: row for row in rows if row["family"] == family}
        steps, gpu_s, _ = by["ours"]["near"]
        assert max(steps, gpu_s) < 1 / 6, "to within 1 % of the grid's best, of the grid's cost"
        assert by["ours"]["worst_regret"] < 0.05
        assert 2 * by["ours, single seeds"]["whole"][1] < by["Ray ASHA"]["whole"][1]


def test_the_driver_at_scale_is_simulated_and_counted() -> None:
    command = [sys.executable, ROOT / "benchmarks" / "schedule_scale.py"]
    more = ["--trials", "300", "--slots", "32"]
    done = subprocess.run([*command, *more], capture_output=True, text=True, check=True)
    assert "300 trials on 32 slots" in done.stdout
    assert done.stdout.count("ms a report") == 2


def test_the_benchmark_of_searchers_compares_them_all() -> None:
    command = [sys.executable, ROOT / "benchmarks" / "searchers.py", "--repeats", "1"]
    done = subprocess.run(
        [*command, "--trials", "6", "--slots", "2"], capture_output=True, text=True, check=True
    )
    names = {line.split()[0] for line in done.stdout.splitlines()[2:]}
    assert names == {"fitted", "smooth", "noisy", "crossing", "divergent", "overfitting", "all"}
    assert "gp" in done.stdout.splitlines()[1].split()


def test_the_benchmark_of_bytes_counts_each_part_of_a_step() -> None:
    command = [sys.executable, "-W", "ignore", ROOT / "benchmarks" / "step_bytes.py"]
    more = ["--genes", "4000", "--expressed", "3000", "--sets", "4", "--cells", "64"]
    done = subprocess.run([*command, *more], capture_output=True, text=True, check=True)
    found = {line[:34].strip(): float(line[34:].split()[0]) for line in done.stdout.splitlines()}
    parameters = 48_931_616 - 673 * (18_080 - 4_000)
    assert found["optimizer"] == pytest.approx(28e-9 * parameters, abs=0.02)
    assert 0 < found["batch, store with its zeros"] < found["batch, store compressed"]
    of_loss = 5 * 2 * 4 * 64 * 64 * 4_000 / 1e9
    assert found["loss and its gradient in float32"] == pytest.approx(of_loss, abs=0.006)
