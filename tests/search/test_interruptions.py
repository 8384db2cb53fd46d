"""Kills, Ctrl-C and a full disk, while a sweep runs on real Ray."""

import contextlib
import os
import signal
import subprocess
import time

import pytest
from helpers.small_sweeps import (
    Heard,
    assert_clean_curve,
    choice,
    grid,
    start_driver,
)

from sesttune.config.load import with_point
from sesttune.errors import UserError
from sesttune.search.driver import run_sweep
from sesttune.search.space_file import load_space
from sesttune.training.records import list_trials, read_metrics, read_trial


def _wait_for(condition, seconds=300):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the sweep did not get there"
        time.sleep(0.05)


@pytest.mark.slow
def test_a_killed_worker_is_started_once_more_and_its_trial_continues(tiny, ray, tmp_path):
    class Killer(Heard):
        kills = 0

        def on_report(self, trial_id, metrics):
            super().on_report(trial_id, metrics)
            due = {"001": [10], "002": [5, 15]}[trial_id]
            if self.kills < 3 and metrics["step"] in due:
                self.kills += 1
                os.kill(metrics["pid"], signal.SIGKILL)

    config, manifest = tiny
    config = with_point(config, {"sweep.asha": False, "training.max_steps": 30})
    heard = Killer()
    run_sweep(tmp_path, config, grid(training__lr=choice(1e-3, 2e-3)), manifest, [heard])
    first, second = list_trials(tmp_path)
    assert heard.kills == 3
    assert [trial for trial, _ in heard.starts] == ["001", "001", "002", "002"]
    assert (first.status, first.stop_reason) == ("done", "max_steps")
    assert_clean_curve(first.folder, 30)
    assert heard.reports.count(("001", 0)) == 1, "it did not begin again"
    assert second.status == "failed"
    assert second.stop_reason.startswith("error: the worker process was lost twice")


@pytest.mark.slow
def test_a_killed_driver_is_resumed_where_it_was(tiny, tmp_path):
    config, manifest = tiny
    config = with_point(config, {"training.max_steps": 2000, "sweep.asha": False})
    # Two at once, and a schedule under which each trial is a training of its own; 002 is short.
    config = with_point(config, {"training.patience": 1000, "sweep.max_concurrent": 2})
    config = with_point(config, {"training.lr_schedule": "cosine"})
    space = (
        "searcher: grid\nparameters:\n"
        "  training.max_steps: {type: choice, values: [10, 300]}\n"
        "  training.lr: {type: choice, values: [1e-3, 2e-3]}\n"
    )
    run = tmp_path / "run"
    driver = start_driver(tmp_path, config, space, manifest)
    try:
        long_trial = run / "trials" / "001"
        _wait_for(lambda: len(read_metrics(long_trial)) > 10)
        _wait_for(lambda: read_trial(run / "trials" / "002").finished)
    finally:
        driver.kill()
        driver.wait()
    before = {record.id: record for record in list_trials(run)}
    assert before["001"].status == "running"
    first_line = read_metrics(long_trial)[0]
    finished = run / "trials" / "002" / "trial.json"
    written = finished.stat().st_mtime_ns

    heard = Heard()
    same = load_space(str(tmp_path / "space.yaml"))
    run_sweep(run, config, same, manifest, [heard], resume=True)
    after = {record.id: record for record in list_trials(run)}
    assert [record.status for record in after.values()] == ["done"] * 4
    assert all(after[name].params == record.params for name, record in before.items())
    assert_clean_curve(long_trial, 300)
    assert read_metrics(long_trial)[0] == first_line, "trained before the kill, not again"
    assert finished.stat().st_mtime_ns == written
    assert "002" not in [trial for trial, _ in heard.starts]
    assert ("001", 0) not in heard.reports


