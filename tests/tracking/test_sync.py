"""One behavioural suite for every kind of MLflow store."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.run_folder import ABOUT, finish, line, report, write_result, write_run
from helpers.tracked import assert_whole, history, runs
from mlflow import MlflowClient

from sesttune.tracking.describe import NAME_LIMIT, NOTE_LIMIT, ROWS, describe_run, trial_name
from sesttune.tracking.sync import RunTracker
from sesttune.training.records import (
    TrialRecord,
    append_metrics,
    note_facts,
    trial_folder,
    update_trial,
    write_trial,
)


def test_a_name_is_no_longer_than_databases_take(tmp_path: Path) -> None:
    params = {f"training.key_of_thirty_letters_no_{n:02d}": 1.5e-5 for n in range(20)}
    name = trial_name(TrialRecord("003", tmp_path, params))
    assert len(name) == NAME_LIMIT
    assert name.startswith("003 key_of_thirty_letters_no_00=1.5e-05 key_")


def test_a_sweep_arrives_whole(uri: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "sweep")
    tracker = RunTracker(folder, uri, str(tmp_path))
    tracker.sync()
    for trial in ("001", "002", "003"):
        report(folder, trial, range(0, 5))
    tracker.sync()
    report(folder, "001", range(5, 10))
    finish(folder, "001")
    finish(folder, "002", "stopped", "asha: rung 4")
    finish(folder, "003", "failed", "nan")
    (folder / "report.html").write_text("<p>")
    (folder / "plots").mkdir()
    (folder / "plots" / "curves.png").write_bytes(b"png")
    write_result(folder)
    tracker.sync()
    found = runs(uri, str(tmp_path))
    assert set(found) == {
        "sweep",
        "001 lr=1.0e-04 batch=8",
        "002 lr=2.0e-04 batch=8",
        "003 lr=3.0e-04 batch=8",
    }
    parent, first = found["sweep"], found["001 lr=1.0e-04 batch=8"]
    client = MlflowClient(uri)
    points = client.get_metric_history(first.info.run_id, "val_loss")
    assert [(m.step, m.value) for m in points] == [(s, 10.0 / (1 + s)) for s in range(10)]
    assert [m.timestamp for m in points] == [1_700_000_000_000 + 1000 * s for s in range(10)]
    assert history(uri, first, "train_loss")[0][0] == 1  # NaN of step 0 is left out
    assert_whole(uri, folder, str(tmp_path))
    assert first.data.params == {"training.lr": "0.0001", "training.batch_size": "8"}
    assert first.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert first.data.tags["data_fingerprint"] == "f" * 16
    assert first.data.tags["encoder_sha256"] == "e" * 64
    assert found["002 lr=2.0e-04 batch=8"].data.tags["stop_reason"] == "asha: rung 4"
    statuses = {name[:3]: run.info.status for name, run in found.items()}
    assert statuses == {"swe": "FINISHED", "001": "FINISHED", "002": "FINISHED", "003": "FAILED"}
    assert {a.path for a in client.list_artifacts(first.info.run_id)} == {
        "best.ckpt",
        "config.yaml",
    }
    kept = {artifact.path for artifact in client.list_artifacts(parent.info.run_id)}
    assert {"report.html", "plots", "leaderboard.csv"} <= kept
    [plot] = client.list_artifacts(parent.info.run_id, "plots")
    assert plot.path == "plots/curves.png"
    assert parent.data.tags["verdict"] == "converged"
    assert parent.data.metrics["baseline_controls"] == 3.5
    assert parent.data.metrics["best_val_loss"] == 0.5
    note = parent.data.tags["mlflow.note.content"]
    link = f"#/experiments/{parent.info.experiment_id}/runs/{first.info.run_id}"
    link += "?workflowType=machine_learning"
    for part in (
        "**Verdict:** converged: it is flat",
        "`training.lr=1e-5`",
        f"**Winner:** [001]({link}) lr=1.00e-04, val_loss 0.5 at step 9",
        "sesttune promote --sweep sweep",
        "12,000 steps, 2 GPU-hours, wall-clock 1 h 2 min",
        "planned were 1:00:00",
        f"| 1&nbsp; | [001]({link})&nbsp; | 0.5&nbsp; | 9&nbsp; | 0.51 ± 0.02&nbsp; | converged",
        "converged&nbsp; | max_steps&nbsp; | lr=1.00e-04 |",
        "**Space** (gp, 3 trials)",
        "- training.lr: 1.0e-05 to 1.0e-03, log scale",
        "- training.batch_size: 8, 16",
        "tiny encoder",
        "alpha.h5ad: 100 cells",
        "mean_of_controls: 7.25",
    ):
        assert part in note
    assert first.data.tags["verdict"] == "converged"
    assert first.data.tags["evidence"] == "it is flat"
    ranks = [found[name].data.metrics.get("rank") for name in sorted(found)[:3]]
    assert ranks == [1, 2, None]
    assert found["003 lr=3.0e-04 batch=8"].data.tags["repeats"] == "001"
    board = Path(client.download_artifacts(parent.info.run_id, "leaderboard.csv", str(tmp_path)))
    assert board.read_text().splitlines()[1].startswith("001,0.5,9,9,max_steps")


def test_what_a_trial_found_out_and_its_profile_arrive(uri: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "sweep", trials=1)
    trial = trial_folder(folder, "001")
    tracker = RunTracker(folder, uri, str(tmp_path))
    report(folder, "001", range(0, 2))
    note_facts(trial, data="store of 1.00 GiB in memory (page cache)")
    tracker.sync()
    note_facts(trial, micro_batch=8)
    (trial / "profile").mkdir()
    (trial / "profile" / "breakdown.json").write_text("{}")
    finish(folder, "001")
    tracker.sync()
    run = runs(uri, str(tmp_path))["001 lr=1.0e-04 batch=8"]
    assert run.data.tags["data"] == "store of 1.00 GiB in memory (page cache)"
    assert run.data.tags["micro_batch"] == "8"
    kept = MlflowClient(uri).list_artifacts(run.info.run_id, "profile")
    assert [artifact.path for artifact in kept] == ["profile/breakdown.json"]


def test_the_description_of_a_large_sweep_is_not_cut(uri: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "sweep", trials=1)
    write_result(folder, more_trials=498)
    RunTracker(folder, uri, str(tmp_path)).sync()
    parent = runs(uri, str(tmp_path))["sweep"]
    note = parent.data.tags["mlflow.note.content"]
    assert len(note) <= NOTE_LIMIT
    assert note.count("| converged&nbsp; |") == ROWS - 1
    assert f"and {500 - ROWS} more in leaderboard.csv" in note
    assert note.splitlines()[-1] == "- mean_of_controls: 7.25"
    client = MlflowClient(uri)
    board = Path(client.download_artifacts(parent.info.run_id, "leaderboard.csv", str(tmp_path)))
    assert len(board.read_text().splitlines()) == 501


def test_rows_make_room_for_what_comes_after_them(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "sweep", trials=1)
    result = write_result(folder, more_trials=18)
    for row in result["leaderboard"][1:]:
        row["parameters"] = "weight_decay=0.001 " * 60
    note = describe_run(folder, ABOUT, result)
    assert len(note) <= NOTE_LIMIT
    assert "| 2&nbsp; | 002&nbsp; |" in note
    assert "more in leaderboard.csv" in note
    assert note.splitlines()[-1] == "- mean_of_controls: 7.25"
    shown = note.count("weight_decay=0.001") // 60 + 1
    assert re.findall(r"and (\d+) more", note) == [str(20 - shown)]


def test_the_parent_shows_the_best_of_the_latest_ending(uri: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "sweep", trials=1)
    result = write_result(folder)
    RunTracker(folder, uri, str(tmp_path)).sync()
    result["leaderboard"][0] |= {"best_val_loss": 0.4, "best_step": 3}  # fewer steps, later
    result["last_at"] += 1.0
    (folder / "result.json").write_text(json.dumps(result))
    RunTracker(folder, uri, str(tmp_path)).sync()
    shown = runs(uri, str(tmp_path))["sweep"].data.metrics
    assert (shown["best_val_loss"], shown["best_step"]) == (0.4, 3)


def test_syncing_again_or_from_scratch_changes_nothing(uri: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "sweep", trials=1)
    report(folder, "001", range(0, 6))
    finish(folder, "001")
    write_result(folder)
    for _ in range(2):
        RunTracker(folder, uri, str(tmp_path)).sync()
    before = runs(uri, str(tmp_path))
    trial = before["001 lr=1.0e-04 batch=8"].info
    times = (trial.start_time, trial.end_time)
    assert times == (1_700_000_000_000, 1_700_000_005_000), "when it ran, not when it was sent"
    (folder / "tracking.json").unlink()  # all memory of what was delivered is lost
    RunTracker(folder, uri, str(tmp_path)).sync()
    after = runs(uri, str(tmp_path))
    assert {r.info.run_id for r in before.values()} == {r.info.run_id for r in after.values()}
    assert_whole(uri, folder, str(tmp_path))


def test_no_run_ends_before_it_began(sqlite: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "sweep", trials=1)
    report(folder, "001", range(0, 3))
    shutil.copytree(folder, tmp_path / "copy")  # younger than what is recorded in it
    RunTracker(tmp_path / "copy", sqlite, str(tmp_path)).sync()
    assert runs(sqlite, str(tmp_path))["copy"].info.start_time == 1_700_000_000_000
    (folder / "trials" / "001" / "metrics.jsonl").unlink()
    RunTracker(folder, sqlite, str(tmp_path / "sweep")).sync()
    for step in range(3):  # the clock is set back by more than the sweep lasts, and goes on back
        append_metrics(trial_folder(folder, "001"), line(step, start=1_700_000_000 - 10 * step))
    finish(folder, "001")
    write_result(folder)
    RunTracker(folder, sqlite, str(tmp_path / "sweep")).sync()
    found = runs(sqlite, str(tmp_path / "sweep")).values()
    assert [run.info.end_time >= run.info.start_time for run in found] == [True, True]


def test_a_folder_made_again_under_the_same_name_is_another_run(uri: str, tmp_path: Path) -> None:
    for _ in range(2):
        folder = write_run(tmp_path / "sweep", trials=1)
        report(folder, "001", range(0, 3))
        finish(folder, "001")
        write_result(folder)
        RunTracker(folder, uri, str(tmp_path)).sync()
        shutil.rmtree(folder)
    experiment = MlflowClient(uri).get_experiment_by_name(str(tmp_path))
    found = MlflowClient(uri).search_runs([experiment.experiment_id])
    assert sorted(run.info.run_name[:5] for run in found) == ["001 l", "001 l", "sweep", "sweep"]


SYNC_FOREVER = """
import sys
from pathlib import Path
from sesttune.tracking.sync import RunTracker
while True:
    RunTracker(Path(sys.argv[1]), sys.argv[2], sys.argv[3]).sync()
    print("synced", flush=True)
