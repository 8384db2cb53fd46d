"""The sweep on real Ray, real trials and real kills."""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.tiny_data import MeanEncoder, write_tiny

from sesttune.config.load import load_config, with_point
from sesttune.data.trial_data import prepare
from sesttune.errors import UserError
from sesttune.search.driver import run_sweep
from sesttune.search.listener import SweepListener
from sesttune.search.ray_session import ray_session, slots
from sesttune.search.recorded import read_schedule
from sesttune.search.space_file import parse_space
from sesttune.training.records import list_trials, read_metrics, read_trial, update_trial

DRIVER = """
import sys
from pathlib import Path
from sesttune.config.load import load_config
from sesttune.search.driver import run_sweep
from sesttune.search.space_file import load_space
config = load_config(file=Path(sys.argv[1]))
run_sweep(Path(sys.argv[2]), config, load_space(sys.argv[3]), Path(sys.argv[4]))
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Settings and prepared data; patience 2, so the first rung is at step 10; no last rounds."""
    data = write_tiny(tmp_path_factory.mktemp("tiny"))
    settings = data.settings(
        **{
            "training.patience": 2,
            "sweep.reduction_factor": 2,
            "sweep.continue_stopped": False,
            "sweep.seeds": 1,
        }
    )
    config = load_config(base=settings)
    return config, prepare(config, MeanEncoder)


@pytest.fixture(scope="module")
def ray(tiny):
    """One Ray for the tests of this module that do not need their own."""
    with ray_session(tiny[0]) as found:
        yield found


def choice(*values):
    return {"type": "choice", "values": list(values)}


def grid(**parameters):
    named = {key.replace("__", "."): value for key, value in parameters.items()}
    return parse_space({"searcher": "grid", "parameters": named}, "test space")


class Heard(SweepListener):
    def __init__(self):
        self.starts, self.ends, self.reports, self.ticks = [], [], [], 0

    def on_start(self, record, max_steps):
        self.starts.append((record.id, max_steps))

    def on_report(self, trial_id, metrics):
        self.reports.append((trial_id, metrics["step"]))

    def on_end(self, trial_id, record):
        self.ends.append((trial_id, record.status))

    def on_tick(self):
        self.ticks += 1


def _shape(record):
    return record.params["model.kwargs.hidden_dim"], record.params["model.kwargs.n_heads"]


def assert_clean_curve(folder, last_step):
    steps = [line["step"] for line in read_metrics(folder)]
    assert steps == list(range(0, last_step + 1, 5))


def test_trials_run_are_stopped_by_asha_and_one_that_fails_does_not_end_the_sweep(
    tiny, ray, tmp_path
):
    config, manifest = tiny
    # Width 18 with 4 heads cannot be built; each value alone can.
    space = grid(
        training__lr=choice(1e-2, 1e-6),
        model__kwargs__hidden_dim=choice(16, 18),
        model__kwargs__n_heads=choice(2, 4),
    )
    # One at a time, in an order that has the good learning rate first.
    config = with_point(config, {"sweep.max_concurrent": 1, "sweep.seed": 11})
    heard = Heard()
    outcome = run_sweep(tmp_path, config, space, manifest, [heard])
    records = {record.id: record for record in list_trials(tmp_path)}
    assert len(records) == 8
    failed = [record for record in records.values() if record.status == "failed"]
    impossible = [r for r in records.values() if _shape(r) == (18, 4)]
    assert failed == impossible
    assert failed[0].stop_reason.startswith("error: model.kwargs.hidden_dim=18 must be a multiple")
    assert "UserError" in (failed[0].folder / "error.txt").read_text()
    able = [r for r in records.values() if r not in failed]
    assert [r.params["training.lr"] for r in able] == [1e-2] * 3 + [1e-6] * 3
    assert (able[0].status, able[0].stop_reason) == ("done", "max_steps")
    for record in able[3:]:
        assert record.status == "stopped"
        assert record.stop_reason.startswith("asha: rung 10,")
        assert_clean_curve(record.folder, 10)
        assert (record.id, 10) in heard.reports
    assert outcome.best.params["training.lr"] == 1e-2
    assert outcome.verdict == "healthy"
    assert outcome.evidence.startswith("still falling")
    assert sorted(heard.ends) == sorted((r.id, r.status) for r in records.values())
    assert heard.ticks > 8
    assert not (tmp_path / ".ray").exists(), "nothing of Ray's stays in the sweep folder"


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
    config = with_point(
        config, {"sweep.max_concurrent": 1, "sweep.asha": False, "training.max_steps": 30}
    )
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


