import math

import pytest

from sesttune.search.finals import (
    Standing,
    difference,
    finalists,
    missing_draw,
    standings,
    untried_remedy,
)
from sesttune.search.trial_state import ENDED, TrialState


def trial(name, loss, reason="max_steps", lr=None, **about):
    found = TrialState(name, {"training.lr": lr or name}, 100, 100, state=ENDED, **about)
    found.take(100, loss)
    found.reason = reason
    return found


def draw(name, of, replicate, loss, reason="max_steps"):
    found = trial(name, loss, reason, repeats=of)
    found.point = {"training.replicate": replicate}
    return found


def by_lr(trial):
    return trial.point["training.lr"]


def test_finalists_are_the_best_trained_to_their_end_one_of_each_training():
    trials = [
        trial("1", 0.5),
        trial("2", 0.1, "asha: rung 5"),
        trial("3", float("nan"), "nan"),
        trial("4", 0.4, "patience"),
        trial("5", 0.4, lr="4", shares="4"),
        trial("6", 0.3, lr="7"),
        trial("7", 0.2, lr="7"),
        trial("8", 0.05, repeats="1"),
    ]
    assert [t.id for t in finalists(trials, 3, by_lr)] == ["7", "4", "1"]
    assert [t.id for t in finalists(trials, 2, by_lr)] == ["7", "4"]


def test_draws_are_made_in_rounds_so_that_a_sweep_cut_short_compares_equals():
    finals, trials = [trial("1", 0.1), trial("2", 0.2)], []
    made = []
    while (missing := missing_draw(finals, trials, seeds=3)) is not None:
        made.append((missing[0].id, missing[1]))
        trials.append(draw(str(len(trials)), missing[0].id, missing[1], 0.3))
    assert made == [("1", 1), ("2", 1), ("1", 2), ("2", 2)]
    assert missing_draw(finals[:1], [], seeds=3) is None, "nothing to compare with"
    assert missing_draw(finals, [], seeds=1) is None


def test_the_winner_is_named_by_the_mean_of_the_draws_that_ended_well():
    finals = [trial("1", 0.10), trial("2", 0.12)]
    draws = [draw("3", "1", 1, 0.30), draw("4", "2", 1, 0.14), draw("5", "1", 2, 9.0, "error: x")]
    ranked = standings(finals, draws)
    assert [s.trial for s in ranked] == ["2", "1"]
    assert ranked[1] == Standing("1", (0.10, 0.30))
    assert ranked[0].mean == pytest.approx(0.13)
    assert ranked[0].sd == pytest.approx(0.02 / 2**0.5)


def test_an_extension_does_not_change_what_a_finalist_is_compared_by():
    winner = trial("1", 0.3)
    winner.max_steps = 150
    winner.take(150, 0.1)
    assert standings([winner, trial("2", 0.2)], [])[0].trial == "2"


@pytest.mark.parametrize("reason", ["nan", "error: lost", "budget: spent"])
def test_a_winner_stays_one_when_its_extension_does_not_end_well(reason):
    winner = trial("1", 0.1, reason)
    assert [t.id for t in finalists([winner, trial("2", 0.2)], 2, by_lr)] == ["2"]
    winner.max_steps = 150
    winner.take(120, 0.05)
    assert [t.id for t in finalists([winner, trial("2", 0.2)], 2, by_lr)] == ["1", "2"]
    assert winner.settled == 0.1


def test_a_finalist_that_diverges_with_another_seed_does_not_win():
    finals = [trial("1", 0.10), trial("2", 0.12), trial("3", 0.11)]
    draws = [draw("4", "1", 1, 0.09, "nan"), draw("5", "2", 1, 0.14), draw("6", "3", 1, 0.1, "nan")]
    ranked = standings(finals, draws)
    assert [s.trial for s in ranked] == ["2", "1", "3"]
    assert [str(s) for s in ranked] == [
        "0.13 ± 0.014",
        "diverged with 1 of 2 seeds",
        "diverged with 1 of 2 seeds",
    ]
    assert [math.isnan(s.sd) for s in ranked] == [False, True, True]
    assert difference(*ranked[:2]) == "2 leads 1, which diverged with 1 of 2 seeds"
    assert difference(*ranked[1:]) == (
        "1 leads 3, which diverged with 1 of 2 seeds (1 diverged with 1 of 2 seeds)"
    )


def test_a_difference_within_noise_is_called_that():
    apart = difference(Standing("1", (1.0, 1.01, 0.99)), Standing("2", (1.2, 1.21, 1.19)))
    assert apart.startswith("1 is better than 2 beyond noise")
    same = difference(Standing("1", (1.0, 1.2, 0.9)), Standing("2", (1.1, 1.0, 1.2)))
    assert same.startswith("1 and 2 differ by noise only (1.033 ± 0.15 and 1.1 ± 0.1, p = ")
    alike = difference(Standing("1", (2.0, 2.0)), Standing("2", (2.0, 2.0)))
    assert alike == "1 and 2 differ by noise only (2 ± 0 and 2 ± 0, p = 1)"
    single = difference(Standing("1", (1.0,)), Standing("2", (1.1,)))
    assert single.endswith("a single training may be luck")


def test_one_remedy_a_sweep_and_of_the_leader_only():
    leader, other = trial("1", 0.1), trial("2", 0.2)
    trials = {t.id: t for t in (other, leader)}
    change = {"training.lr": 1e-5}
    assert untried_remedy(trials, lambda t: change if t is leader else None) == (leader, change)
    assert untried_remedy(trials, lambda t: change if t is other else None) is None
    trials["3"] = trial("3", 0.3, remedies="1")
    assert untried_remedy(trials, lambda t: change) is None
    lost = {"1": trial("1", 5.0, "nan"), "2": trial("2", 6.0, "nan")}
    assert untried_remedy(lost, lambda t: change)[0].id == "1", "where none has ended, NaN leads"


def test_of_finalists_that_diverge_the_one_that_does_so_less_often_leads_then_the_better_one():
    finals = [trial("1", 0.1), trial("2", 0.3), trial("3", 0.2)]
    draws = [
        draw(str(number), of, number % 2 + 1, 0.1, reason)
        for number, (of, reason) in enumerate(
            [("1", "nan"), ("1", "nan"), ("2", "nan"), ("2", "patience"), ("3", "nan")], start=4
        )
    ]
    lost = trial("9", 0.1, "nan")  # a trial of the sweep, no draw of a finalist
    assert [s.trial for s in standings(finals, [*draws, lost])] == ["3", "2", "1"]


def test_the_test_is_welchs_which_does_not_take_the_spreads_for_one():
    steady, wide = Standing("1", (1.0, 1.01, 0.99)), Standing("2", (1.15, 1.3, 1.5))
    found = difference(steady, wide)  # Student's p is 0.036
    assert found == "1 and 2 differ by noise only (1 ± 0.01 and 1.317 ± 0.18, p = 0.089)"


def test_neither_a_repeat_nor_a_shared_training_nor_one_that_was_stopped_is_the_leader():
    change = {"training.lr": 1e-5}
    trials = {
        "1": trial("1", 0.2, shares="2"),
        "2": trial("2", 0.2),
        "3": trial("3", 0.1, "asha: rung 5"),
        "4": trial("4", 0.1, repeats="2"),
    }
    assert untried_remedy(trials, lambda t: change)[0].id == "2"
