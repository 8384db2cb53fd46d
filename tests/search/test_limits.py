"""A sweep that a limit has ended, and what `--resume` makes of it."""

import fcntl
from pathlib import Path

import pytest
from helpers.trained_runs import write_settings
from omegaconf import OmegaConf

from sesttune.command import run
from sesttune.sweep import main as sweep
from sesttune.training.records import list_trials


@pytest.mark.slow
def test_trials_keep_their_end_until_a_resumed_sweep_gets_another_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = write_settings(tmp_path)
    folder = tmp_path / "outputs" / "s"
    short = ["sweep.space=quick", "sweep.num_trials=2", "sweep.seeds=1", "training.max_steps=20"]
    given = ["--config", str(settings), "name=s", *short, "training.batch_size=4"]
    assert run(sweep, [*given, "sweep.target_val_loss=1e9"]) == 0

    def ends() -> dict[str, str | None]:
        return {record.id: record.stop_reason for record in list_trials(folder)}

    stopped = ends()
    assert all("reached sweep.target_val_loss" in str(reason) for reason in stopped.values())
    capsys.readouterr()
    assert run(sweep, ["--resume", "s"]) == 0
    again = capsys.readouterr().out
    assert "nothing more would be trained" in again
    assert "to go on, give another sweep.target_val_loss= with --resume" in again
    assert ends() == stopped, "none waits for a GPU that it will not get"
    with (folder / ".driver.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        before = (folder / "sweep.yaml").read_text()
        assert run(sweep, ["--resume", "s", "sweep.target_val_loss=1e-9"]) == 2
        assert "by another process" in capsys.readouterr().err
        assert (folder / "sweep.yaml").read_text() == before
    other = ["--resume", "s", "sweep.target_val_loss=null"]
    assert run(sweep, [*other, "--time-budget", "1s"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: sweep.time_budget=1s is spent, so nothing more would")
    assert line.endswith("a limit counts from the sweep's beginning")
    assert run(sweep, [*other, "sweep.gpu_hours=9"]) == 0
    assert "max_steps" in ends().values()
    assert all(str(r).startswith(("max_steps", "patience", "asha")) for r in ends().values())
    saved = OmegaConf.load(folder / "sweep.yaml").config.sweep
    assert (saved.target_val_loss, saved.gpu_hours) == (None, 9), "a later --resume knows it"
