"""The report as one HTML file that needs nothing else: no script, no font, no address.

Figures are PNG inside the page on white ground, so that they read in dark mode, too: 2 MB with 200
trials. The page comes in the order of a decision: verdict and next command, what it cost, the
leaderboard, then the figures.
"""

import base64
from collections.abc import Sequence
from html import escape

from sesttune.reporting.figures import Shown
from sesttune.reporting.values import ReportData

COMMANDS = ("promote", "browse")
"""Closing lines that are commands to paste."""
FIRST = ("verdict", "remedy", *COMMANDS)
"""Closing lines that a decision begins with; the others come after the box."""
_NOT_ENDED = (
    "<p><strong>Not ended:</strong> this run is running, or was stopped and goes on with "
    "--resume; there is no verdict yet. What follows is so far.</p>"
)
_STYLE = """
:root { color-scheme: light dark; --ground: #ffffff; --text: #1b1b1b; --soft: #5a5a5a;
  --line: #d5d5d5; --box: #f3f5f7; --accent: #0072B2; }
@media (prefers-color-scheme: dark) { :root { --ground: #16181b; --text: #e8e8e8;
  --soft: #a8adb3; --line: #3a3f45; --box: #22262b; --accent: #56B4E9; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem; max-width: 66rem; background: var(--ground);
  color: var(--text); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .5rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .4rem; border-bottom: 1px solid var(--line); }
.verdict { border-left: .4rem solid var(--accent); background: var(--box); padding: .8rem 1rem; }
.verdict h2 { margin-top: 0; border: 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1rem; margin: .6rem 0 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
code { font: .92em ui-monospace, monospace; }
.wide { overflow: auto; max-height: 34rem; }
table { border-collapse: collapse; font-size: .88rem; }
th, td { text-align: left; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th { position: sticky; top: 0; background: var(--ground); }
.number { text-align: right; font-variant-numeric: tabular-nums; }
figure { margin: 0; } figcaption, .note { color: var(--soft); margin: .2rem 0 .6rem; }
img { display: block; width: 100%; height: auto; background: #fff; border-radius: 4px; }
"""


def page(data: ReportData, figures: Sequence[Shown], numbers: Sequence[str]) -> str:
    """The whole file; `numbers`: columns of the leaderboard that stand to the right."""
    title = f"{escape(data.name)}: sesttune report"
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>",
            f"<header><h1>{escape(data.name)}</h1></header>\n<main>",
            _verdict(data),
            '<section id="cost"><h2>Cost</h2>',
            *(f"<p>{escape(line)}</p>" for line in data.cost),
            "</section>",
            _leaderboard(data, numbers),
            *(_figure(shown) for shown in figures),
            "</main>\n</body>\n</html>\n",
        ]
    )


def _verdict(data: ReportData) -> str:
    texts = dict(data.summary)
    first = [(name, texts[name]) for name in FIRST if name in texts]
    rest = [pair for pair in data.summary if pair[0] not in (*FIRST, "report")]
    running = "" if data.ended else _NOT_ENDED
    return "\n".join(
        [
            f'<section class="verdict"><h2>Verdict and next command</h2>{running}',
            f"<dl>{''.join(_pair(data, *pair) for pair in first)}</dl></section>",
            f"<dl>{''.join(_pair(data, *pair) for pair in rest)}</dl>",
        ]
    )


def _pair(data: ReportData, name: str, text: str) -> str:
    shown = escape(text)
    if name in (*COMMANDS, "remedy"):
        shown = f"<code>{shown}</code>"
    if name == "verdict" and not data.ended:
        name = "leader so far"
    return f"<dt>{escape(name)}</dt><dd>{shown}</dd>"


def _leaderboard(data: ReportData, numbers: Sequence[str]) -> str:
    sides = [' class="number"' if column in numbers else "" for column in data.columns]
    head = "".join(
        f'<th scope="col"{side}>{escape(column)}</th>'
        for column, side in zip(data.columns, sides, strict=True)
    )
    rows = [
        "".join(f"<td{side}>{escape(cell)}</td>" for cell, side in zip(row, sides, strict=True))
        for row in data.rows
    ]
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    return (
        '<section id="leaderboard"><h2>Leaderboard</h2>\n'
        '<div class="wide" tabindex="0" role="region" aria-label="Leaderboard"><table>'
        f"<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div></section>"
    )


def _figure(shown: Shown) -> str:
    heading = f'<section id="{escape(shown.name)}"><h2>{escape(shown.title)}</h2>'
    if shown.png is None:
        return f'{heading}<p class="note">Left out: {escape(shown.why_not or "")}.</p></section>'
    content = base64.b64encode(shown.png).decode()
    return (
        f"{heading}<figure><figcaption>{escape(shown.reading)}</figcaption>\n"
        f'<img alt="{escape(shown.alt)}" src="data:image/png;base64,{content}"></figure></section>'
    )
