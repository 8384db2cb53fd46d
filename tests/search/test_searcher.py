import logging
import math
import warnings

import pytest

from sesttune.config.checks import SEARCHERS
from sesttune.config.load import load_config
from sesttune.search.searcher import Observed, Suggester
from sesttune.search.space_file import parse_space
from sesttune.search.trial_state import ENDED, RUNNING, WAITING, TrialState

SPACE = parse_space(
    {
        "parameters": {
            "training.lr": {"type": "loguniform", "low": 1e-5, "high": 1e-1},
            "training.batch_size": {"type": "choice", "values": [8, 16, 32]},
        }
    },
    "s.yaml",
)
FINITE = parse_space(
    {
        "parameters": {
            "training.batch_size": {"type": "choice", "values": [8, 16, 32]},
            "model.kwargs.dropout": {"type": "uniform", "low": 0, "high": 0.3, "quantum": 0.1},
        }
    },
    "s.yaml",
)


def search(space, kind, trials, seed=0):
    """Ask and answer in turn, by a loss whose best lr is 1e-3 and best batch size 16."""
    suggester, history = Suggester(space, kind, seed, trials), []
    while len(history) < trials and (point := suggester.ask(history)) is not None:
        distance = abs(math.log10(point.get("training.lr", 1e-3)) + 3)
        loss = distance + 0.5 * (point.get("training.batch_size") != 16)
        history.append(Observed(point, "complete", loss, 100))
    return history


@pytest.mark.parametrize("kind", ["tpe", "gp", "qmc", "random"])
def test_the_same_history_gives_the_same_point_and_another_seed_another(kind):
    history = search(SPACE, kind, 12)
    again = Suggester(SPACE, kind, 0, 12)  # a new object, as after a crash
    assert [again.ask(history[:n]) for n in range(12)] == [seen.params for seen in history]
    assert Suggester(SPACE, kind, 1, 12).ask(history) != again.ask(history)
    assert all(1e-5 <= seen.params["training.lr"] <= 1e-1 for seen in history)


@pytest.mark.parametrize("kind", SEARCHERS)
def test_every_searcher_can_be_asked_for_in_the_settings_and_in_a_space_file(kind):
    assert load_config([f"sweep.searcher={kind}"]).sweep.searcher == kind
    sizes = {"training.batch_size": {"type": "choice", "values": [8, 16]}}
    space = parse_space({"searcher": kind, "parameters": sizes}, "s.yaml")
    assert Suggester(space, kind, 0, 2).ask([]) is not None


@pytest.mark.parametrize("learning", ["tpe", "gp"])
def test_what_learns_finds_the_good_region_and_random_does_not_look_for_it(learning):
    def late_mean(kind):
        losses = [
            seen.value for seed in range(4) for seen in search(SPACE, kind, 28, seed * 1000)[14:]
        ]
        return sum(losses) / len(losses)

    assert late_mean(learning) < 0.75 * late_mean("random")


def test_a_sequence_has_a_rate_in_each_part_of_the_range_however_long_it_gets():
    """But for the first one, which is random."""
    points = [seen.params for seen in search(SPACE, "qmc", 64)]
    parts = {int(16 * (math.log10(point["training.lr"]) + 5)) for point in points[1:]}
    assert len(parts) == 63
    assert parts <= set(range(64))


@pytest.mark.parametrize(
    ("kind", "trials", "random"), [("tpe", 2, 4), ("tpe", 12, 6), ("tpe", 40, 10), ("gp", 12, 6)]
)
def test_what_learns_looks_at_no_loss_before_half_of_the_trials_have_one(kind, trials, random):
    suggester = Suggester(SPACE, kind, 0, trials)

    def asked(count, best):
        rates = [10 ** (-5 + 4 * k / count) for k in range(count)]
        points = [{"training.lr": rate, "training.batch_size": 16} for rate in rates]
        losses = [abs(k - best) for k in range(count)]
        return suggester.ask(
            [Observed(point, "complete", loss) for point, loss in zip(points, losses, strict=True)]
        )

    assert asked(random - 1, best=0) == asked(random - 1, best=random - 2)
    assert asked(random, best=0) != asked(random, best=random - 1)


def test_two_workers_do_not_try_the_same_place_at_the_same_time():
    suggester, history = Suggester(SPACE, "tpe", 0, 8), search(SPACE, "tpe", 12)
    far = {"training.lr": 1e-5, "training.batch_size": 32}
    wanted = suggester.ask([*history, Observed(far, "running")])
    beside = wanted | {"training.lr": 1.001 * wanted["training.lr"]}
    other = suggester.ask([*history, Observed(beside, "running")])
    assert abs(math.log10(other["training.lr"] / wanted["training.lr"])) > 0.5


