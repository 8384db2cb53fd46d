"""The Markdown of a sweep's description, without a store."""

import re
from pathlib import Path

from helpers.run_folder import ABOUT, write_result, write_run

from sesttune.tracking.describe import describe_run, trial_name
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
