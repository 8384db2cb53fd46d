import json
import math

import pytest

from sesttune.config.load import load_config
from sesttune.result import against_baselines, write_result
from sesttune.search.outcome import leaderboard, read_outcome
from sesttune.training.records import (
    TrialRecord,
    append_metrics,
    trial_folder,
    update_trial,
    write_trial,
)

CONFIG = load_config(["training.max_steps=2"])


def test_the_leaderboard_is_by_best_val_loss_and_trials_without_one_come_last(tmp_path):
    def trial(name, losses, status="done"):
        record = write_trial(TrialRecord(name, tmp_path / name, {"training.lr": 1e-4}, status))
        for step, loss in enumerate(losses):
            line = {"step": step, "train_loss": 1.0, "val_loss": loss, "time": step}
            best = min(losses[: step + 1])
            append_metrics(
                record.folder,
                {**line, "best_val_loss": best, "best_step": losses.index(best)},
            )
        return record

    records = [trial("001", [], "failed"), trial("002", [3.0, 2.0, 2.5]), trial("003", [1.0])]
    rows = leaderboard(records, CONFIG)
    assert [row.id for row in rows] == ["003", "002", "001"]
    assert (rows[1].best_val_loss, rows[1].best_step) == (2.0, 1)
    assert math.isnan(rows[2].best_val_loss)


def write(folder, name, losses, params=None, pace=1, **schedule):
    """A trial that was trained to its end, and what the schedule remembers of it.

    `pace`: seconds a step; below 0 the clock was set back meanwhile.
    """
    where = trial_folder(folder, name)
    params = {"training.lr": float(name)} | (params or {})
    write_trial(TrialRecord(name, where, params, "done", "max_steps"))
    for step, loss in enumerate(losses):
        line = {"step": step, "train_loss": loss, "val_loss": loss, "best_val_loss": loss}
        append_metrics(where, {**line, "best_step": step, "time": 1_700_000_000 + pace * step})
    (where / "schedule.json").write_text(json.dumps(schedule))


@pytest.mark.parametrize("pace", [1, -1])
def test_the_winner_is_the_finalist_with_the_best_mean_not_the_luckiest_single_run(tmp_path, pace):
    write(tmp_path, "001", [3.0, 2.0, 1.0], pace=pace)
    write(tmp_path, "002", [3.0, 2.0, 1.1], pace=pace)
    write(tmp_path, "003", [3.0, 2.0, 1.2], pace=pace)
    for name, of, loss in (("004", "001", 1.5), ("005", "002", 1.12)):
        write(tmp_path, name, [3.0, 2.0, loss], {"training.replicate": 1}, pace, repeats=of)
    outcome = read_outcome(tmp_path, CONFIG)
    assert [row.id for row in outcome.leaderboard] == ["002", "001", "003"]
    assert outcome.best.id == "002"
    assert [(s.trial, pytest.approx(s.mean)) for s in outcome.finals] == [
        ("002", 1.11),
        ("001", 1.25),
    ]
    assert outcome.difference.startswith("002 and 001 differ by noise only")
    assert outcome.verdict == "healthy"
    assert outcome.remedy == "training.max_steps=3"


def test_a_result_says_in_valid_json_that_a_finalist_diverged(tmp_path):
    write(tmp_path, "001", [3.0, 2.0, 1.0])
    write(tmp_path, "002", [3.0, 2.0, 1.1])
    write(tmp_path, "003", [3.0, 2.0, 1.9], {"training.replicate": 1}, repeats="001")
    write(tmp_path, "004", [3.0, 2.0, 1.2], {"training.replicate": 1}, repeats="002")
    update_trial(trial_folder(tmp_path, "003"), "failed", "nan")
    write_result(tmp_path, read_outcome(tmp_path, CONFIG))
    text = (tmp_path / "result.json").read_text()
    assert "Infinity" not in text, "no JSON outside Python"
    rows = {row["trial"]: row for row in json.loads(text)["leaderboard"]}
    assert list(rows) == ["002", "001"]
    assert rows["001"]["over_seeds"] == "diverged with 1 of 2 seeds"
    assert (rows["001"]["mean"], rows["002"]["mean"]) == (None, pytest.approx(1.15))


def test_of_one_training_the_trial_that_has_the_checkpoint_ranks_first(tmp_path):
    write(tmp_path, "001", [3.0, 1.0], shares="002")
    write(tmp_path, "002", [3.0, 1.0])
    assert read_outcome(tmp_path, CONFIG).best.id == "002"


def test_a_sweep_without_a_result_has_no_best(tmp_path):
    write_trial(TrialRecord("001", trial_folder(tmp_path, "001"), {}, "failed", "error: x"))
    outcome = read_outcome(tmp_path, CONFIG)
    assert (outcome.best, outcome.verdict, outcome.evidence) == (
        None,
        None,
        "no trial has a result",
    )


def test_a_result_says_whether_the_best_trial_beats_what_takes_no_model(tmp_path):
    known = {"mean_of_controls": 4.0, "controls": 1.5}
    write(tmp_path, "001", [3.0, 1.25, 1.2])
    (tmp_path / "data.json").write_text(json.dumps({"baselines": known}))
    write_result(tmp_path, read_outcome(tmp_path, CONFIG))
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["baselines"] == "001 is 20 % below controls"
    # the mean of its draws counts, not its luckiest
    write(tmp_path, "002", [3.0, 2.0, 1.9], {"training.replicate": 1}, repeats="001")
    worse = "001 is no better than controls, which takes no model"
    assert against_baselines(known, read_outcome(tmp_path, CONFIG)) == worse
    update_trial(trial_folder(tmp_path, "002"), "failed", "nan")
    assert against_baselines(known, read_outcome(tmp_path, CONFIG)) == worse
    assert against_baselines({}, read_outcome(tmp_path, CONFIG)) is None


def test_a_trial_is_underfit_where_it_does_not_beat_the_lowest_of_the_baselines(tmp_path):
    write(tmp_path, "001", [3.0] * 3)
    for lowest, verdict in ((2.0, "underfit"), (4.0, "converged")):
        baselines = {"controls": 5.0, "perturbation_mean": lowest}
        (tmp_path / "data.json").write_text(json.dumps({"baselines": baselines}))
        assert read_outcome(tmp_path, CONFIG).verdict == verdict


def test_more_steps_are_advised_at_the_end_of_a_trials_own_budget_only(tmp_path):
    write(tmp_path, "001", [3.0, 2.0, 1.0], {"training.max_steps": 2})
    metrics = trial_folder(tmp_path, "001") / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    for budget, remedy in ((2, "training.max_steps=3"), (40, None)):
        metrics.write_text("".join(f"{json.dumps(x | {'max_steps': budget})}\n" for x in lines))
        outcome = read_outcome(tmp_path, CONFIG)
        assert (outcome.verdict, outcome.remedy) == ("healthy", remedy)
