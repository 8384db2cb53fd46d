"""What a person reads in MLflow: run names, tags, and the Markdown description of a sweep."""

import csv
import io
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sesttune.training.records import TrialRecord, read_settings

_SHORT = {"batch_size": "batch", "max_steps": "steps"}
NOTE_LIMIT = 8_000
"""Characters MLflow keeps of a tag, in every store; the rest it cuts off without a word."""
NAME_LIMIT = 250
"""Characters of a run's name: PostgreSQL and MySQL refuse more, and with it the run."""
ROWS, NOTES = 20, 10
"""Rows of the leaderboard and lines about the data that a description shows at most."""


def trial_name(record: TrialRecord) -> str:
    """`003 lr=3.1e-04 batch=16 steps=40k`, and no more than MLflow's databases take."""
    parts = [f"{short_key(key)}={_short(value)}" for key, value in record.params.items()]
    name = " ".join([record.id, *parts])
    return name if len(name) <= NAME_LIMIT else f"{name[: NAME_LIMIT - 1]}…"


def short_key(key: str) -> str:
    """`batch` for `training.batch_size`."""
    leaf = key.rpartition(".")[2]
    return _SHORT.get(leaf, leaf)


def trial_tags(result: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """By trial: its verdict with evidence, whose training it shares, whose repetition it is."""
    tags: dict[str, dict[str, str]] = {}
    for row in result["leaderboard"]:
        named = {"verdict": row["verdict"], "evidence": row["evidence"], "shares": row["shares"]}
        tags[row["trial"]] = {key: value for key, value in named.items() if value}
    for trial, of in result["repeats"].items():
        tags[trial] = {"repeats": of}
    return tags


def describe_run(
    folder: Path,
    about: Mapping[str, Any],
    result: Mapping[str, Any] | None,
    links: Mapping[str, str] | None = None,
) -> str:
    """Markdown: how it ended and how to promote it, then on what; a page shows the first lines.

    `links`: the page of each trial. As many rows of the leaderboard as `NOTE_LIMIT` leaves room
    for.
    """
    rest = [*_searched(folder), *_trained_on(about)]
    for rows in range(ROWS, -1, -1):
        how = ["Running."] if result is None else _outcome(folder.name, result, links or {}, rows)
        text = "\n".join([*how, *rest])
        if len(text) <= NOTE_LIMIT:
            break
    return text[:NOTE_LIMIT]


def _outcome(
    name: str, result: Mapping[str, Any], links: Mapping[str, str], rows: int
) -> list[str]:
    board = result["leaderboard"]
    lines = [f"**Verdict:** {result['verdict'] or 'no result'}: {result['evidence']}"]
    if board and board[0]["best_val_loss"] is not None:
        best = board[0]
        lines += [
            "",
            f"**Winner:** {_linked(best['trial'], links)} {best['parameters']}".rstrip()
            + f", val_loss {best['best_val_loss']:.4g} at step {best['best_step']:,}; "
            f"promote it: `sesttune promote --sweep {shlex.quote(name)}`",
        ]
    if result.get("remedy"):
        lines += ["", f"**Remedy:** `{result['remedy']}`"]
    if result.get("difference"):
        lines += ["", f"**Finals:** {result['difference']}"]
    if result.get("baselines"):
        lines += ["", f"**Without a model:** {result['baselines']}"]
    lines += ["", f"**Cost:** {_cost(result['cost'])}"]
    if result.get("plan"):
        lines += ["", f"**Plan and actual:** {result['plan']}"]
    return lines + _leaderboard(board, links, rows)


def _leaderboard(
    board: Sequence[Mapping[str, Any]], links: Mapping[str, str], rows: int
) -> list[str]:
    lines = [
        "",
        "| rank | trial | val_loss | at step | mean ± sd | verdict | ended by | parameters |",
        "|---:|---|---:|---:|---:|---|---|---|",
    ]
    for rank, row in enumerate(board[:rows], 1):
        loss = "-" if row["best_val_loss"] is None else f"{row['best_val_loss']:.4g}"
        cells = [
            str(rank),
            _linked(row["trial"], links),
            loss,
            f"{row['best_step']:,}",
            row["over_seeds"] or "",
            row["verdict"] or "-",
            _in_cell(row["ended_by"]),
        ]
        # MLflow's pages leave no room between columns.
        lines.append(f"| {'&nbsp; | '.join(cells)}&nbsp; | {_in_cell(row['parameters'])} |")
    if len(board) > rows:
        lines += ["", f"and {len(board) - rows:,} more in leaderboard.csv"]
    return lines


def _searched(folder: Path) -> list[str]:
    """The searched keys and their ranges, from the settings of the run."""
    space = read_settings(folder).get("space")
    if not space:
        return []
    lines = ["", f"**Space** ({space['searcher']}, {space['num_trials']} trials):", ""]
    for key, about in space["parameters"].items():
        when = [f"{k} is {' or '.join(map(str, v))}" for k, v in about.get("when", {}).items()]
        lines.append(f"- {key}: {range_of(about)}{' where ' if when else ''}{' and '.join(when)}")
    return [*lines, *(f"- only where {rule}" for rule in space.get("constraints", ()))]


def range_of(about: Mapping[str, Any]) -> str:
    """The values that a search takes of a key, as its space describes it."""
    if "values" in about:
        return ", ".join(map(_short, about["values"]))
    scale = ", log scale" if about["type"] == "loguniform" else ""
    step = f" in steps of {_short(about['quantum'])}" if "quantum" in about else ""
    return f"{_short(about['low'])} to {_short(about['high'])}{step}{scale}"


def _trained_on(about: Mapping[str, Any]) -> list[str]:
    notes = about["notes"]
    lines = ["", f"**Encoder:** {about['encoder']['label']}", "", "**Data:**", ""]
    lines += [f"- {note}" for note in notes[:NOTES]]
    if len(notes) > NOTES:
        lines.append(f"- and {len(notes) - NOTES} more notes in data.json")
    lines += ["", "**Baselines (validation loss):**", ""]
    return lines + [f"- {name}: {loss:.4g}" for name, loss in about["baselines"].items()]


def _cost(cost: Mapping[str, Any]) -> str:
    parts = [f"{cost['steps']:,} steps"]
    if "gpu_s" in cost:
        parts.append(f"{cost['gpu_s'] / 3600:.3g} {cost['unit']}")
        minutes = round(cost["wall_s"] / 60)
        parts.append(f"wall-clock {minutes // 60} h {minutes % 60} min")
    return ", ".join(parts)


def _linked(trial: str, links: Mapping[str, str]) -> str:
    return f"[{trial}]({links[trial]})" if trial in links else trial


def _in_cell(text: str) -> str:
    """Text from elsewhere, such as an error's, which would end the cell or be taken for HTML."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "&#124;")


def leaderboard_csv(board: Sequence[Mapping[str, Any]]) -> str:
    """The leaderboard as CSV, which MLflow's pages show as a table."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(board[0]) if board else ["trial"])
    writer.writeheader()
    writer.writerows(board)
    return text.getvalue()


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.1e}" if value and abs(value) < 0.01 else f"{value:.3g}"
    if isinstance(value, int) and value >= 1_000 and value % 1_000 == 0:
        return f"{value // 1_000}k"
    return str(value)
