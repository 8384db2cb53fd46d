"""The last lines of a sweep, from run folders that the program's own functions wrote."""

import json
from pathlib import Path

from helpers.run_folder import write_curve, write_sweep

from sesttune.result import closing_lines
from sesttune.run_setup import open_run
from sesttune.search.outcome import read_outcome
from sesttune.training.records import note_facts, trial_folder

LR = "training.lr"
SPACE = {"searcher": "gp", "num_trials": 4, "parameters": {}, "constraints": []}
SPACE["parameters"] = {LR: {"type": "loguniform", "low": 1e-5, "high": 1e-3}}


def closing(folder: Path) -> dict[str, str]:
    known = open_run(str(folder.parent), folder.name)
    return dict(closing_lines(known, read_outcome(folder, known.config)))


def test_failures_start_up_memory_and_the_next_command_are_told(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "a night", SPACE)
    for number, startup in enumerate((2.0, 3.0, 30.0), 1):
        write_curve(folder, f"00{number}", {LR: 1e-4 * number}, [9.0, 4.0], startup_s=startup)
        note_facts(trial_folder(folder, f"00{number}"), data="on the GPU")
    note_facts(trial_folder(folder, "002"), micro_batch=2)
    write_curve(folder, "004", {LR: 9e-4}, [9.0], "error: no, not again")
    told = closing(folder)
    assert told["failed"].startswith("1 of 4 trials, the first with error: no; ")
    assert "--resume 'a night'" in told["failed"]
    assert told["failed"].endswith(" tries them again")
    assert told["trials"] == "first step after 3.0 s (median), on the GPU"
    assert told["memory"].startswith("short in 1 trials, ")
    assert told["promote"].endswith(f"promote --sweep 'a night' --output-dir {tmp_path}")
    assert told["browse"].endswith(f"ui output_dir={tmp_path}")
    assert not {"plan", "report", "finals"} & set(told)


def test_what_a_sweep_took_is_held_against_its_plan(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "night", SPACE)
    write_curve(folder, "001", {LR: 1e-4}, [9.0, 4.0, 3.0])
    expected = {"trainings": 1, "steps": 400, "gpu_s": 60.0, "wall_s": 120.0}
    worst = {**expected, "steps": 900, "wall_s": 3_600.0}
    plan = {"trials": 1, "rungs": [], "expected": expected, "worst": worst}
    (folder / "plan.json").write_text(json.dumps({**plan, "trial_gb": 1.0, "disk_gb": 2.0}))
    assert "plan" not in closing(folder)  # it has not ended
    (folder / "spent.json").write_text(json.dumps({"wall_s": 300.0, "gpu_s": 300.0}))
    assert closing(folder)["plan"] == (
        "took 0:05:00 and 200 steps; planned were 0:02:00 (2.50 x) and 400, "
        "at worst 1:00:00 and 900"
    )
