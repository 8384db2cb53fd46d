"""A sweep that a limit has ended, and what `--resume` makes of it."""

import subprocess
import sys
from pathlib import Path

from helpers.trained_runs import write_settings
from omegaconf import OmegaConf

from sesttune.training.records import list_trials


def sweep(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sesttune.sweep", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=300)


def test_trials_keep_their_end_until_a_resumed_sweep_gets_another_limit(tmp_path: Path) -> None:
    settings = write_settings(tmp_path)
    run = tmp_path / "outputs" / "s"
    short = ["sweep.space=quick", "sweep.num_trials=2", "sweep.seeds=1", "training.max_steps=20"]
    given = ["--config", str(settings), "name=s", *short, "training.batch_size=4"]
    done = sweep(tmp_path, *given, "sweep.target_val_loss=1e9")
    assert done.returncode == 0, done.stderr

    def ends() -> dict[str, str | None]:
        return {record.id: record.stop_reason for record in list_trials(run)}

    stopped = ends()
    assert all("reached sweep.target_val_loss" in str(reason) for reason in stopped.values())
    again = sweep(tmp_path, "--resume", "s")
    assert again.returncode == 0, again.stderr
    assert "nothing more would be trained" in again.stdout
    assert "to go on, give another sweep.target_val_loss= with --resume" in again.stdout
    assert ends() == stopped, "none waits for a GPU that it will not get"
    spent = sweep(tmp_path, "--resume", "s", "sweep.target_val_loss=null", "--time-budget", "1s")
    assert spent.returncode == 2, spent.stdout
    assert spent.stderr.startswith("error: sweep.time_budget=1s is spent, so nothing more would")
    assert spent.stderr.endswith("a limit counts from the sweep's beginning\n")
    assert len(spent.stderr.splitlines()) == 1
    more = sweep(tmp_path, "--resume", "s", "sweep.target_val_loss=null", "sweep.gpu_hours=9")
    assert more.returncode == 0, more.stdout + more.stderr
    assert "max_steps" in ends().values()
    assert all(str(r).startswith(("max_steps", "patience", "asha")) for r in ends().values())
    saved = OmegaConf.load(run / "sweep.yaml").config.sweep
    assert (saved.target_val_loss, saved.gpu_hours) == (None, 9), "a later --resume knows it"
