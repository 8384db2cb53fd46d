import math

import pytest

from sesttune.search.searcher import Observed, Suggester
from sesttune.search.space import parse_space

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


@pytest.mark.parametrize("kind", ["tpe", "random"])
def test_the_same_history_gives_the_same_point_and_another_seed_another(kind):
    history = search(SPACE, kind, 12)
    again = Suggester(SPACE, kind, 0, 12)  # a new object, as after a crash
    assert [again.ask(history[:n]) for n in range(12)] == [seen.params for seen in history]
    assert Suggester(SPACE, kind, 1, 12).ask(history) != again.ask(history)
    assert all(1e-5 <= seen.params["training.lr"] <= 1e-1 for seen in history)


def test_tpe_finds_the_good_region_and_random_does_not_look_for_it():
    def late_mean(kind):
        losses = [
            seen.value for seed in range(5) for seen in search(SPACE, kind, 40, seed * 1000)[20:]
        ]
        return sum(losses) / len(losses)

    assert late_mean("tpe") < 0.6 * late_mean("random")


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


@pytest.mark.parametrize("kind", ["tpe", "random"])
def test_a_finite_space_is_used_up_without_a_repeat(kind):
    points = [tuple(seen.params.values()) for seen in search(FINITE, kind, 99)]
    assert len(points) == len(set(points)) == 12


def test_running_failed_and_stopped_trials_are_part_of_the_history():
    suggester = Suggester(SPACE, "tpe", 0, 8)
    history = search(SPACE, "tpe", 8)
    mixed = [
        *history,
        Observed({"training.lr": 2e-3, "training.batch_size": 16}, "running", 0.3, 40),
        Observed({"training.lr": 3e-3, "training.batch_size": 16}, "running"),
        Observed({"training.lr": 4e-3, "training.batch_size": 16}, "pruned", 0.7, 50),
        Observed({"training.lr": 9e-2, "training.batch_size": 16}, "failed", math.nan, 10),
        Observed({"training.lr": 8e-2, "training.batch_size": 16}, "complete"),
    ]
    assert suggester.ask(mixed) not in [seen.params for seen in mixed]
