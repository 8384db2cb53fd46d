import math

import numpy as np
import pytest
from ray.tune.schedulers.async_hyperband import _Bracket

from sesttune.search.asha import Report, Rungs, Stop, geometric


def test_rungs_of_the_plan_are_its_own_stages():
    assert geometric(grace=5_000, eta=4, max_t=60_000) == [5_000, 20_000]


def test_there_is_no_rung_where_no_trial_goes_beyond_it():
    assert geometric(grace=5_000, eta=4, max_t=5_000) == []
    assert geometric(grace=5_000, eta=4, max_t=20_000) == [5_000]


def test_a_trial_worse_than_the_best_quarter_stops_at_its_first_report_on_a_rung():
    rungs = Rungs([5_000, 20_000], 4)
    assert rungs.report(Report("a", 4_500, 9.0, False)) is None
    for trial, loss in [("a", 1.0), ("b", 0.9), ("c", 0.8), ("d", 0.7), ("e", 0.6)]:
        assert rungs.report(Report(trial, 5_000, loss, False)) is None
    assert rungs.report(Report("f", 5_400, 0.71, False)) == Stop(5_000, 0.71, 0.7)
    assert rungs.report(Report("f", 5_500, 0.75, False)) is None, "judged once per rung"
    assert rungs.report(Report("g", 5_000, 0.7, False)) is None, "a tie goes on"


def test_a_trial_at_the_end_of_its_own_budget_is_not_called_stopped():
    rungs = Rungs([5_000, 20_000], 4)
    rungs.report(Report("a", 20_000, 1.0, False))
    assert rungs.report(Report("b", 20_000, 2.0, True)) is None
    assert rungs.recorded[20_000] == {"a": 1.0, "b": 2.0}


def test_a_value_that_is_not_a_number_neither_stops_a_trial_nor_sets_a_cutoff():
    rungs = Rungs([10, 20, 40, 80], 2)
    assert rungs.report(Report("a", 10, float("nan"), False)) is None
    assert rungs.report(Report("b", 10, 5.0, False)) is None
    assert rungs.recorded[10] == {"b": 5.0}


@pytest.mark.parametrize("seed", range(5))
def test_decisions_are_rays_own(seed):
    """Random curves in random order: the same trials stop at the same steps as in Ray."""

    class Trial:
        def __init__(self, trial_id):
            self.trial_id = trial_id

    rng = np.random.default_rng(seed)
    rungs, bracket = Rungs([10, 30, 90], 3), _Bracket(10, 100, 3, 0)
    curves = {
        str(i): np.minimum.accumulate(rng.random(10) + 2 / np.arange(1, 11)) for i in range(40)
    }
    live = {trial: 0 for trial in curves}
    stopped = 0
    while live:
        trial = rng.choice(list(live))
        step, value = 10 * (live[trial] + 1), curves[trial][live[trial]]
        ours = rungs.report(Report(trial, step, value, False)) is not None
        assert ours == (bracket.on_result(Trial(trial), step, -value) == "STOP")
        stopped += ours
        live[trial] += 1
        if ours or live[trial] == 9:
            del live[trial]
    assert stopped > 5


def test_replay_gives_the_same_rungs_and_only_the_stops_not_yet_carried_out():
    made = [
        Report("a", 10, 1.0, False),
        Report("b", 10, 2.0, False),  # worse than a: to be stopped, and never seen again
        Report("c", 10, 3.0, False),  # worse too, but it was seen again, so it was let through
        Report("c", 15, 2.5, False),
        Report("a", 15, 0.9, False),
    ]
    rungs, again = Rungs([10, 20], 2), Rungs([10, 20], 2)
    for report in made:
        rungs.report(report)
    due = again.replay(made)
    assert again.recorded == rungs.recorded
    assert list(due) == ["b"]
    assert again.replay(made) == {}, "replaying twice changes nothing"


def test_a_trial_that_skips_past_rungs_is_judged_at_the_highest_one_it_has_reached():
    rungs = Rungs([10, 20], 2)
    assert rungs.report(Report("a", 25, 1.0, False)) is None
    assert rungs.recorded == {10: {}, 20: {"a": 1.0}}
    assert rungs.report(Report("b", 26, 1.5, False)) == Stop(20, 1.5, 1.0)
    assert rungs.highest("b") == (20, 1.5)
    assert rungs.highest("c") is None


def test_a_late_joiner_meets_all_that_was_recorded_before_it():
    rungs = Rungs([10], 2)
    for trial in range(9):
        rungs.report(Report(str(trial), 10, float(trial), False))
    assert rungs.report(Report("late", 10, 4.5, False)) == Stop(10, 4.5, 4.0)


def test_where_trials_can_go_on_the_first_ones_wait_to_be_compared():
    rungs = Rungs([10, 20], 2, pausing=True)
    first = rungs.report(Report("a", 10, 1.0, False))
    assert first == Stop(10, 1.0, -math.inf)
    assert str(first) == "asha: rung 10, best val_loss 1 waits for others to be compared with"
    assert rungs.report(Report("b", 10, 2.0, False)) == Stop(10, 2.0, 1.0)
    assert rungs.cutoff(10) == 1.0, "a would go on now"
    assert rungs.report(Report("c", 10, 0.5, False)) is None, "the best of three"
    assert rungs.cutoff(10) == 0.5
    assert rungs.report(Report("d", 10, 0.5, False)) is None, "a tie goes on"
    assert rungs.cutoff(10, at_least=3) == 1.0
    assert rungs.cutoff(10, at_least=9) == 2.0
    assert rungs.cutoff(20, at_least=9) == -math.inf
    assert rungs.report(Report("e", 10, math.nan, False)) is None
    assert len(rungs.recorded[10]) == 4


@pytest.mark.parametrize("eta", [2, 3, 4])
def test_where_trials_can_go_on_each_rung_lets_no_more_than_its_share_pass(eta):
    rng = np.random.default_rng(eta)
    rungs = Rungs([10], eta, pausing=True)
    for number, loss in enumerate(rng.permutation(40), start=1):
        rungs.report(Report(str(number), 10, float(loss), False))
        passing = sum(value <= rungs.cutoff(10) for value in rungs.recorded[10].values())
        assert passing == number // eta


def test_a_training_that_is_handed_over_is_recorded_once_and_judged_at_its_highest_rung():
    for pausing in (True, False):
        rungs = Rungs([10, 20], 2, pausing)
        for trial, loss in [("a", 3.0), ("b", 2.0), ("c", 1.0)]:
            rungs.report(Report(trial, 10, loss, True))  # each at its own last step
        assert rungs.hand_over("c", "longer") is None
        assert rungs.recorded[10] == {"a": 3.0, "b": 2.0, "longer": 1.0}
        stop = rungs.hand_over("a", "another")
        assert stop is not None
        assert (stop.rung, stop.value) == (10, 3.0)
        assert rungs.hand_over("unknown", "new") is None
        middle = rungs.hand_over("b", "rest")
        assert (middle is None) != pausing, "Ray's quantile of 1, 2, 3 is 2; half of them is one"


def test_a_stop_names_its_rung_and_numbers():
    assert str(Stop(5000, 4.25, 3.5)) == (
        "asha: rung 5000, best val_loss 4.25 is above the cutoff 3.5"
    )
