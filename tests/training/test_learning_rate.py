import math

import pytest

from sesttune.config.schema import TrainingConfig
from sesttune.training.learning_rate import learning_rate


def rates(**settings: object) -> list[float]:
    training = TrainingConfig(max_steps=100, lr=1.0, **settings)  # type: ignore[arg-type]
    return [learning_rate(step, training) for step in range(101)]


def test_constant_is_constant() -> None:
    assert set(rates()) == {1.0}


@pytest.mark.parametrize("name", ["constant", "cosine", "wsd"])
def test_warm_up_rises_linearly_and_reaches_lr_once(name: str) -> None:
    found = rates(lr_schedule=name, warmup_steps=9)
    assert found[:10] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert max(found) == pytest.approx(1.0)


def test_cosine_falls_along_half_a_cosine() -> None:
    found = rates(lr_schedule="cosine", lr_final_frac=0.1)
    assert (found[0], found[50], found[100]) == pytest.approx((1.0, 0.55, 0.1))
    assert found[25] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)
    assert found == sorted(found, reverse=True)


def test_wsd_is_stable_and_then_falls_linearly() -> None:
    found = rates(lr_schedule="wsd", lr_decay_frac=0.4, warmup_steps=4)
    assert set(found[4:61]) == {1.0}
    assert found[80] == pytest.approx(0.5)
    assert found[100] == 0.0


def test_a_cosine_that_is_all_warm_up_only_rises() -> None:
    found = rates(lr_schedule="cosine", warmup_steps=100)
    assert found == pytest.approx([(n + 1) / 101 for n in range(101)])
