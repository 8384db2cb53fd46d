"""What a person sees: `sesttune ui` over a real store, in a real browser."""

import json
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.browser import open_browser
from helpers.run_folder import finish, report, write_result, write_run
from playwright.sync_api import Page, expect

from sesttune.command import run as run_command
from sesttune.tracking import views
from sesttune.tracking.spool import read_cursor
from sesttune.tracking.sync import RunTracker
from sesttune.ui import main

COUNT = 12
"""Trials; MLflow's charts show ten unless they are told otherwise."""
TRIALS = {f"{n:03d}": f"{n:03d} lr={n}.0e-04 batch=8" for n in range(1, 10)}
TRIALS |= {f"{n:03d}": f"{n:03d} lr={n / 10:.1f}e-03 batch=8" for n in range(10, COUNT + 1)}
BEST_FIRST = ["002", "001", "003", *list(TRIALS)[3:]]
STEPS = {trial: 30 - place for place, trial in enumerate(BEST_FIRST)}
"""Of each trial; more steps have a lower loss."""
ERROR = "error: unsupported for |: 'int' & <b>"
"""What Markdown would take for columns, and a browser for letters in bold."""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The addresses that `sesttune ui` prints for a finished sweep."""
    outputs = tmp_path_factory.mktemp("pages")
    folder = write_run(outputs / "sweep-to-see", COUNT)
    for trial in TRIALS:
        report(folder, trial, range(0, STEPS[trial]))
        finish(folder, trial)
    result = write_result(folder)
    result["leaderboard"][1]["ended_by"] = ERROR
    (folder / "result.json").write_text(json.dumps(result))
    RunTracker(folder, f"sqlite:///{outputs}/mlflow.db", "sesttune").sync()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "sesttune.ui", "--port", str(port), f"output_dir={outputs}"]
    ui = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert ui.stdout is not None
    found = dict(ui.stdout.readline().split() for _ in range(4))
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
            break
        except OSError:
            time.sleep(0.2)
    yield found
    ui.terminate()
    ui.wait()


@pytest.fixture
def browser_page() -> Iterator[Page]:
    """A new browser: within one tab, MLflow would keep what the page before had chosen."""
    with open_browser() as page:
        yield page


def test_the_runs_page_shows_the_sweep_with_its_trials_under_it(
    pages: dict[str, str], browser_page: Page
) -> None:
    browser_page.goto(pages["runs:"])
    sweep = browser_page.get_by_role("row").filter(has_text="sweep-to-see")
    expect(sweep).to_be_visible()
    for name in TRIALS.values():
        expect(browser_page.get_by_text(name)).to_have_count(0)
    sweep.get_by_role("button").first.click()  # unfold
    for name in TRIALS.values():
        expect(browser_page.get_by_text(name)).to_be_visible()


def test_the_ranked_page_lists_all_trials_best_first_with_what_matters(
    pages: dict[str, str], browser_page: Page
) -> None:
    browser_page.goto(pages["ranked:"])
    names = browser_page.get_by_role("link", name=re.compile("^00"))
    expect(names.nth(8)).to_be_attached()
    shown = names.all_inner_texts()  # the table makes the rows that fit
    assert shown == [TRIALS[trial] for trial in BEST_FIRST][: len(shown)]
    for column in ("best_val_loss", "best_step", "verdict", "stop_reason"):
        expect(browser_page.get_by_role("columnheader", name=column).first).to_be_visible()


def test_the_curves_page_draws_every_trial(pages: dict[str, str], browser_page: Page) -> None:
    browser_page.goto(pages["curves:"])
    chart = browser_page.get_by_test_id("draggable-chart-cards-grid").filter(has_text="val_loss")
    for name in TRIALS.values():
        expect(chart.get_by_text(f"{name} (val_loss)", exact=True)).to_be_attached()
    lines = chart.locator(".scatterlayer .trace path.js-line")
    expect(lines.nth(COUNT - 1)).to_be_attached()
    expect(browser_page.locator(".js-plotly-plot")).to_have_count(1)  # no other metric's chart


def test_the_description_leads_to_the_winner_and_its_machine(
    pages: dict[str, str], browser_page: Page
) -> None:
    browser_page.goto(pages["latest:"])
    expect(browser_page.get_by_role("heading", name="sweep-to-see")).to_be_visible()
    for part in ("Verdict:", "it is flat", "2 GPU-hours", "planned were 1:00:00", "log scale"):
        expect(browser_page.get_by_text(part).first).to_be_visible()
    browser_page.get_by_text("Show more").click()
    with browser_page.expect_popup() as opened:
        browser_page.get_by_role("link", name="001", exact=True).first.click()
    cells = browser_page.get_by_role("row").filter(has_text="error:").get_by_role("cell")
    assert [cell.strip() for cell in cells.all_inner_texts()][-2:] == [ERROR, "lr=1.00e-04"]
    winner = opened.value
    expect(winner.get_by_role("heading", name=TRIALS["001"])).to_be_visible()
    winner.get_by_role("tab", name="System metrics").click()
    expect(winner.get_by_text("cpu_utilization_percentage").first).to_be_visible()
    expect(winner.locator(".scatterlayer .trace path.js-line").first).to_be_attached()


def test_the_server_listens_on_this_machine_only(pages: dict[str, str]) -> None:
    assert all(address.startswith("http://127.0.0.1:") for address in pages.values())


def test_a_sweep_of_more_trials_than_are_looked_at_is_the_latest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "LATEST", 2)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    for name in ("earlier", "latest"):
        folder = write_run(tmp_path / name, trials=2)
        RunTracker(folder, uri, "sesttune").sync()
    parent = read_cursor(folder)["parent"]
    assert f"/runs/{parent}?" in views.pages(uri, "sesttune", "http://here")["latest"]


def test_a_port_that_is_taken_is_said_before_any_address(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_run(tmp_path / "sweep", trials=0)
    RunTracker(folder, f"sqlite:///{tmp_path}/mlflow.db", "sesttune").sync()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert run_command(main, ["--port", str(port), f"output_dir={tmp_path}"]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert f"127.0.0.1:{port} cannot be listened on (Address already in use" in told.err
    assert run_command(main, ["--port", "70000", f"output_dir={tmp_path}"]) == 2
    assert "127.0.0.1:70000 cannot be listened on" in capsys.readouterr().err


def test_an_empty_store_is_said_to_be_empty(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(main, [f"output_dir={tmp_path}/none"]) == 2
    assert "nothing is tracked in" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