"""


@pytest.mark.parametrize(
    "uri",
    ["sqlite", pytest.param("sqlite_server", marks=pytest.mark.slow), "postgres_server"],
    indirect=True,
)
def test_kill_9_leaves_no_duplicate_and_no_hole(uri: str, tmp_path: Path) -> None:
    folder, experiment = write_run(tmp_path / "sweep", trials=4), str(tmp_path)
    command = [sys.executable, "-c", SYNC_FOREVER, str(folder), uri, experiment]
    for turn in range(3):
        for trial in ("001", "002", "003", "004"):
            report(folder, trial, range(50 * turn, 50 * (turn + 1)))
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        if turn == 0:
            process.stdout.readline()  # tables exist from here on
        else:
            deadline = time.monotonic() + 60
            cursor = (folder / "tracking.json").stat().st_mtime_ns
            while (folder / "tracking.json").stat().st_mtime_ns == cursor:
                assert time.monotonic() < deadline
                time.sleep(0.001)  # killed right after some trial was delivered
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    RunTracker(folder, uri, experiment).sync()
    assert_whole(uri, folder, experiment)
    assert len(history(uri, runs(uri, experiment)["004 lr=4.0e-04 batch=8"])) == 150


def test_a_trial_of_a_resumed_sweep_goes_on_in_its_run(uri: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "sweep", trials=1)
    report(folder, "001", range(0, 5))
    RunTracker(folder, uri, str(tmp_path)).sync()
    # A resume cuts the lines after the last checkpoint and reports them again, later.
    path = trial_folder(folder, "001") / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))
    report(folder, "001", range(3, 8))
    RunTracker(folder, uri, str(tmp_path)).sync()
    assert_whole(uri, folder, str(tmp_path))


def test_a_trial_with_the_number_of_one_that_was_taken_away_has_a_run_of_its_own(
    sqlite: str, tmp_path: Path
) -> None:
    folder = write_run(tmp_path / "sweep", trials=2)
    report(folder, "002", range(0, 5))
    RunTracker(folder, sqlite, str(tmp_path)).sync()
    shutil.rmtree(trial_folder(folder, "002"))
    write_trial(TrialRecord("002", trial_folder(folder, "002"), {"training.lr": 0.5}, "running"))
    for steps in (range(0, 3), range(3, 8)):
        report(folder, "002", steps)
        RunTracker(folder, sqlite, str(tmp_path)).sync()
    finish(folder, "002")
    write_result(folder)
    RunTracker(folder, sqlite, str(tmp_path)).sync()
    found = runs(sqlite, str(tmp_path))
    kept = {name: len(history(sqlite, run)) for name, run in found.items() if name[:3] == "002"}
    assert kept == {"002 lr=2.0e-04 batch=8": 5, "002 lr=0.5": 8}


def test_a_failed_trial_that_is_tried_again_is_opened_and_closed_again(
    uri: str, tmp_path: Path
) -> None:
    folder = write_run(tmp_path / "sweep", trials=1)
    name, statuses = "001 lr=1.0e-04 batch=8", []
    for status, reason in (("failed", "error: full"), ("running", None), ("done", "max_steps")):
        update_trial(trial_folder(folder, "001"), status, reason)
        RunTracker(folder, uri, str(tmp_path)).sync()
        run = runs(uri, str(tmp_path))[name]
        statuses.append((run.info.status, run.data.tags.get("stop_reason")))
    assert statuses[0] == ("FAILED", "error: full")
    assert statuses[1][0] == "RUNNING"
    assert statuses[2] == ("FINISHED", "max_steps")
