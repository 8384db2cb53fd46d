"""The demo sweep at its whole length, which `make sweep` runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sesttune.training.records import list_trials, read_metrics


@pytest.mark.slow
def test_the_demo_says_all_a_user_needs_and_its_best_beats_the_baselines(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sesttune.sweep", "name=first"]
    environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
    done = subprocess.run(
        [*command, f"data.cache_dir={tmp_path}/cache"],
        **{"cwd": tmp_path, "env": environment, "capture_output": True, "text": True},
        timeout=1_800,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for words in (
        "running the bundled demo",
        "demo-encoder (random weights)",
        "leaderboard of first",
        "verdict:",
        "sesttune ui output_dir=outputs",
        "sesttune promote --sweep first --output-dir outputs",
    ):
        assert words in done.stdout
    run = tmp_path / "outputs" / "first"
    assert len(list((run / "plots").iterdir())) == 6
    records = list_trials(run)
    search = [record for record in records if "training.replicate" not in record.params]
    assert len(search) == 8
    assert len(records) > 8, "the finalists were repeated"
    assert all(record.finished and record.status != "failed" for record in records)
    assert any((record.stop_reason or "").startswith("asha") for record in records)
    best = min(read_metrics(r.folder)[-1]["best_val_loss"] for r in records)
    untrained = read_metrics(records[0].folder)[0]["val_loss"]
    baselines = json.loads((run / "data.json").read_text())["baselines"]
    assert best < 0.25 * untrained
    assert best < 0.75 * baselines["mean_of_controls"]
