"""What a run folder still owes MLflow, without a store."""

import json
import os
from pathlib import Path

from helpers.run_folder import finish, report, write_result, write_run

from sesttune.tracking.spool import CURSOR, file_key, files_left, new_cursor, undelivered
from sesttune.training.records import trial_folder


def test_a_file_is_sent_again_where_it_was_written_anew_though_it_is_as_long(
    tmp_path: Path,
) -> None:
    folder = write_run(tmp_path / "sweep", trials=2)
    finish(folder, "001")
    trial = {"trials/001/config.yaml", "trials/001/checkpoints/best.ckpt"}
    cursor = new_cursor()
    assert {file_key(folder, kept) for kept in files_left(folder, cursor)} == trial
    write_result(folder)
    for name in ("packing.json", "report.html", "plots/curves.png", "plots/more/x.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    found = files_left(folder, cursor)
    cursor["files"] = {file_key(folder, kept): kept.mark() for kept in found}
    assert set(cursor["files"]) - trial == {
        "result.json",
        "sweep.yaml",
        "packing.json",
        "report.html",
        "plots/curves.png",
        "plots/more/x.png",
    }
    assert {kept.place for kept in found} == {None, "plots", "plots/more"}
    assert files_left(folder, cursor) == []
    best = trial_folder(folder, "001") / "checkpoints" / "best.ckpt"
    os.utime(best, ns=(0, best.stat().st_mtime_ns + 1))  # of a training that went on
    [again] = files_left(folder, cursor)
    assert (again.path, again.trial) == (best, "001")


def test_another_ending_is_owed_though_one_was_delivered(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "sweep", trials=1)
    report(folder, "001", range(4))
    result = write_result(folder)
    facts = {"run": "r", "lines": 4, "ended": None}
    sent = {"trials": {"001": facts}, "files": {}, "result": result}
    (folder / CURSOR).write_text(json.dumps(sent))
    left = undelivered(folder)
    assert (left.lines, left.trials, left.result) == (0, 0, False)
    (folder / "result.json").write_text(json.dumps({**result, "verdict": "overfit"}))
    report(folder, "001", range(4, 6))
    finish(folder, "001")
    left = undelivered(folder)
    assert (left.lines, left.trials, left.result) == (2, 1, True)
