"""The command line as a user meets it: real processes, exit codes, one-line errors."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.tiny_data import write_tiny
from helpers.trained_runs import write_settings
from rich.table import Table

from sesttune import sweep
from sesttune.cli import COMMANDS
from sesttune.command import open_console, run, show_table
from sesttune.training.records import read_metrics


def call(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=300)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    done = call("sesttune.cli", command, "--help")
    assert done.returncode == 0, done.stderr
    assert f"usage: sesttune {command}" in done.stdout
    module = call(f"sesttune.{command}", "--help")
    assert module.stdout == done.stdout


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys; from sesttune.cli import COMMANDS, _dispatch\n"
        "for name in COMMANDS:\n"
        "    try: _dispatch([name, '--help'])\n"
        "    except SystemExit: pass\n"
        "heavy = {'torch', 'ray', 'mlflow', 'lightning', 'anndata', 'matplotlib', 'optuna'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_unknown_command_and_overview() -> None:
    assert call("sesttune.cli", "swep").returncode == 2
    assert "sweep" in call("sesttune.cli").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["training.lrr=1"], "unknown key 'training.lrr': did you mean 'training.lr'?"),
        (["training.lr=0"], "training.lr=0.0 must be a number above 0"),
        (["data.kwargs.toml_config_path=none.toml"], "perturbation_features_file is not set"),
        (
            ["data.kwargs.toml_config_path=none.toml", "data.kwargs.perturbation_features_file=f"],
            "none.toml does not exist",
        ),
        (["--space", "nonsense"], "nonsense"),
        (["--resume", "gone"], "no run 'gone'"),
        (["tracking.uri=http://me:word@server"], "tracking.uri holds a password"),
        (["data.cache_dir=/proc/none"], "data.cache_dir: cannot write to /proc/none"),
        (["--resume", "gone", "training.lr=1e-3"], "may go with it"),
    ],
)
def test_mistakes_end_with_one_line_and_exit_code_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    cache = [] if "--resume" in arguments else [f"data.cache_dir={tmp_path}/cache"]
    assert run(sweep.main, [*cache, *arguments]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not (tmp_path / "outputs").exists()  # nothing is left behind


def test_the_process_of_a_mistake_ends_with_its_one_line_and_exit_code_2(tmp_path: Path) -> None:
    done = call("sesttune.sweep", "training.lrr=1", cwd=tmp_path)
    wanted = "error: unknown key 'training.lrr': did you mean 'training.lr'?\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", wanted)


def test_a_resumed_training_takes_no_other_settings(tmp_path: Path) -> None:
    done = call("sesttune.train", "--resume", "gone", "training.lr=1", cwd=tmp_path)
    assert (done.returncode, "may go with it" in done.stderr) == (2, True), done.stderr


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGINT,
        *(pytest.param(n, marks=pytest.mark.slow) for n in (signal.SIGTERM, signal.SIGHUP)),
    ],
)
def test_a_training_that_is_told_to_stop_says_how_to_go_on(
    tmp_path: Path, number: signal.Signals
) -> None:
    settings = write_settings(tmp_path)
    call = [
        "-m",
        "sesttune.train",
        "--config",
        str(settings),
        "name=t",
        "training.max_steps=100000",
    ]
    with subprocess.Popen(
        [sys.executable, "-u", *call, "training.early_stopping=false"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        # A shell's background job ignores Ctrl-C, nohup's the hang-up, and so do their children.
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    ) as training:
        assert training.stdout is not None
        assert any(line.startswith("step ") for line in training.stdout)
        training.send_signal(number)
        shown, error = training.communicate(timeout=120)
    assert training.returncode == 130, error
    assert "stopped; go on with: " in shown
    assert "train --resume t output_dir=" in shown
    assert error.strip() == "interrupted"


@pytest.mark.slow
def test_a_sweep_that_is_told_to_stop_lets_trials_save_and_says_how_to_go_on(
    tmp_path: Path,
) -> None:
    settings = write_settings(tmp_path)
    call = ["-m", "sesttune.sweep", "--config", str(settings), "name=s", "sweep.space=quick"]
    long = ["training.max_steps=100000", "training.early_stopping=false", "sweep.num_trials=2"]
    long += ["training.batch_size=4", "training.val_check_interval=500"]
    with subprocess.Popen(
        [sys.executable, "-u", *call, *long],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    ) as sweep:
        trial = tmp_path / "outputs" / "s" / "trials" / "001"
        while sweep.poll() is None and not read_metrics(trial):
            time.sleep(0.2)
        time.sleep(1)  # the line is there before it is reported, and a report stops the trial
        before = len(read_metrics(trial))
        for _ in range(2):  # a terminal that closes, by the kernel and by the shell
            os.killpg(sweep.pid, signal.SIGHUP)
        # As a job scheduler at its limit: to every process, Ray's and the trial's, too.
        subprocess.run(["pkill", "-TERM", "--session", str(sweep.pid)], check=True)
        shown, error = sweep.communicate(timeout=120)
    assert sweep.returncode == 130, error
    assert "interrupted: each trial stops at its next validation" in shown
    before_and_after = [line for line in shown.splitlines() if "--resume s output_dir=" in line]
    assert [line.partition(": ")[0] for line in before_and_after] == [
        "if it is interrupted",
        "stopped; go on with",
    ]
    assert error.strip() == "interrupted"
    assert len(read_metrics(trial)) > before
    assert (trial / "checkpoints" / "last.ckpt").is_file()


def test_a_missing_encoder_is_refused_before_anything_runs(tmp_path: Path) -> None:
    tiny = write_tiny(tmp_path)
    overrides = [f"{key}={value}" for key, value in tiny.settings().items()]
    done = call("sesttune.train", *overrides, cwd=tmp_path)
    assert done.returncode == 2
    assert "SE-600M/se600m_epoch15.ckpt does not exist" in done.stderr


def test_encode_writes_an_array(tmp_path: Path) -> None:
    oracle = Path(__file__).parent / "data_oracle"
    model = ["--checkpoint", str(oracle / "se_tiny.ckpt")]
    model += ["--protein-embeddings", str(oracle / "protein_embeddings.pt")]
    source = ["--input", str(oracle / "cells.h5ad")]
    done = call("sesttune.encode", *source, *model, "--output", str(tmp_path / "out.npy"))
    assert done.returncode == 0, done.stderr
    matrix = np.load(tmp_path / "out.npy")
    assert np.abs(matrix - np.load(oracle / "expected.npy")).max() <= 1.5e-6
    assert [path.name for path in tmp_path.iterdir()] == ["out.npy"]


@pytest.mark.parametrize("command", ["cli", *COMMANDS])
def test_an_unknown_log_level_is_one_line_for_every_command(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SESTTUNE_LOG", "verbose")
    done = call(f"sesttune.{command}", "--help")
    assert done.returncode == 2, done.stdout
    levels = "debug, info, warning, error, critical"
    assert done.stderr == f"error: SESTTUNE_LOG=verbose must be one of {levels}\n"


@pytest.mark.parametrize("level", ["", "info", "Debug"])
def test_log_levels_are_words_in_any_case(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SESTTUNE_LOG", level)
    assert call("sesttune.cli", "--version").returncode == 0


def test_a_terminal_that_lacks_a_character_ends_no_command() -> None:
    code = "from sesttune.command import run; run(lambda _: print('lr × steps'), [])"
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    script = [sys.executable, "-c", code]
    done = subprocess.run(script, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == "lr ? steps\n"


def test_labels_and_paths_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    said = "T [naive], /data/[/x]/alpha.h5ad, chr1:100:200"
    open_console().print(said, soft_wrap=True)
    assert capsys.readouterr().out == f"{said}\n"


def test_numbers_are_whole_in_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    row = ["001", "2026-11-27", "12,500", "12.4512", "12.45 ± 0.12", "13.3512 (test)"]
    table = Table(box=None)
    for text in row:
        table.add_column(text, no_wrap=True)
    table.add_row(*row)
    show_table(open_console(), table)
    shown = capsys.readouterr().out
    assert [shown.count(text) for text in row] == [2] * len(row)
