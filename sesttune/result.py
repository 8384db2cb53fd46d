"""How a sweep or a training ended: `result.json`, and the leaderboard a person reads."""

import json
import math
import statistics
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sesttune.atomic import write_text
from sesttune.command import program
from sesttune.run_setup import DATA, RESULT, Run
from sesttune.search.outcome import SweepOutcome
from sesttune.training.records import list_trials


def write_result(folder: Path, outcome: SweepOutcome) -> None:
    """Leave `result.json`, which tells MLflow that the run has ended."""
    result = {
        "verdict": outcome.verdict,
        "evidence": outcome.evidence,
        "leaderboard": _rows(outcome),
    }
    write_text(folder / RESULT, json.dumps(result, indent=2))


def show_result(run: Run, outcome: SweepOutcome, console: Console) -> None:
    """Leaderboard, baselines, verdict, and the commands that come next."""
    table = Table(title=f"leaderboard of {run.folder.name}", title_justify="left")
    for column in ("trial", "best val_loss", "at step", "ended by", "parameters"):
        right = column in ("best val_loss", "at step")
        table.add_column(column, justify="right" if right else "left")
    for row in _rows(outcome):
        loss = "-" if row["best_val_loss"] is None else f"{row['best_val_loss']:.4f}"
        cells = (row["trial"], loss, f"{row['best_step']:,}", row["ended_by"], row["parameters"])
        table.add_row(*cells)
    console.print(table)
    about = json.loads((run.folder / DATA).read_text())
    listed = ", ".join(f"{name} {loss:.4f}" for name, loss in about["baselines"].items())
    where = run.config.output_dir
    lines = [
        f"baselines: {listed}",
        f"verdict:   {outcome.verdict or 'no result'}: {outcome.evidence}",
        *_how_trials_ran(run.folder),
        f"browse:    {program()} ui output_dir={where}",
    ]
    failed = [row for row in _rows(outcome) if str(row["ended_by"]).startswith("error")]
    if failed:
        lines.insert(
            0,
            f"failed:    {len(failed)} of {len(outcome.leaderboard)} trials, the first with "
            f"{failed[0]['ended_by']}; {program()} sweep --resume {run.folder.name} "
            f"output_dir={where} tries them again",
        )
    if outcome.best is not None:
        lines.append(
            f"promote:   {program()} promote --sweep {run.folder.name} --output-dir {where}"
        )
    console.print("\n".join(lines), highlight=False, soft_wrap=True)


def _how_trials_ran(folder: Path) -> list[str]:
    """Start-up, where the data lay, and batches that had to be made smaller."""
    records = [record for record in list_trials(folder) if "data" in record.facts]
    if not records:
        return []
    last = [lines[-1] for record in records if (lines := record.metrics())]
    started = [s for line in last if math.isfinite(s := line.get("startup_s", math.nan))]
    start = f"first step after {statistics.median(started):.1f} s (median), " if started else ""
    told = [f"trials:    {start}{records[-1].facts['data']}"]
    small = [record for record in records if "micro_batch" in record.facts]
    if small:
        told.append(
            f"memory:    short in {len(small)} trials, which took fewer cell sets a pass and "
            "more passes a step; results are the same"
        )
    return told


def _rows(outcome: SweepOutcome) -> list[dict[str, Any]]:
    return [
        {
            "trial": row.id,
            "best_val_loss": row.best_val_loss if math.isfinite(row.best_val_loss) else None,
            "best_step": row.best_step,
            "last_step": row.step,
            "ended_by": (row.stop_reason or row.status).partition(",")[0],
            "parameters": _parameters(row.params),
        }
        for row in outcome.leaderboard
    ]


def _parameters(params: dict[str, Any]) -> str:
    parts = []
    for key, value in params.items():
        shown = f"{value:.2e}" if isinstance(value, float) else str(value)
        parts.append(f"{key.rpartition('.')[2]}={shown}")
    return " ".join(parts)
