"""A run folder as trials leave it, written with the program's own functions."""

import json
import math
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from sesttune.config.load import load_config, to_dict
from sesttune.model.head_checkpoint import save_checkpoint
from sesttune.training.records import (
    TrialRecord,
    append_metrics,
    trial_folder,
    update_trial,
    write_trial,
)

ABOUT = {
    "manifest": "nowhere",
    "fingerprint": "f" * 16,
    "encoder": {"path": "x", "sha256": "e" * 64, "label": "tiny encoder", "key": "k"},
    "notes": ["alpha.h5ad: 100 cells, raw counts"],
    "baselines": {"controls": 3.5, "mean_of_controls": 7.25},
}
SPACE = {
    "searcher": "gp",
    "num_trials": 3,
    "parameters": {
        "training.lr": {"type": "loguniform", "low": 1e-5, "high": 1e-3},
        "training.batch_size": {"type": "choice", "values": [8, 16]},
    },
    "constraints": [],
}


def write_run(folder: Path, trials: int = 3, uri: str | None = None) -> Path:
    """A run folder with running trials; `uri` is its store, the folder it is in its experiment."""
    folder.mkdir(parents=True)
    (folder / "data.json").write_text(json.dumps({"id": uuid.uuid4().hex, **ABOUT}))
    config = load_config([f"output_dir={folder.parent}", f"tracking.experiment={folder.parent}"])
    settings = {"command": "sesttune sweep", "space": SPACE, "config": to_dict(config)}
    settings["config"]["tracking"]["uri"] = uri
    (folder / "sweep.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(settings)))
    for number in range(1, trials + 1):
        name = f"{number:03d}"
        params = {"training.lr": 1e-4 * number, "training.batch_size": 8}
        write_trial(TrialRecord(name, trial_folder(folder, name), params, "running"))
    return folder


def line(step: int, start: float = 1_700_000_000.0) -> dict[str, float]:
    loss = 10.0 / (1 + step)
    return {
        "step": step,
        "time": start + step,
        "train_loss": math.nan if step == 0 else loss,
        "val_loss": loss,
        "best_val_loss": loss,
        "best_step": step,
        "lr": 1e-4,
        "steps_per_s": 10.0,
        "data_wait_frac": 0.25,
        "gpu_mem_gib": 0.0,
        "startup_s": 2.0,
        "elapsed_s": float(step),
        "system/cpu_utilization_percentage": 50.0 + step,
        "max_steps": 100,
    }


def report(folder: Path, trial: str, steps: range) -> None:
    """Append the report lines of `steps`, one second apart."""
    for step in steps:
        append_metrics(trial_folder(folder, trial), line(step))


def finish(folder: Path, trial: str, status: str = "done", reason: str = "max_steps") -> None:
    """Leave a best checkpoint and close the record."""
    where = trial_folder(folder, trial)
    (where / "checkpoints").mkdir(exist_ok=True)
    save_checkpoint(where / "checkpoints" / "best.ckpt", {"model": {"w": torch.ones(3)}})
    (where / "config.yaml").write_text("training: {}\n")
    update_trial(where, status, reason)


def write_sweep(folder: Path, space: Mapping[str, Any] | None, *settings: str) -> Path:
    """A run folder without trials, with its settings; `space` None is a single training."""
    write_run(folder, trials=0)
    config = to_dict(load_config([f"output_dir={folder.parent}", f"name={folder.name}", *settings]))
    content = {"command": "sesttune sweep", "space": space, "config": config}
    (folder / "sweep.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(content)))
    return folder


def write_curve(
    folder: Path,
    name: str,
    params: Mapping[str, Any],
    losses: Sequence[float],
    reason: str | None = "max_steps",
    *,
    every: int = 100,
    start: float = 1_700_000_000.0,
    schedule: Mapping[str, Any] | None = None,
    **more: float,
) -> None:
    """A trial with a validation each `every` steps: 10 steps/s, then a second to validate.

    It ends for `reason`; None is still running. `more`: fields of every line.
    """
    where = trial_folder(folder, name)
    status = {None: "running", "max_steps": "done"}.get(reason, "stopped")
    write_trial(TrialRecord(name, where, dict(params), status, reason))
    (where / "schedule.json").write_text(json.dumps(dict(schedule or {})))
    best, best_step = math.inf, 0
    for number, loss in enumerate(losses):
        if loss < best:
            best, best_step = loss, number * every
        elapsed = number * (every / 10 + 1.0)
        told = {"val_loss": loss, "best_val_loss": best, "best_step": best_step}
        told |= {"elapsed_s": elapsed, "time": start + elapsed}
        told |= {"steps_per_s": 10.0 if number else 0.0}
        append_metrics(where, {**line(number * every), **told, **more})


def write_result(folder: Path, more_trials: int = 0) -> dict[str, Any]:
    """The file that says the sweep has ended; `more_trials` that are on its leaderboard only."""
    row = {"trial": "001", "best_val_loss": 0.5, "best_step": 9, "last_step": 9}
    row |= {"ended_by": "max_steps", "over_seeds": "0.51 ± 0.02", "seeds": 3, "shares": None}
    row |= {"verdict": "converged", "evidence": "it is flat", "parameters": "lr=1.00e-04"}
    lost = {**row, "trial": "002", "best_val_loss": None, "over_seeds": None, "verdict": None}
    lost |= {"ended_by": "error: lost", "evidence": None}
    board = [row, lost, *({**row, "trial": f"{n:03d}"} for n in range(4, 4 + more_trials))]
    result = {
        "verdict": "converged",
        "evidence": "it is flat",
        "remedy": "training.lr=1e-5",
        "difference": "001 leads 002, but a single training may be luck",
        "cost": {"steps": 12_000, "gpu_s": 7_200.0, "wall_s": 3_720.0, "unit": "GPU-hours"},
        "plan": "took 1:02:00 and 12,000 steps; planned were 1:00:00 (1.03 x) and 11,000",
        "last_at": 1_700_000_100.0,
        "leaderboard": board,
        "repeats": {"003": "001"},
    }
    (folder / "result.json").write_text(json.dumps(result))
    return result
