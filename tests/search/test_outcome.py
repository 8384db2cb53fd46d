import math

import pytest

from sesttune.search.outcome import DONE, OVERFIT, STILL_FALLING, leaderboard, verdict
from sesttune.training.records import TrialRecord, append_metrics, write_trial

WINDOW = 5_000


def curve(points):
    """Report lines from (step, train_loss, val_loss)."""
    return [{"step": s, "train_loss": t, "val_loss": v} for s, t, v in points]


def falling(last_step, rate):
    """val_loss falls by the share `rate` each 5,000 steps, train_loss with it."""
    steps = range(0, last_step + 1, 500)
    return curve([(s, 4 * (1 - rate) ** (s / 5000), 4 * (1 - rate) ** (s / 5000)) for s in steps])


def test_less_than_one_percent_in_5000_steps_is_done():
    label, evidence = verdict(falling(40_000, 0.009), WINDOW)
    assert label == DONE
    assert "0.9 %" in evidence


def test_more_than_one_percent_in_5000_steps_is_still_falling():
    label, evidence = verdict(falling(40_000, 0.011), WINDOW)
    assert label == STILL_FALLING
    assert "1.1 %" in evidence
    assert "5,000 steps" in evidence


def test_the_plans_overfit_is_train_1_2_against_val_3_5():
    assert verdict(curve([(40_000, 1.2, 3.5)]), WINDOW)[0] == OVERFIT


@pytest.mark.parametrize("losses", [(4.5, 4.6), (2.0, 2.3)])
def test_losses_that_lie_together_are_not_overfit(losses):
    flat = curve([(s, *losses) for s in range(0, 40_001, 500)])
    assert verdict(flat, WINDOW)[0] == DONE


def test_val_loss_that_turned_while_training_went_on_is_overfit_and_names_the_best_step():
    points = [(s, 4 - 3 * s / 40_000, 3 + abs(s - 20_000) / 40_000) for s in range(0, 40_001, 500)]
    label, evidence = verdict(curve(points), WINDOW)
    assert label == OVERFIT
    assert "20,000" in evidence


def test_a_gap_does_not_matter_while_val_loss_falls():
    points = [(s, 1.0 - s / 80_000, 4 - 2 * s / 40_000) for s in range(0, 40_001, 500)]
    assert verdict(curve(points), WINDOW)[0] == STILL_FALLING


def test_the_unstable_losses_of_the_plan_are_not_taken_for_falling():
    points = [(s, v, v) for s, v in zip(range(0, 20_000, 5_000), [2.1, 5.3, 1.8, 4.2], strict=True)]
    assert verdict(curve(points), WINDOW)[0] != STILL_FALLING


def test_patience_spent_is_done_however_far_it_fell_before():
    points = [(s, 1.0, max(1.0, 4 - s / 1000)) for s in range(0, 6_001, 500)]
    assert verdict(curve(points), WINDOW)[0] == STILL_FALLING
    assert verdict(curve(points), WINDOW, "patience")[0] == DONE


def test_a_run_shorter_than_the_window_is_judged_from_its_start():
    points = [(0, math.nan, 4.0), (100, 3.5, 3.5), (200, 3.0, 3.0)]
    assert verdict(curve(points), WINDOW)[0] == STILL_FALLING


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
    rows = leaderboard(records)
    assert [row.id for row in rows] == ["003", "002", "001"]
    assert (rows[1].best_val_loss, rows[1].best_step, rows[1].val_loss) == (2.0, 1, 2.5)
    assert math.isnan(rows[2].best_val_loss)