def test_a_listener_that_fails_does_not_end_the_sweep(tiny, ray, tmp_path):
    class Broken(SweepListener):
        def on_report(self, trial_id, metrics):
            raise RuntimeError("display gone")

    config, manifest = tiny
    heard = Heard()
    outcome = run_sweep(
        tmp_path, config, grid(training__lr=choice(1e-3)), manifest, [Broken(), heard]
    )
    assert outcome.best.status == "done"
    assert heard.ends == [("001", "done")]


def test_trials_in_the_folder_are_not_mixed_with_a_new_sweep_or_another_driver(tiny, tmp_path):
    config, manifest = tiny
    space = grid(training__lr=choice(1e-3))
    with (tmp_path / ".driver.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="being run by another process"):
            run_sweep(tmp_path, config, space, manifest)
    (tmp_path / "trials" / "001").mkdir(parents=True)
    (tmp_path / "trials" / "001" / "trial.json").write_text('{"id": "001"}')
    with pytest.raises(UserError, match="already holds trials"):
        run_sweep(tmp_path, config, space, manifest)


def test_slots_are_shared_out_and_what_cannot_fit_is_refused():
    def of(available, *overrides):
        return slots(load_config(overrides), available)

    assert of({"CPU": 4}).concurrent == 4
    assert of({"CPU": 5}, "sweep.cpus_per_trial=2").concurrent == 2
    assert of({"CPU": 5}, "sweep.cpus_per_trial=2").threads == 2
    eight = of({"CPU": 64, "GPU": 8})
    assert (eight.concurrent, eight.gpus) == (8, 1)
    assert of({"CPU": 64, "GPU": 2}, "sweep.gpus_per_trial=0.1").concurrent == 20
    assert of({"CPU": 64, "GPU": 2}, "sweep.gpus_per_trial=0.4").concurrent == 4, "two a GPU"
    assert of({"CPU": 64, "GPU": 8}, "sweep.max_concurrent=3").concurrent == 3
    assert of({"CPU": 64, "GPU": 8}, "training.device=cpu").gpus == 0
    for available, override, message in [
        ({"CPU": 2}, "training.device=cuda", "no GPU"),
        ({"CPU": 2}, "sweep.cpus_per_trial=3", "there are 2 cores"),
        ({"CPU": 2, "GPU": 1}, "sweep.gpus_per_trial=2", "a trial computes on one GPU"),
    ]:
        with pytest.raises(UserError, match=message):
            of(available, override)


def test_a_killed_driver_is_resumed_where_it_was(tiny, tmp_path):
    from sesttune.config.load import to_yaml

    config, manifest = tiny
    config = with_point(config, {"training.max_steps": 2000, "sweep.asha": False})
    # Four at once, and a schedule under which each trial is a training of its own; 002 is short.
    config = with_point(config, {"training.patience": 1000, "sweep.cpus_per_trial": 0.5})
    config = with_point(config, {"training.lr_schedule": "cosine"})
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    space_file = tmp_path / "space.yaml"
    space_file.write_text(
        "searcher: grid\nparameters:\n"
        "  training.max_steps: {type: choice, values: [10, 300]}\n"
        "  training.lr: {type: choice, values: [1e-3, 2e-3]}\n"
    )
    run = tmp_path / "run"
    arguments = [tmp_path / "config.yaml", run, space_file, manifest]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, *map(str, arguments)], env=environment)
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

    from sesttune.search.space_file import load_space

    heard = Heard()
    run_sweep(run, config, load_space(str(space_file)), manifest, [heard], resume=True)
    after = {record.id: record for record in list_trials(run)}
    assert [record.status for record in after.values()] == ["done"] * 4
    assert all(after[name].params == record.params for name, record in before.items())
    assert_clean_curve(long_trial, 300)
    assert read_metrics(long_trial)[0] == first_line, "trained before the kill, not again"
    assert finished.stat().st_mtime_ns == written
    assert "002" not in [trial for trial, _ in heard.starts]
    assert ("001", 0) not in heard.reports


def test_a_sweep_whose_ray_has_died_ends_in_one_line(tiny, tmp_path):
    from sesttune.config.load import to_yaml

    config, manifest = tiny
    config = with_point(config, {"training.max_steps": 10**6, "training.early_stopping": False})
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    space = "parameters:\n  training.lr: {type: choice, values: [1e-4]}\n"
    (tmp_path / "space.yaml").write_text(space)
    run = tmp_path / "run"
    arguments = [tmp_path / "config.yaml", run, tmp_path / "space.yaml", manifest]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", DRIVER, *map(str, arguments)]
    driver = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
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


