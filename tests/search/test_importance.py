import math
import random
import warnings

import pytest

from sesttune.search.importance import FEWEST, importance
from sesttune.search.searcher import Observed
from sesttune.search.space_file import parse_space

LR, BATCH, DROPOUT = "training.lr", "training.batch_size", "model.kwargs.dropout"
SPACE = {
    LR: {"type": "loguniform", "low": 1e-5, "high": 1e-3},
    BATCH: {"type": "choice", "values": [8, 16, 32]},
    DROPOUT: {"type": "uniform", "low": 0.0, "high": 0.5},
}


def space(**parameters: object):
    return parse_space({"parameters": parameters or SPACE}, "test")


def seen(count: int) -> list[Observed]:
    """Losses that lr decides, batch a little, dropout not at all."""
    rng, found = random.Random(0), []
    for _ in range(count):
        point = {LR: 10 ** rng.uniform(-5, -3), BATCH: rng.choice([8, 16, 32])}
        loss = 2 + (math.log10(point[LR]) + 4) ** 2 + point[BATCH] / 50
        found.append(Observed({**point, DROPOUT: rng.uniform(0, 0.5)}, "complete", loss))
    return found


def test_the_key_that_decides_comes_first_and_one_without_effect_last() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = importance(space(), seen(40))
    assert list(found.shares) == [LR, BATCH, DROPOUT]
    assert found.shares[LR] > 0.5
    assert math.isclose(sum(found.shares.values()), 1.0)
    assert found == importance(space(), seen(40))


def test_a_trial_outside_of_the_space_is_left_out() -> None:
    calmed = Observed({LR: 1e-6, BATCH: 8, DROPOUT: 0.1}, "complete", 900.0)
    begun = Observed({LR: 1e-4, BATCH: 8, DROPOUT: 0.1}, "running")
    assert importance(space(), [*seen(40), calmed, begun]) == importance(space(), seen(40))


def test_of_very_many_trials_every_nth_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sesttune.search.importance.MOST", 20)
    assert importance(space(), seen(39)) == importance(space(), seen(39)[::2])


def test_where_there_is_nothing_to_say_it_says_why() -> None:
    few = importance(space(), seen(FEWEST - 1))
    assert (few.shares, few.why_not) == ({}, "5 trials have a result, it takes 6")
    one = importance(space(**{LR: SPACE[LR]}), [Observed({LR: 1e-4}, "complete", 1.0)] * 9)
    assert one.why_not == "fewer than two keys were searched in every trial"
    fixed = space(**{LR: SPACE[LR], BATCH: {"type": "choice", "values": [8]}})
    assert importance(fixed, seen(9)).why_not == one.why_not
    same = [Observed(trial.params, "complete", 2.0) for trial in seen(9)]
    assert importance(space(), same).why_not == "all trials have the same loss"
    same[0] = Observed(same[0].params, "complete", 2.0 + 1e-12)
    assert importance(space(), same).why_not == "all trials have the same loss"


def test_a_conditional_key_is_left_out() -> None:
    schedule, decay = "training.lr_schedule", "training.lr_decay_frac"
    conditional = {
        **SPACE,
        schedule: {"type": "choice", "values": ["constant", "wsd"]},
        decay: {"type": "uniform", "low": 0.1, "high": 0.3, "when": {schedule: ["wsd"]}},
    }
    trials = [
        Observed({**trial.params, schedule: "wsd", decay: 0.2}, "complete", trial.value)
        for trial in seen(10)
    ]
    assert decay not in importance(space(**conditional), trials).shares
