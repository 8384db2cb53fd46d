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
    """Markdown: how it ended and how to promote it, then on what; a page shows the first lines."""
    lines = ["Running."] if result is None else _outcome(folder.name, result)
    lines += ["", f"**Encoder:** {about['encoder']['label']}", "", "**Data:**", ""]
    lines += [f"- {note}" for note in about["notes"]]
    lines += ["", "**Baselines (validation loss):**", ""]
    lines += [f"- {name}: {loss:.4g}" for name, loss in about["baselines"].items()]
    return "\n".join(lines)


def _outcome(name: str, result: Mapping[str, Any]) -> list[str]:
    lines = [
        f"**Verdict:** {result['verdict'] or 'no result'}: {result['evidence']}",
        *([f"\n**Remedy:** `{result['remedy']}`"] if result.get("remedy") else []),
        *([f"\n**Finals:** {result['difference']}"] if result.get("difference") else []),
        "",
        f"Promote the best: `sesttune promote --sweep {name}`",
        "",
        "| trial | best val_loss | at step | ended by | parameters |",
        "|---|---|---|---|---|",
    ]
    for row in result["leaderboard"]:
        loss = "-" if row["best_val_loss"] is None else f"{row['best_val_loss']:.4g}"
        lines.append(
            f"| {row['trial']} | {loss} | {row['best_step']:,} "
            f"| {row['ended_by']} | {row['parameters']} |"
        )
    return lines


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