def test_each_ask_draws_another_point_though_nothing_was_learnt():
    """What failed through no fault of its point has no result."""

    def asked(count, best):
        points = [{"training.lr": 10 ** (-5 + k / 4), "training.batch_size": 32} for k in range(9)]
        failed = [Observed(point, "failed", abs(k - best)) for k, point in enumerate(points)]
        return Suggester(SPACE, "tpe", 0, 8).ask(failed[:count])

    assert len({repr(asked(count, best=0)) for count in range(10)}) == 10
    assert asked(9, best=0) == asked(9, best=8)


def test_what_diverged_late_is_no_better_than_what_a_rung_stopped_early():
    def seen(lr, state, loss, step):
        return Observed({"training.lr": lr, "training.batch_size": 16}, state, loss, step)

    stopped = [seen(10 ** (-5 + 0.05 * k), "pruned", 5.0 + k, 100) for k in range(4)]
    diverged = [seen(10 ** (-1 - 0.01 * k), "diverged", None, 400) for k in range(8)]
    for seed in range(0, 400, 100):
        point = Suggester(SPACE, "tpe", seed, 8).ask(stopped + diverged)
        assert point["training.lr"] < 1e-3


@pytest.mark.parametrize(
    ("state", "reason", "seen"),
    [
        (RUNNING, None, "running"),
        (WAITING, None, "running"),
        (ENDED, "max_steps", "complete"),
        (ENDED, "patience", "complete"),
        (ENDED, "nan", "diverged"),
        (ENDED, "error: killed", "failed"),
        (ENDED, "asha: rung 10", "pruned"),
        (ENDED, "budget: spent", "pruned"),
    ],
)
def test_how_a_trial_ended_says_what_is_learnt_of_it(state, reason, seen):
    trial = TrialState("001", {"training.lr": 1e-4}, 20, 20, state, reason)
    assert Observed.of(trial) == Observed({"training.lr": 1e-4}, seen, None, 0)
    trial.take(20, 1.5)
    assert Observed.of(trial) == Observed({"training.lr": 1e-4}, seen, 1.5, 20)


def test_an_extension_of_the_winner_tells_the_searcher_nothing():
    trial = TrialState("001", {"training.lr": 1e-4}, 40, 20, ENDED, "max_steps")
    trial.take(20, 1.5)
    trial.take(40, 1.0)
    assert Observed.of(trial).value == 1.5


def test_a_grid_is_every_point_once_in_a_random_order_and_then_the_end():
    tried = [seen.params for seen in search(FINITE, "grid", 99)]
    points = list(FINITE.grid())
    assert tried != points
    assert sorted(map(repr, tried)) == sorted(map(repr, points))
    assert tried == [seen.params for seen in search(FINITE, "grid", 99)]
    assert tried != [seen.params for seen in search(FINITE, "grid", 99, seed=1)]
    assert Suggester(FINITE, "grid", 0, 99).ask(search(FINITE, "grid", 99)) is None


def test_a_grid_keeps_the_points_of_one_training_together_the_longest_first():
    space = parse_space(
        {
            "parameters": {
                "training.max_steps": {"type": "choice", "values": [10, 30, 20]},
                "training.lr": {"type": "choice", "values": [1e-4, 1e-3, 1e-2]},
            }
        },
        "s.yaml",
    )
    tried = [
        (seen.params["training.lr"], seen.params["training.max_steps"])
        for seen in search(space, "grid", 99)
    ]
    assert [steps for _, steps in tried] == [30, 20, 10] * 3
    assert all(len({lr for lr, _ in tried[k : k + 3]}) == 1 for k in (0, 3, 6))


@pytest.mark.parametrize("kind", ["tpe", "gp", "qmc", "random"])
def test_a_finite_space_is_used_up_without_a_repeat(kind):
    points = [tuple(seen.params.values()) for seen in search(FINITE, kind, 99)]
    assert len(points) == len(set(points)) == 12


@pytest.mark.parametrize("kind", ["tpe", "gp"])
def test_running_failed_and_stopped_trials_are_part_of_the_history(kind):
    suggester = Suggester(SPACE, kind, 0, 8)
    history = search(SPACE, kind, 8)
    mixed = [
        *history,
        Observed({"training.lr": 2e-3, "training.batch_size": 16}, "running", 0.3, 40),
        Observed({"training.lr": 3e-3, "training.batch_size": 16}, "running"),
        Observed({"training.lr": 4e-3, "training.batch_size": 16}, "pruned", 0.7, 50),
        Observed({"training.lr": 9e-2, "training.batch_size": 16}, "diverged", math.nan, 10),
        Observed({"training.lr": 7e-2, "training.batch_size": 16}, "failed", 0.1, 10),
        Observed({"training.lr": 8e-2, "training.batch_size": 16}, "complete"),
    ]
    assert suggester.ask(mixed) not in [seen.params for seen in mixed]


