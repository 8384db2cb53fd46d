"""How a sweep or a training ended: `result.json`, and the leaderboard a person reads."""

import json
import math
import shlex
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from sesttune.command import program, resume_command, show_table
from sesttune.plan_run import against_plan, trained_steps
from sesttune.run_setup import Run
from sesttune.search.budget import read_spent
from sesttune.search.outcome import Row, SweepOutcome, read_baselines
from sesttune.search.recorded import read_schedule
from sesttune.system.atomic import write_text
from sesttune.tracking.describe import short_key
from sesttune.training.records import REPORT, RESULT, list_trials

PLOTS = "plots"
NUMBERS = ("val_loss", "step", "mean ± sd")
"""Columns of the leaderboard that stand to the right."""


def write_result(folder: Path, outcome: SweepOutcome) -> None:
    """Leave `result.json`, which tells MLflow that the run has ended."""
    records = list_trials(folder)
    last = [lines[-1] for record in records if (lines := record.metrics())]
    schedules = {record.id: read_schedule(record.folder) for record in records}
    result = {
        "verdict": outcome.verdict,
        "evidence": outcome.evidence,
        "remedy": outcome.remedy,
        "difference": outcome.difference,
        "baselines": against_baselines(read_baselines(folder), outcome),
        "cost": _cost(folder, last),
        "plan": against_plan(folder),
        "last_at": max((line["time"] for line in last), default=0.0),
        "leaderboard": _rows(outcome),
        "repeats": {name: s["repeats"] for name, s in schedules.items() if "repeats" in s},
    }
    write_text(folder / RESULT, json.dumps(result, indent=2))


def show_result(run: Run, outcome: SweepOutcome, console: Console) -> None:
    """Leaderboard, baselines, verdict, and the commands that come next."""
    show_table(console, _table(run.folder.name, outcome))
    lines = [f"{name + ':':<11}{text}" for name, text in closing_lines(run, outcome)]
    console.print("\n".join(lines))


def closing_lines(run: Run, outcome: SweepOutcome) -> list[tuple[str, str]]:
    """What a person reads at the end, as pairs of a name and a text."""
    known = read_baselines(run.folder)
    listed = ", ".join(f"{name} {loss:.4f}" for name, loss in known.items())
    beaten = against_baselines(known, outcome)
    name, where = shlex.quote(run.folder.name), shlex.quote(run.config.output_dir)
    own = run.config.tracking.uri
    store = f"output_dir={run.config.output_dir}" if own is None else f"tracking.uri={own}"
    report = run.folder / REPORT
    lines = [
        ("baselines", f"{listed}; {beaten}" if beaten else listed),
        ("verdict", f"{outcome.verdict or 'no result'}: {outcome.evidence}"),
        *([("remedy", outcome.remedy)] if outcome.remedy else []),
        *([("finals", outcome.difference)] if outcome.difference else []),
        *_how_trials_ran(run.folder),
        *([("plan", off)] if (off := against_plan(run.folder)) else []),
        *([("report", str(report))] if report.exists() else []),
        ("browse", f"{program()} ui {shlex.quote(store)}"),
    ]
    failed = [row for row in _rows(outcome) if str(row["ended_by"]).startswith("error")]
    if failed:
        again = resume_command("sweep", run.folder.name, run.config.output_dir)
        told = (
            f"{len(failed)} of {len(outcome.leaderboard)} trials, the first with "
            f"{failed[0]['ended_by']}; {again} tries them again"
        )
        lines.insert(0, ("failed", told))
    if outcome.best is not None:
        command = f"{program()} promote --sweep {name} --output-dir {where}"
        lines.append(("promote", command))
    return lines


def against_baselines(known: Mapping[str, float], outcome: SweepOutcome) -> str | None:
    """Whether the best trial beats the lowest of the baselines, and by how much.

    A verdict says so only where nothing else is wrong. By the mean of its draws where it has
    several; None where nothing is to be compared.
    """
    if outcome.best is None or not known:
        return None
    lowest = min(known, key=lambda name: known[name])
    loss = outcome.finals[0].mean if outcome.finals else outcome.best.best_val_loss
    if loss >= known[lowest]:
        return f"{outcome.best.id} is no better than {lowest}, which takes no model"
    less = 100 * (known[lowest] - loss) / abs(known[lowest])
    return f"{outcome.best.id} is {less:.0f} % below {lowest}"