def test_finalists_are_repeated_the_winner_is_extended_and_shorter_trials_cost_nothing(
    tiny, ray, tmp_path
):
    config, manifest = tiny
    last_rounds = {"sweep.seeds": 2, "sweep.finalists": 2, "sweep.extend_to": [30]}
    config = with_point(config, last_rounds | {"sweep.asha": False, "training.patience": 99})
    space = grid(training__lr=choice(1e-2, 3e-3), training__max_steps=choice(10, 20))
    heard = Heard()
    outcome = run_sweep(tmp_path, config, space, manifest, [heard])
    records = {record.id: record for record in list_trials(tmp_path)}
    assert [record.status for record in records.values()] == ["done"] * 6
    # Two trainings to 20 steps, a second seed of each, and the winner to 30.
    assert [steps for _, steps in heard.starts] == [20, 20, 20, 20, 30]
    winner = heard.starts[-1][0]
    assert_clean_curve(records[winner].folder, 30)
    shorter = [r for r in records.values() if r.params["training.max_steps"] == 10]
    assert len(shorter) == 2
    for record in shorter:
        assert_clean_curve(record.folder, 10)
        assert record.id not in [trial for trial, _ in heard.starts]
        assert (record.id, "done") in heard.ends
    first, second = (r for r in records.values() if "training.replicate" in r.params)
    assert first.params["training.replicate"] == second.params["training.replicate"] == 1
    own = records[read_schedule(first.folder)["repeats"]]
    draws = [read_metrics(record.folder) for record in (own, first)]
    assert draws[0][0]["val_loss"] != draws[1][0]["val_loss"], "other initial weights"
    assert outcome.best.id == winner


def test_ctrl_c_lets_trials_validate_and_save_and_resume_goes_on(tiny, ray, tmp_path):
    class Interrupter(Heard):
        def on_report(self, trial_id, metrics):
            super().on_report(trial_id, metrics)
            if metrics["step"] == 10:
                os.kill(os.getpid(), signal.SIGINT)

        def on_note(self, text):
            self.note = text

    config, manifest = tiny
    config = with_point(config, {"sweep.max_concurrent": 1, "training.max_steps": 30})
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
    from sesttune.config.load import to_yaml

    config = with_point(tiny[0], {"sweep.max_concurrent": 1})
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    (tmp_path / "space.yaml").write_text(
        "searcher: grid\nparameters:\n"
        "  training.lr: {type: choice, values: [1e-2, 3e-6, 2e-6, 1e-6]}\n"
    )
    arguments = [tmp_path / "config.yaml", tmp_path / "run", tmp_path / "space.yaml", tiny[1]]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "TUNE_FUNCTION_THREAD_TIMEOUT_S": "0",
    }
    command = [sys.executable, "-c", DRIVER, *map(str, arguments)]
    subprocess.run(command, env=environment, check=True, timeout=300)
    statuses = [record.status for record in list_trials(tmp_path / "run")]
    assert statuses == ["done", "stopped", "stopped", "stopped"]


def _wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the sweep did not get there"
        time.sleep(0.05)


def test_resuming_a_finished_sweep_starts_nothing(tiny, tmp_path):
    config, manifest = tiny
    space = grid(training__lr=choice(1e-3))
    run_sweep(tmp_path, config, space, manifest)
    heard = Heard()
    outcome = run_sweep(Path(tmp_path), config, space, manifest, [heard], resume=True)
    assert outcome.best.id == "001"
    assert heard.starts == []


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


def test_a_full_disk_ends_the_sweep_in_one_line_and_resume_completes_it(tiny, small_disk):
    config, manifest = tiny
    config = with_point(config, {"sweep.asha": False})
    space, folder = grid(training__lr=choice(1e-2, 1e-3)), small_disk / "sweep"
    ballast = small_disk / "ballast"
    with pytest.raises(UserError, match="is full: nothing is lost; free some space"):
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


def test_resume_tries_trials_again_that_failed_with_an_error_but_not_nan(tiny, ray, tmp_path):
    config, manifest = tiny
    config = with_point(config, {"sweep.asha": False})
    space = grid(training__lr=choice(1e-2, 1e-3))
    run_sweep(tmp_path, config, space, manifest)
    first, second = list_trials(tmp_path)
    update_trial(first.folder, "failed", "error: the worker process was lost twice")
    update_trial(second.folder, "failed", "nan")
    heard = Heard()
    run_sweep(tmp_path, config, space, manifest, [heard], resume=True)
    assert heard.ends == [("001", "done")]
    assert [r.stop_reason for r in list_trials(tmp_path)] == ["max_steps", "nan"]