@pytest.mark.parametrize("kind", ["tpe", "gp"])
def test_a_trial_outside_the_space_is_passed_over(kind):
    sizes = {"type": "choice", "values": [8, 16]}
    lr = {"type": "loguniform", "low": 1e-5, "high": 1e-1}
    space = parse_space({"parameters": {"training.lr": lr, "training.batch_size": sizes}}, "s.yaml")
    suggester, inside = Suggester(space, kind, 0, 8), search(space, kind, 8)
    outside = [
        Observed({"training.lr": 2e-3, "training.batch_size": 32}, "complete", 0.3, 40),
        Observed({"training.lr": 1.0, "training.batch_size": 16}, "complete", 0.3, 40),
        Observed({"training.lr": "high", "training.batch_size": 16}, "complete", 0.3, 40),
    ]
    assert not any(suggester.may_propose(seen.params) for seen in outside)
    assert space.holds(suggester.ask(inside + outside))


def test_a_gaussian_process_keeps_away_from_where_trials_diverged():
    suggester = Suggester(SPACE, "gp", 0, 8)
    history = []
    for _ in range(14):
        point = suggester.ask(history)
        diverged = point["training.lr"] > 1e-3
        loss = abs(math.log10(point["training.lr"]) + 3.2)
        seen = ("diverged", None) if diverged else ("complete", loss)
        history.append(Observed(point, *seen, 100))
    assert sum(seen.state == "diverged" for seen in history[8:]) <= 2


@pytest.mark.parametrize("seed", [4, 6])
def test_a_gaussian_process_tells_good_points_apart_where_untrained_losses_are_known(seed):
    """A trial that runs, and one that diverged at once, are at the loss of an untrained head."""
    suggester = Suggester(SPACE, "gp", seed, 14)
    history = []
    for _ in range(14):
        running = Observed({"training.lr": 2e-4, "training.batch_size": 16}, "running", 40.0)
        point = suggester.ask([*history, running])
        loss = 3 + 0.3 * (math.log10(point["training.lr"]) + 3.2) ** 2
        loss += 0.05 * abs(math.log2(point["training.batch_size"]) - 4)
        seen = ("diverged", 40.0) if point["training.lr"] > 1e-2 else ("complete", loss)
        history.append(Observed(point, *seen, 100))
    assert min(seen.value for seen in history) < 3.03


CONSTRAINED = parse_space(
    {
        "constraints": ["batch_size * accumulate_grad_batches <= 16"],
        "parameters": {
            "training.lr_schedule": {"type": "choice", "values": ["constant", "wsd"]},
            "training.lr_decay_frac": {
                "type": "uniform",
                "low": 0.1,
                "high": 0.5,
                "when": {"training.lr_schedule": ["wsd"]},
            },
            "training.batch_size": {"type": "choice", "values": [8, 16, 32]},
            "training.accumulate_grad_batches": {"type": "choice", "values": [1, 2, 4]},
        },
    },
    "s.yaml",
).on(load_config())


@pytest.mark.parametrize("kind", ["tpe", "gp", "qmc", "random"])
def test_conditions_and_constraints_hold_for_every_searcher(kind, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("optuna"), "propagate", True)
    history = search(CONSTRAINED, kind, 9)
    points = [seen.params for seen in history]
    assert len(points) == 9
    assert {point["training.lr_schedule"] for point in points} == {"constant", "wsd"}
    forbidden = {"training.batch_size": 32, "training.accumulate_grad_batches": 1}
    assert not Suggester(CONSTRAINED, kind, 0, 9).may_propose(points[0] | forbidden)
    assert caplog.messages == [], "no word of Optuna's about keys that a point lacks"
    for point in points:
        searched = "training.lr_decay_frac" in point
        assert searched == (point["training.lr_schedule"] == "wsd")
        assert point["training.batch_size"] * point["training.accumulate_grad_batches"] <= 16


def test_a_quantum_that_does_not_divide_its_range_is_no_warning():
    described = {
        "training.warmup_steps": {"type": "int", "low": 0, "high": 1000, "quantum": 300},
        "training.lr_decay_frac": {"type": "uniform", "low": 0.1, "high": 0.5, "quantum": 0.15},
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        history = search(parse_space({"parameters": described}, "s.yaml"), "tpe", 12)
    steps, shares = zip(*(seen.params.values() for seen in history), strict=True)
    assert (set(steps), set(shares)) == ({0, 300, 600, 900}, {0.1, 0.25, 0.4})
