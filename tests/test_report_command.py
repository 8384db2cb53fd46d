"""`sesttune report` on run folders that the program's own functions wrote."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from helpers.browser import open_browser
from helpers.run_folder import write_curve, write_result, write_sweep

from sesttune.command import run as run_command
from sesttune.report import main, try_report
from sesttune.report_data import read_report
from sesttune.reporting.values import DONE, OPEN, PATIENCE, RUNG, Moment, ReportData
from sesttune.run_setup import open_run
from sesttune.search.outcome import read_outcome

LR, BATCH, STEPS = "training.lr", "training.batch_size", "training.max_steps"
GRID = {
    LR: {"type": "choice", "values": [1e-4, 2e-4, 3e-4]},
    BATCH: {"type": "choice", "values": [8, 16]},
    STEPS: {"type": "choice", "values": [200, 400]},
}
RANGE = {**GRID, LR: {"type": "loguniform", "low": 1e-5, "high": 1e-3}}


def point(lr: float, batch: int = 8, steps: int = 400, **more: Any) -> dict[str, Any]:
    return {LR: lr, BATCH: batch, STEPS: steps, **more}


def space(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {"searcher": "gp", "num_trials": 4, "parameters": dict(parameters), "constraints": []}


def write(folder: Path, parameters: Mapping[str, Any] = GRID, *settings: str) -> Path:
    """Four trials, one of them the beginning of another, and a repeat of the best."""
    write_sweep(folder, space(parameters), *settings)
    write_curve(folder, "001", point(1e-4), [9.0, 4.0, 3.0, 2.5, 2.0])
    write_curve(folder, "002", point(2e-4), [9.0, 5.0], "asha: rung 100, best", start=1.7e9 + 5)
    write_curve(folder, "003", point(3e-4, 16), [9.0, 6.0, 6.5], "patience", start=1.7e9 + 100)
    write_curve(folder, "004", point(1e-4, steps=200), [9.0, 4.0, 3.0], schedule={"shares": "001"})
    again = point(1e-4) | {"training.replicate": 1}
    write_curve(folder, "005", again, [9.0, 1.0], start=1.7e9 + 200, schedule={"repeats": "001"})
    (folder / "spent.json").write_text(json.dumps({"wall_s": 300.0, "gpu_s": 400.0}))
    return folder


def read(folder: Path) -> ReportData:
    known = open_run(str(folder.parent), folder.name)
    return read_report(known, read_outcome(folder, known.config), ended=True)


def test_a_run_folder_is_read_whole(tmp_path: Path) -> None:
    data = read(write(tmp_path / "night"))
    trials = {trial.id: trial for trial in data.trials}
    assert list(trials) == ["001", "004", "002", "003", "005"]
    assert trials["001"].steps == (0, 100, 200, 300, 400)
    assert trials["001"].losses == (9.0, 4.0, 3.0, 2.5, 2.0)
    ends = {name: trial.ended for name, trial in trials.items()}
    assert ends == {"001": DONE, "002": RUNG, "003": PATIENCE, "004": DONE, "005": DONE}
    assert (trials["004"].shares, trials["005"].repeats) == ("001", "001")
    assert [trial.id for trial in data.ranked] == ["001", "004", "002", "003"]
    assert data.baseline == ("controls", 3.5)
    assert [(axis.name, axis.values) for axis in data.axes] == [
        ("lr", (1e-4, 2e-4, 3e-4)),
        ("batch", (8, 16)),
        ("steps", (200, 400)),
    ]
    assert data.importance_missing == "4 trials have a result, it takes 6"
    # 40 s of steps, a quarter waiting; validations after the first one of 1 s each; start-up 2 s.
    spent = trials["001"].time
    assert spent is not None
    parts = (spent.computing_s, spent.waiting_s, spent.validating_s, spent.startup_s)
    assert parts == pytest.approx((30.0, 10.0, 3.0, 2.0))
    assert trials["004"].time is None


def test_hours_count_each_training_once_in_the_order_of_time(tmp_path: Path) -> None:
    data = read(write(tmp_path / "night"))
    assert data.unit == "slot-hours"
    # Each 100 steps take 11 s; 001 begins at 0 s, 002 at 5 s, 003 at 100 s, the repeat at 200 s.
    seconds = [moment.hours * 3600 for moment in data.progress]
    assert seconds == pytest.approx([0, 0, 11, 22, 33, 44, 55, 55, 66, 77, 77, 88])
    best = [moment.best for moment in data.progress]
    assert best == [9, 9, 4, 4, 3, 2.5, 2, 2, 2, 2, 2, 2]  # the repeat's 1.0 is not the winner's
    assert data.found == Moment(pytest.approx(55 / 3600), 2.0)


@pytest.mark.parametrize(
    ("share", "factor"), [("0.5", 0.5), ("auto", 0.25)], ids=["as set", "as measured"]
)
def test_gpu_hours_are_those_of_a_share(tmp_path: Path, share: str, factor: float) -> None:
    folder = write_sweep(tmp_path / "night", space(GRID), f"sweep.gpus_per_trial={share}")
    (folder / "packing.json").write_text(json.dumps({"trials_per_gpu": 4}))
    write_curve(folder, "001", point(1e-4), [9.0, 4.0, 3.0], gpu_mem_gib=20.0)
    data = read(folder)
    assert data.unit == "GPU-hours"
    assert data.progress[-1].hours == pytest.approx(factor * 22 / 3600)


def test_steps_are_compared_with_the_full_grid(tmp_path: Path) -> None:
    first, second = read(write(tmp_path / "night")).cost
    # 400 + 100 + 200 + the repeat's 100; 3 x 2 points of 200 steps and as many of 400.
    assert first == (
        "Trained 800 steps, where all 12 points of the space, each to its max_steps, would take "
        "3,600: 4.5 times less."
    )
    assert second.startswith("100 of these steps repeated the finalists")
    assert second.endswith("the search alone took 700, 5.1 times less.")


def test_a_range_has_no_grid_and_is_compared_with_its_trials(tmp_path: Path) -> None:
    first, _ = read(write(tmp_path / "night", RANGE)).cost
    assert first == (
        "Trained 800 steps, where the 4 trials that were searched, each to its max_steps, would "
        "take 1,400: 1.8 times less. There is no full grid of a range (lr)."
    )


def test_what_an_earlier_sweep_trained_costs_nothing(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "second", space(GRID))
    earlier = write_sweep(folder / "earlier", space(GRID))  # what it keeps of `first`
    write_curve(earlier, "001", point(1e-4, steps=200), [9.0, 4.0, 3.0])
    write_curve(
        folder,
        "001",
        point(1e-4),
        [9.0, 4.0, 3.0, 2.5, 2.0],
        schedule={"continues": "first/001", "shares": "002"},
    )
    # The second trial took the training over from the first, which had continued an earlier one.
    taken = point(1e-4, steps=600)
    losses = [9.0, 4.0, 3.0, 2.5, 2.0, 1.5]
    write_curve(folder, "002", taken, losses, schedule={"continues": "001"})
    data = read(folder)
    assert data.progress[-1].hours == pytest.approx(33 / 3600)
    assert data.cost[0].startswith("Trained 300 steps, ")
    assert data.trials[0].steps == (0, 100, 200, 300, 400, 500)


def test_the_command_leaves_a_page_and_figures_that_a_browser_shows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / "night")
    for number in range(6, 10):
        params = point(3e-4, 16, 200)
        write_curve(folder, f"{number:03d}", params, [9.0, 5.0 + number], "asha: rung 100, x")
    write_result(folder)
    assert run_command(main, ["--sweep", "night", "--output-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"report: {folder}/report.html\n"
    names = {
        "best-so-far",
        "heat-map",
        "learning-curves",
        "parallel-coordinates",
        "parameter-importance",
        "step-times",
    }
    assert {path.stem for path in (folder / "plots").iterdir()} == names
    with open_browser() as page:
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto((folder / "report.html").as_uri())
        for name in names:
            image = page.locator(f"#{name} img")
            assert image.is_visible()
            # Blank is one colour; axes, lines and text are several.
            colours = image.evaluate(
                """image => {
                    const canvas = document.createElement("canvas");
                    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
                    const context = canvas.getContext("2d");
                    context.drawImage(image, 0, 0);
                    const pixels = context.getImageData(0, 0, canvas.width, canvas.height).data;
                    const seen = new Set();
                    for (let i = 0; i < pixels.length; i += 4)
                        seen.add((pixels[i] << 16) | (pixels[i + 1] << 8) | pixels[i + 2]);
                    return seen.size;
                }"""
            )
            assert colours > 20, name
        assert page.evaluate("document.body.scrollWidth <= window.innerWidth")
        assert [url for url in asked if not url.startswith(("file:", "data:"))] == []


def test_a_damaged_run_folder_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_sweep(tmp_path / "night", space(GRID))
    (folder / "data.json").write_text('{"manifest": "cut')
    assert run_command(main, ["--sweep", "night", "--output-dir", str(tmp_path)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "sweep.yaml or data.json is damaged" in line


@pytest.mark.parametrize("name", ["spent.json", "plan.json", "trials/001/schedule.json"])
@pytest.mark.parametrize("content", ["", '{"cut', "3"])
def test_a_damaged_file_of_a_sweep_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: str
) -> None:
    folder = write(tmp_path / "night")
    (folder / name).write_text(content)
    assert run_command(main, ["--sweep", "night", "--output-dir", str(tmp_path)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert f"{folder / name} is damaged: " in line


def test_a_running_sweep_and_a_single_training_have_a_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_sweep(tmp_path / "night", space(GRID))
    write_curve(folder, "001", point(1e-4), [9.0, 4.0], None)
    single = write_sweep(tmp_path / "single", None)
    write_curve(single, "001", {}, [9.0, 4.0, 3.0])
    write_result(single)
    for run, running, figures in ((folder, True, 3), (single, False, 3)):
        options = ["--sweep", run.name, "--output-dir", str(tmp_path)]
        assert run_command(main, [*options, "--output", str(tmp_path / "out.html")]) == 0
        shown = capsys.readouterr().out
        assert ("go on with: " in shown and "sweep --resume night" in shown) == running
        text = (tmp_path / "out.html").read_text()
        assert ("Not ended:" in text) == running
        assert text.count("<img") == figures
        assert not (run / "plots").exists()  # --output is the page alone
    assert "400 steps" not in text
    assert "<p>200 steps are trained.</p>" in text
    assert read(folder).trials[0].ended == OPEN


def test_a_sweep_without_any_result_has_a_report(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "night", space(GRID))
    write_curve(folder, "001", point(1e-4), [], "error: lost")
    assert run_command(main, ["--sweep", "night", "--output-dir", str(tmp_path)]) == 0
    text = (folder / "report.html").read_text()
    assert "no result: no trial has a result" in text
    assert text.count("<img") == 0
    assert text.count("Left out:") == 6
    assert list((folder / "plots").iterdir()) == []


def test_figures_that_are_no_longer_drawn_go(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "night", space(GRID))
    (folder / "plots").mkdir()
    (folder / "plots" / "heat-map.png").write_bytes(b"old")
    write_curve(folder, "001", point(1e-4), [9.0, 4.0])
    assert run_command(main, ["--sweep", "night", "--output-dir", str(tmp_path)]) == 0
    assert not (folder / "plots" / "heat-map.png").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sweep", "nihgt"], "no run 'nihgt' in"),
        (["--sweep", "night", "--output", "out.pdf"], "--output out.pdf must end in .html"),
        (["--sweep", "night", "--output", "/nowhere/out.html"], "/nowhere is not a folder"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    write(tmp_path / "night")
    assert run_command(main, [*options, "--output-dir", str(tmp_path)]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1


def test_a_report_that_fails_costs_a_sweep_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write(tmp_path / "night")
    known = open_run(str(tmp_path), "night")
    outcome = read_outcome(folder, known.config)
    (folder / "plots").write_text("a file where the folder should be")
    try_report(known, outcome)
    assert len(caplog.messages) == 1
    assert "report --sweep night" in caplog.messages[0]
    assert not (folder / "report.html").exists()


def test_nobody_imports_matplotlib_before_a_report_is_made() -> None:
    script = (
        "import sys; import sesttune.sweep, sesttune.report, sesttune.result, sesttune.train;"
        "import sesttune.tracking.sync, sesttune.search.driver;"
        "print('matplotlib' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
