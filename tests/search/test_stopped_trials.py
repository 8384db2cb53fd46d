"""Which of the trials that wait at rungs goes on next."""

import math

import pytest

from sesttune.search.asha import Report, Rungs
from sesttune.search.stopped_trials import StoppedTrials
from sesttune.search.trial_state import ENDED, TrialState


def waiting(values):
    """Trials that wait where `values` says: by id, (rung, best val_loss)."""
    rungs = Rungs([10, 20], 2, pausing=True)
    trials = {name: TrialState(name, {}, 40, 40, ENDED, "asha: rung") for name in values}
    stopped = StoppedTrials(trials, rungs)
    for name, (rung, loss) in values.items():
        rungs.report(Report(name, rung, loss, False))
    for trial in trials.values():
        stopped.see(trial)
    return stopped, trials, rungs


def ids(find, trials):
    """Those that go on one after the other."""
    found = []
    while (trial := find()) is not None:
        found.append(trial.id)
        trials[trial.id].reason = None
    return found


def test_the_highest_rung_comes_first_and_the_best_of_it():
    values = {"001": (10, 1.0), "002": (10, 2.0), "003": (20, 5.0), "004": (20, 4.0)}
    values |= {"005": (20, 3.0), "006": (20, 6.0), "007": (10, 1.5), "008": (10, 3.0)}
    stopped, trials, _ = waiting(values)
    assert ids(stopped.promoted, trials) == ["005", "004", "001", "007"]


@pytest.mark.parametrize(
    ("reached", "gone_on"),
    [(9, []), (10, ["001"]), (19, ["001"]), (20, ["002", "001"]), (math.inf, ["002", "001"])],
)
def test_what_is_left_goes_on_where_no_trial_will_come_to_its_rung(reached, gone_on):
    stopped, trials, _ = waiting({"001": (10, 1.0), "002": (20, 2.0), "003": (10, 3.0)})
    assert ids(lambda: stopped.left_over(1, reached), trials) == gone_on


def test_a_trial_whose_training_is_anothers_by_now_does_not_wait():
    stopped, trials, _ = waiting({"001": (10, 1.0), "002": (10, 2.0)})
    trials["001"].shares = "003"
    assert stopped.promoted() is None


def test_a_trial_waits_at_the_highest_rung_that_it_has_come_to_and_at_no_other():
    stopped, trials, rungs = waiting({"001": (10, 1.0), "002": (10, 2.0)})
    rungs.report(Report("001", 20, 1.0, False))  # it had gone on
    stopped.see(trials["001"])
    assert stopped.promoted() is None
    assert stopped.left_over(1, 20) is trials["001"]
