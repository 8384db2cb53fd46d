"""`sesttune compare` on run folders that the program's own functions wrote."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers.run_folder import write_curve, write_sweep

from sesttune.command import run as run_command
from sesttune.compare import main

LR, BATCH = "training.lr", "training.batch_size"


def write(folder: Path, high: float, losses: Sequence[float], *settings: str, **more: Any) -> None:
    parameters = {
        LR: {"type": "loguniform", "low": 1e-5, "high": high},
        BATCH: {"type": "choice", "values": [8, 16]},
    }
    space = {"searcher": "gp", "num_trials": 2, "parameters": parameters, "constraints": []}
    write_sweep(folder, space | more, *settings)
    write_curve(folder, "001", {LR: 1e-4, BATCH: 8}, losses)
    write_curve(folder, "002", {LR: 2e-4, BATCH: 8}, [9.0, 8.0])
    (folder / "result.json").write_text("{}")


def compare(outputs: Path, capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, list[str]], str]:
    """The table's rows by their name, and the last line."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "200")  # of a narrower terminal, cells are broken
        assert run_command(main, ["first", "second", "--output-dir", str(outputs)]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    rows = [re.split(r" {2,}", line.strip()) for line in lines]
    return {row[0]: row[1:] for row in rows}, lines[-1]


def test_what_differs_is_told_to_the_ranges_of_the_search(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "first", 1e-3, [9.0, 3.0, 2.5], "training.patience=3")
    write(tmp_path / "second", 5e-4, [9.0, 3.0, 2.0], constraints=["training.lr < 1"])
    (tmp_path / "first" / "spent.json").write_text(json.dumps({"wall_s": 90.0, "gpu_s": 7200.0}))
    rows, last = compare(tmp_path, capsys)
    assert rows["best val_loss"] == ["2.5 at step 200", "2 at step 200"]
    assert rows["over seeds"] == ["a single training"] * 2
    assert rows["steps trained"] == ["300", "300"]
    assert rows["GPU- or slot-hours"] == ["2", "-"]
    assert rows["training.patience"] == ["3", "10"]
    assert rows["searched training.lr"] == [
        "1.0e-05 to 1.0e-03, log scale",
        "1.0e-05 to 5.0e-04, log scale",
    ]
    assert rows["only where"] == ["-", "training.lr < 1"]
    assert not {"searched training.batch_size", "searcher", "name", "output_dir"} & set(rows)
    assert last == "second/001 leads first/001, but a single training may be luck"


def test_a_winner_some_of_whose_seeds_diverged_comes_second(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, again in (("first", [9.0]), ("second", [9.0, 2.9])):
        write(tmp_path / name, 1e-3, [9.0, 2.0] if name == "first" else [9.0, 3.0])
        params = {LR: 1e-4, BATCH: 8, "training.replicate": 1}
        reason = "nan" if name == "first" else "max_steps"
        repeat = {"repeats": "001"}
        write_curve(tmp_path / name, "003", params, again, reason, schedule=repeat)
    last = compare(tmp_path, capsys)[1]
    assert last.startswith("second/")
    assert "diverged with 1 of 2 seeds" in last
