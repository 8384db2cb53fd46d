"""The Markdown of a sweep's description, without a store."""

import re
from pathlib import Path

import yaml
from helpers.run_folder import ABOUT, write_result, write_run

from sesttune.tracking.describe import NOTES, describe_run, trial_name
from sesttune.training.records import TrialRecord


def test_what_an_error_says_neither_ends_a_cell_nor_becomes_html(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "sweep", trials=0)
    result = write_result(folder)
    result["leaderboard"][1] |= {"ended_by": "error: a | b", "parameters": "kind=<b>|&lt;"}
    note = describe_run(folder, ABOUT, result)
    [row] = [line for line in note.splitlines() if "error:" in line]
    assert len(re.findall(r"\|", row)) == 9  # as in the rows above it
    assert "error: a &#124; b&nbsp;" in row
    assert row.endswith("| kind=&lt;b>&#124;&amp;lt; |")


def test_a_name_says_no_other_number_than_the_setting(tmp_path: Path) -> None:
    params = {"training.max_steps": 1_500, "a": 40_000, "b": 999, "c": 0.05, "d": 0.0, "e": True}
    name = trial_name(TrialRecord("003", tmp_path, params))
    assert name == "003 steps=1500 a=40k b=999 c=0.05 d=0 e=True"


def test_the_space_and_the_first_notes_are_told(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "sweep", trials=0)
    settings = yaml.safe_load((folder / "sweep.yaml").read_text())
    settings["space"]["constraints"] = ["training.lr < 1"]
    settings["space"]["parameters"] |= {
        "training.warmup_steps": {"type": "int", "low": 0, "high": 2_000, "quantum": 500},
        "training.decay": {
            "type": "uniform",
            "low": 0.1,
            "high": 0.5,
            "when": {"training.lr_schedule": ["wsd", "linear"], "training.lr": [1]},
        },
    }
    (folder / "sweep.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    notes = [f"note {number}" for number in range(NOTES + 2)]
    told = describe_run(folder, {**ABOUT, "notes": notes}, None).splitlines()
    assert told[0] == "Running."
    assert "- training.lr: 1.0e-05 to 1.0e-03, log scale" in told
    assert "- training.batch_size: 8, 16" in told
    assert "- training.warmup_steps: 0 to 2k in steps of 500" in told
    when = "training.lr_schedule is wsd or linear and training.lr is 1"
    assert f"- training.decay: 0.1 to 0.5 where {when}" in told
    assert "- only where training.lr < 1" in told
    assert f"- note {NOTES - 1}" in told
    assert told[told.index(f"- note {NOTES - 1}") + 1] == "- and 2 more notes in data.json"