def unfinished(run: Run) -> str | None:
    """What a person must know of a run that has no result: how to bring it to its end."""
    if (run.folder / RESULT).exists():
        return None
    kind = "sweep" if run.space is not None else "train"
    again = resume_command(kind, run.folder.name, run.config.output_dir)
    return (
        f"{run.folder.name} has not ended, this is how far it has come; if it is not running, "
        f"go on with: {again}"
    )


def board_cells(outcome: SweepOutcome) -> tuple[list[str], list[list[str]]]:
    """The leaderboard as text: names of its columns, and a row a trial."""
    columns = [
        "trial",
        "val_loss",
        "step",
        "mean ± sd",
        "verdict",
        "ended by",
        "parameters",
    ]
    if not outcome.finals:
        columns.remove("mean ± sd")
    shown = []
    for row in _rows(outcome):
        loss = "-" if row["best_val_loss"] is None else f"{row['best_val_loss']:.4g}"
        cells = {
            "trial": row["trial"],
            "val_loss": loss,
            "step": f"{row['best_step']:,}",
            "mean ± sd": row["over_seeds"] or "",
            "verdict": row["verdict"] or "-",
            "ended by": row["ended_by"],
            "parameters": row["parameters"],
        }
        shown.append([cells[column] for column in columns])
    return columns, shown


def _table(name: str, outcome: SweepOutcome) -> Table:
    columns, rows = board_cells(outcome)
    table = Table(title=f"leaderboard of {name}", title_justify="left", box=SIMPLE_HEAD)
    for column in columns:
        right = column in NUMBERS
        whole = column not in ("parameters", "ended by")
        table.add_column(
            column, justify="right" if right else "left", no_wrap=whole, overflow="fold"
        )
    for row in rows:
        table.add_row(*row)
    return table


def _how_trials_ran(folder: Path) -> list[tuple[str, str]]:
    """Start-up, where the data lay, and batches that had to be made smaller."""
    records = [record for record in list_trials(folder) if "data" in record.facts]
    if not records:
        return []
    last = [lines[-1] for record in records if (lines := record.metrics())]
    started = [s for line in last if math.isfinite(s := line.get("startup_s", math.nan))]
    start = f"first step after {statistics.median(started):.1f} s (median), " if started else ""
    told = [("trials", f"{start}{records[-1].facts['data']}")]
    small = [record for record in records if "micro_batch" in record.facts]
    if small:
        text = (
            f"short in {len(small)} trials, which took fewer cell sets a pass and "
            "more passes a step; results are the same"
        )
        told.append(("memory", text))
    return told


def _cost(folder: Path, last: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Steps, and where a driver counted them seconds of wall-clock and of GPUs (slots without)."""
    return {"steps": trained_steps(folder), **read_spent(folder), "unit": cost_unit(last)}


def cost_unit(lines: Iterable[Mapping[str, float]]) -> str:
    """The unit of a trial's time, by report lines: of slots where no GPU was used."""
    on_gpus = any(line.get("gpu_mem_gib", 0.0) > 0 for line in lines)
    return "GPU-hours" if on_gpus else "slot-hours"


def _rows(outcome: SweepOutcome) -> list[dict[str, Any]]:
    """The leaderboard as plain values; `mean`, `sd` and `over_seeds` where a trial was repeated.

    The first two are None where a draw diverged, as `over_seeds` says in words.
    """
    finals = {standing.trial: standing for standing in outcome.finals}
    rows = []
    for row in outcome.leaderboard:
        final = finals.get(row.id)
        rows.append(
            {
                "trial": row.id,
                "best_val_loss": row.best_val_loss if math.isfinite(row.best_val_loss) else None,
                "best_step": row.best_step,
                "last_step": row.step,
                "mean": final.mean if final and not final.diverged else None,
                "sd": final.sd if final and not math.isnan(final.sd) else None,
                "over_seeds": str(final) if final else None,
                "seeds": len(final.values) if final else 1,
                "verdict": row.verdict.label if row.verdict else None,
                "evidence": row.verdict.evidence if row.verdict else None,
                "shares": row.shares,
                "ended_by": _ended_by(row),
                "parameters": _parameters(row.params),
            }
        )
    return rows


def _ended_by(row: Row) -> str:
    reason = (row.stop_reason or row.status).partition(",")[0].replace("asha: rung", "asha at")
    return reason if row.shares is None else f"{reason}, with {row.shares}"


def _parameters(params: dict[str, Any]) -> str:
    parts = []
    for key, value in params.items():
        shown = f"{value:.1e}" if isinstance(value, float) else str(value)
        parts.append(f"{short_key(key)}={shown}")
    return " ".join(parts)
