"""What a person reads in MLflow: run names and the Markdown description of a sweep."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sesttune.training.records import TrialRecord

SHORT = {"batch_size": "batch", "max_steps": "steps"}


def trial_name(record: TrialRecord) -> str:
    """`003 lr=3.1e-04 batch=16 steps=40k`."""
    parts = []
    for key, value in record.params.items():
        leaf = key.rpartition(".")[2]
        parts.append(f"{SHORT.get(leaf, leaf)}={_short(value)}")
    return " ".join([record.id, *parts])


def describe_run(folder: Path, about: Mapping[str, Any], result: Mapping[str, Any] | None) -> str:
    """Markdown: what was run on what, how it ended, and how to promote it."""
    lines = [
        f"# {folder.name}",
        "",
        f"**Encoder:** {about['encoder']['label']}",
        "",
        "**Data:**",
        "",
    ]
    lines += [f"- {note}" for note in about["notes"]]
    lines += ["", "**Baselines (validation loss):** "]
    lines += [f"- {name}: {loss:.4g}" for name, loss in about["baselines"].items()]
    if result is None:
        return "\n".join([*lines, "", "Running."])
    lines += ["", f"**Verdict:** {result['verdict']} ({result['evidence']})", ""]
    lines += [
        "| trial | best val_loss | at step | ended by | parameters |",
        "|---|---|---|---|---|",
    ]
    for row in result["leaderboard"]:
        loss = "-" if row["best_val_loss"] is None else f"{row['best_val_loss']:.4g}"
        lines.append(
            f"| {row['trial']} | {loss} | {row['best_step']:,} "
            f"| {row['ended_by']} | {row['parameters']} |"
        )
    return "\n".join([*lines, "", f"Promote: `sesttune promote --sweep {folder.name}`"])


def leaderboard_csv(board: Sequence[Mapping[str, Any]]) -> str:
    """The leaderboard as CSV, which MLflow's pages show as a table."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(board[0]) if board else ["trial"])
    writer.writeheader()
    writer.writerows(board)
    return text.getvalue()


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.1e}" if abs(value) < 0.01 else f"{value:.3g}"
    if isinstance(value, int) and value >= 1_000 and value % 1_000 == 0:
        return f"{value // 1_000}k"
    return str(value)