@pytest.mark.slow
def test_a_sweep_whose_ray_has_died_ends_in_one_line(tiny, tmp_path):
    config, manifest = tiny
    config = with_point(config, {"training.max_steps": 10**6, "training.early_stopping": False})
    space = "parameters:\n  training.lr: {type: choice, values: [1e-4]}\n"
    run = tmp_path / "run"
    driver = start_driver(tmp_path, config, space, manifest)
    try:
        _wait_for(lambda: len(read_metrics(run / "trials" / "001")) > 10)
        subprocess.run(["pkill", "-KILL", "-P", str(driver.pid), "raylet"], check=True)
        error = driver.communicate(timeout=120)[1]
    finally:
        driver.kill()
        driver.wait()
    assert driver.returncode == 1
    assert "UserError: Ray has died on every machine of the sweep" in error
    assert [record.status for record in list_trials(run)] == ["running"]  # --resume goes on


@pytest.fixture
def hears_ctrl_c():
    """A shell's background job ignores it, and so do the tests that are run in one."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_lets_trials_validate_and_save_and_resume_goes_on(tiny, ray, hears_ctrl_c, tmp_path):
    class Interrupter(Heard):
        def on_report(self, trial_id, metrics):
            super().on_report(trial_id, metrics)
            if metrics["step"] == 10:
                os.kill(os.getpid(), signal.SIGINT)

        def on_note(self, text):
            self.note = text

    config, manifest = tiny
    config = with_point(config, {"training.max_steps": 30})
    space = grid(training__lr=choice(1e-2, 1e-3))
    heard = Interrupter()
    with pytest.raises(KeyboardInterrupt):
        run_sweep(tmp_path, config, space, manifest, [heard])
    assert heard.note.startswith("interrupted: each trial stops at its next validation")
    (record,) = list_trials(tmp_path)
    assert not record.finished
    assert_clean_curve(record.folder, 15)
    again = Heard()
    run_sweep(tmp_path, config, space, manifest, [again], resume=True)
    assert again.reports[0] == ("001", 20), "nothing was trained twice"
    assert_clean_curve(record.folder, 30)


@pytest.mark.slow
def test_a_worker_that_does_not_let_go_of_its_last_trial_costs_no_trial(tiny, tmp_path):
    """No time is given to a stopped trial to close, so Ray fails to reuse its worker."""
    space = (
        "searcher: grid\nparameters:\n"
        "  training.lr: {type: choice, values: [1e-2, 3e-6, 2e-6, 1e-6]}\n"
    )
    no_time = {"TUNE_FUNCTION_THREAD_TIMEOUT_S": "0"}
    driver = start_driver(tmp_path, tiny[0], space, tiny[1], **no_time)
    error = driver.communicate(timeout=300)[1]
    assert driver.returncode == 0, error
    assert "is handed out again" in error, "each worker let go in time"
    assert "ERROR" not in error
    records = list_trials(tmp_path / "run")
    assert len(records) == 4
    assert {record.status for record in records} == {"done", "stopped"}


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, 64 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("may not mount a small file system here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


class Filler(Heard):
    """Fills the disk when a trial has reported its second validation."""

    def __init__(self, ballast):
        super().__init__()
        self.ballast = ballast

    def on_report(self, trial_id, metrics):
        super().on_report(trial_id, metrics)
        if metrics["step"] == 5 and not self.ballast.exists():
            with self.ballast.open("wb") as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(1 << 16))
                    file.flush()


@pytest.mark.slow
def test_a_full_disk_ends_the_sweep_in_one_line_and_resume_completes_it(tiny, small_disk):
    config, manifest = tiny
    config = with_point(config, {"sweep.asha": False})
    space, folder = grid(training__lr=choice(1e-2, 1e-3)), small_disk / "sweep"
    ballast = small_disk / "ballast"
    with pytest.raises(UserError, match="is full: free some space, or lower"):
        run_sweep(folder, config, space, manifest, [Filler(ballast)])
    assert not [r for r in list_trials(folder) if r.status == "done"]
    kept = {r.id: read_metrics(r.folder) for r in list_trials(folder)}
    assert any(kept.values())
    ballast.unlink()
    run_sweep(folder, config, space, manifest, resume=True)
    records = list_trials(folder)
    assert [r.status for r in records] == ["done", "done"]
    for record in records:
        assert_clean_curve(record.folder, 20)
        before = kept.get(record.id, [])
        assert read_metrics(record.folder)[: len(before)] == before
