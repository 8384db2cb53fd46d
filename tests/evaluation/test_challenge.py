import numpy as np
import pytest

from sesttune.evaluation.challenge import challenge


def losses(shift: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Of a champion over 20 conditions of very different difficulty, and of a candidate."""
    rng = np.random.default_rng(seed)
    champion = rng.uniform(1, 10, 20)
    return champion + shift + rng.normal(0, 0.05, 20), champion


def test_a_small_but_steady_gain_is_seen_through_the_spread_of_conditions() -> None:
    found = challenge(*losses(-0.1))
    assert found.better
    assert "better beyond noise (loss" in str(found)
    assert "over 20 conditions, p = " in str(found)


def test_noise_and_loss_are_not_better() -> None:
    assert "noise only" in str(challenge(*losses(0.0)))
    worse = challenge(*losses(0.1))
    assert not worse.better
    assert "worse beyond noise" in str(worse)


def test_a_model_is_not_better_than_itself_and_one_condition_tells_nothing() -> None:
    same = np.array([1.0, 2.0, 3.0])
    assert not challenge(same, same).better
    assert challenge(same, same).p_value == 1.0
    single = challenge(np.array([1.0]), np.array([9.0]))
    assert not single.better
    assert "too few" in str(single)


def test_the_test_is_paired_and_two_sided() -> None:
    found = challenge(np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0]))
    assert found.p_value == pytest.approx(0.0742, abs=1e-4)  # t = 2 sqrt 3, 2 degrees of freedom
    assert not found.better
    two = challenge(np.array([1.0, 2.0]), np.array([2.0, 4.0]))
    assert two.p_value == pytest.approx(0.2048, abs=1e-4)
