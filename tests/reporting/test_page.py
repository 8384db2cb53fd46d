"""The page as a parser sees it."""

import re
from dataclasses import replace
from html.parser import HTMLParser

from sesttune.reporting.figures import Shown
from sesttune.reporting.page import page
from sesttune.reporting.values import ReportData

EVIL = "<script>alert('x')</script> & \"more\""
DATA = ReportData(
    name="night <1>",
    ended=True,
    summary=(
        ("baselines", "controls 3.5"),
        ("verdict", "healthy: still falling"),
        ("remedy", "training.max_steps=50000"),
        ("report", "/somewhere/report.html"),
        ("browse", "sesttune ui output_dir=outputs"),
        ("promote", "sesttune promote --sweep night"),
    ),
    cost=("Trained 10 steps, where all 4 points would take 40: 4.0 times less.",),
    columns=("trial", "val_loss", "ended by"),
    rows=(("001", "1.5", "max_steps"), ("002", "-", EVIL)),
    trials=(),
)
FIGURES = [
    Shown("one", "One & only", "Read it so.", 'A "figure"', b"\x89PNG..."),
    Shown("two", "Two", "Read it.", why_not="fewer than two keys are searched"),
]


class Parsed(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1], data.strip()))

    def of(self, tag: str) -> list[str]:
        return [text for where, text in self.texts if where == tag]


def test_everything_is_escaped_and_nothing_is_fetched() -> None:
    text = page(DATA, FIGURES, ["val_loss"])
    found = Parsed(text)
    assert "script" not in [tag for tag, _ in found.tags]
    assert EVIL in found.of("td")
    assert found.of("title") == ["night <1>: sesttune report"]
    assert not re.search(r"""(?:https?:)?//|url\(|@import|<link""", text)
    sources = [values["src"] for tag, values in found.tags if "src" in values]
    assert [source.split(",")[0] for source in sources] == ["data:image/png;base64"]
    assert not [values for _, values in found.tags if "href" in values]


def test_verdict_and_next_commands_come_first_then_cost_and_leaderboard() -> None:
    found = Parsed(page(DATA, FIGURES, ["val_loss"]))
    assert found.of("h2") == [
        "Verdict and next command",
        "Cost",
        "Leaderboard",
        "One & only",
        "Two",
    ]
    assert found.of("dt") == ["verdict", "remedy", "promote", "browse", "baselines"]
    assert found.of("code") == [
        "training.max_steps=50000",
        "sesttune promote --sweep night",
        "sesttune ui output_dir=outputs",
    ]
    assert DATA.cost[0] in found.of("p")
    assert "Left out: fewer than two keys are searched." in found.of("p")


def test_it_can_be_read_without_seeing_it() -> None:
    found = Parsed(page(DATA, FIGURES, ["val_loss"]))
    tags = dict(found.tags)
    assert tags["html"]["lang"] == "en"
    assert [v["scope"] for tag, v in found.tags if tag == "th"] == ["col"] * 3
    assert [v["alt"] for tag, v in found.tags if tag == "img"] == ['A "figure"']
    assert found.of("figcaption") == ["Read it so."]


def test_a_run_that_has_not_ended_says_so_and_claims_no_verdict() -> None:
    found = Parsed(page(replace(DATA, ended=False), FIGURES, []))
    assert found.of("strong") == ["Not ended:"]
    assert "verdict" not in found.of("dt")
    assert "leader so far" in found.of("dt")
