import math

import numpy as np
import pytest

from sesttune.config.load import load_config
from sesttune.search.verdict import judge, next_budget

CONFIG = load_config()


def curve(points, **more):
    """Report lines from (step, train_loss, val_loss)."""
    return [{"step": s, "train_loss": t, "val_loss": v, **more} for s, t, v in points]


def falling(last_step, rate, **more):
    """From 40, val_loss falls to 4, then by the share `rate` each 5,000 steps."""
    losses = [(s, 4 * (1 - rate) ** (s / 5000)) for s in range(500, last_step + 1, 500)]
    return curve([(0, math.nan, 40.0), *((s, loss, loss) for s, loss in losses)], **more)


def flat(train, val, start=None, **more):
    points = [(s, train, val) for s in range(500, 40_001, 500)]
    return curve([(0, math.nan, start or 10 * val), *points], **more)


# The plan's own numbers.


def test_overfit_is_train_1_2_against_val_3_5():
    found = judge(flat(1.2, 3.5), CONFIG)
    assert found.label == "overfit"
    assert "train_loss 1.2, but val_loss 3.5" in found.evidence


def test_underfit_is_4_5_against_4_6_both_high():
    found = judge(flat(4.5, 4.6, start=4.7), CONFIG)
    assert found.label == "underfit"
    assert "4.5 and val_loss 4.6 are both high" in found.evidence
    assert found.remedy == "training.lr=0.0003"


def test_unstable_is_2_1_5_3_1_8_4_2():
    losses = zip(range(5_000, 25_000, 5_000), [2.1, 5.3, 1.8, 4.2], strict=True)
    found = judge(curve([(s, v, v) for s, v in losses]), CONFIG)
    assert found.label == "unstable"
    assert found.remedy == "training.lr=1e-05"
    assert "2.1, 5.3, 1.8, 4.2" in found.evidence


def test_slow_is_less_than_one_step_a_second():
    found = judge(falling(20_000, 0.05, steps_per_s=0.8), CONFIG)
    assert found.label == "slow"
    assert found.still_falling
    assert judge(falling(20_000, 0.05, steps_per_s=1.0), CONFIG).label == "healthy"


def test_converged_is_less_than_one_percent_in_5000_steps():
    found = judge(falling(40_000, 0.009), CONFIG)
    assert found.label == "converged"
    assert found.remedy is None
    assert "0.9 % over the last 5,000 steps" in found.evidence
    found = judge(falling(40_000, 0.011), CONFIG)
    assert (found.label, found.still_falling) == ("healthy", True)
    assert "still falling: val_loss fell 1.1 %" in found.evidence


def test_patience_spent_is_converged_however_far_it_fell_before():
    points = [(s, 1.0, max(1.0, 4 - s / 1000)) for s in range(0, 6_001, 500)]
    assert judge(curve(points), CONFIG).still_falling
    assert judge(curve(points), CONFIG, "patience").label == "converged"


# What a healthy winner at its end is told.


def test_a_trial_still_falling_at_its_budget_is_told_the_next_one():
    at_40k = judge(falling(40_000, 0.05), CONFIG)
    assert at_40k.remedy == "training.max_steps=50000"
    assert judge(falling(20_000, 0.05), CONFIG).remedy is None, "it has steps left"
    long = load_config(["training.max_steps=60000"])
    assert judge(falling(60_000, 0.05), long).remedy == "training.max_steps=90000"


def test_a_budget_grows_in_the_plans_steps_but_a_quick_test_does_not_become_a_long_training():
    plan = [50_000, 60_000]
    assert [next_budget(s, plan) for s in (40_000, 20_000, 50_000)] == [50_000, 50_000, 60_000]
    assert [next_budget(s, plan) for s in (60_000, 5_000)] == [None, None]
    assert next_budget(40_000, []) is None


# Where the rules meet.


def test_val_loss_that_turned_while_training_went_on_is_overfit_and_names_the_best_step():
    points = [(s, 4 - 3 * s / 40_000, 3 + abs(s - 20_000) / 40_000) for s in range(0, 40_001, 500)]
    found = judge(curve(points), CONFIG)
    assert found.label == "overfit"
    assert "from its best 3 at step 20,000" in found.evidence
    assert found.remedy == "training.max_steps=20000"


def test_a_gap_does_not_matter_while_val_loss_falls():
    points = [(s, 1.0 - s / 80_000, 4 - 2 * s / 40_000) for s in range(0, 40_001, 500)]
    assert judge(curve(points), CONFIG).label == "healthy"


@pytest.mark.parametrize("seed", range(20))
def test_nor_where_the_last_validation_is_not_the_best_of_a_fall(seed):
    noise = np.random.default_rng(seed).normal(1, 0.01, 81)
    losses = [(4 - 2 * i / 80) * noise[i] for i in range(81)]
    points = [(500 * i, loss / 2.5, loss) for i, loss in enumerate(losses)]
    assert judge(curve(points), CONFIG).label == "healthy"


def test_the_step_to_stop_at_is_that_of_the_best_checkpoint():
    losses = [5.0, 3.0, 2.5, 2.47, 2.6, 2.9, 3.2]  # 2.47 is no new best, if gains of 0.05 count
    points = [(500 * i, 2 - i / 10, loss) for i, loss in enumerate(losses)]
    assert judge(curve(points), CONFIG).remedy == "training.max_steps=1500"
    assert judge(curve(points, best_step=1000), CONFIG).remedy == "training.max_steps=1000"


def test_losses_that_lie_together_and_fell_far_are_converged():
    assert judge(flat(2.0, 2.1), CONFIG).label == "converged"


def test_a_baseline_decides_what_is_high():
    assert judge(flat(4.5, 4.6, start=50), CONFIG, baseline=4.6).label == "underfit"
    assert judge(flat(4.5, 4.6, start=4.7), CONFIG, baseline=5.0).label == "converged"


def test_a_loss_that_is_not_a_number_is_unstable_and_its_last_finite_step_is_named():
    lines = falling(10_000, 0.05, grad_norm=812.5)
    found = judge(lines, CONFIG, "nan")
    assert found.label == "unstable"
    assert "after step 10,000" in found.evidence
    assert "grad_norm 812" in found.evidence


def test_at_the_smallest_rate_of_the_plan_the_remedy_is_clipping():
    slow = load_config(["training.lr=1e-5"])
    assert judge(falling(500, 0.5), slow, "nan").remedy == "training.gradient_clip_val=1.0"


def test_an_underfit_at_a_high_rate_gets_a_wider_head():
    fast = load_config(["training.lr=1e-3"])
    assert judge(flat(4.5, 4.6, start=4.7), fast).remedy == "model.kwargs.hidden_dim=1344"


def test_a_run_shorter_than_the_window_is_judged_from_its_start():
    points = [(0, math.nan, 4.0), (100, 3.5, 3.5), (200, 3.0, 3.0)]
    assert judge(curve(points), CONFIG).still_falling


@pytest.mark.parametrize(
    ("measured", "named"),
    [
        ({"data_wait_frac": 0.4}, "data.kwargs.num_workers"),
        ({"gpu_mem_gib": 0.0}, "on the CPU"),
        ({"gpu_mem_gib": 20.0}, "training.batch_size"),
    ],
)
def test_the_bottleneck_of_a_slow_trial_is_named_beside_any_other_verdict(measured, named):
    found = judge(flat(1.2, 3.5, steps_per_s=0.3, **measured), CONFIG)
    assert found.label == "overfit"
    assert found.slow.startswith("0.3 steps/s")
    assert named in found.slow


@pytest.mark.parametrize("seed", range(50))
def test_a_smooth_fall_with_the_noise_of_validations_is_never_called_unstable_or_overfit(seed):
    rng = np.random.default_rng(seed)
    steps = np.arange(0, 40_001, 500)
    power, floor = rng.uniform(0.2, 1.0), rng.uniform(0.2, 2.0)
    smooth = floor + 3 * (1 + steps / 1000) ** -power
    noisy = smooth * (1 + rng.normal(0, 0.015, len(steps)))
    points = zip(steps.tolist(), smooth.tolist(), noisy.tolist(), strict=True)
    assert judge(curve(points), CONFIG).label in ("healthy", "converged")


@pytest.mark.parametrize("noise", [0.02, 0.03, 0.05])
def test_a_last_validation_above_the_luckiest_of_eighty_is_no_overfit(noise):
    """Flat curves that scatter, of trainings whose train_loss still falls a little."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(100):
        losses = (2 + 3 * np.exp(-np.arange(81) / 4)) * (1 + rng.normal(0, noise, 81))
        points = [(500 * i, 2 - i / 250, float(loss)) for i, loss in enumerate(losses)]
        found.append(judge(curve(points), CONFIG).label)
    assert found.count("overfit") <= 8


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.02])
def test_a_rise_of_a_tenth_over_half_the_training_is_overfit_through_noise(noise):
    rng = np.random.default_rng(0)
    found = []
    for _ in range(50):
        losses = (3 + abs(np.arange(81) - 40) / 133) * (1 + rng.normal(0, noise, 81))
        points = [(500 * i, 2 - i / 250, float(loss)) for i, loss in enumerate(losses)]
        found.append(judge(curve(points), CONFIG).label)
    assert found.count("overfit") >= 45


def test_a_loss_of_nothing_is_judged_too():
    points = [(0, math.nan, 1.0), (500, 0.0, 0.0), (1000, 0.0, 0.0), (1500, 0.1, 0.0)]
    for last in range(1, 5):
        assert judge(curve(points[:last]), CONFIG).label != "unstable"
    assert judge(curve([(0, math.nan, 0.0), *points[1:]]), CONFIG, "patience").label == "converged"


def test_one_turn_is_not_unstable_and_a_quarter_is_of_the_smaller_loss():
    def label(*losses):
        return judge(curve([(500 * i, v, v) for i, v in enumerate(losses)]), CONFIG).label

    assert label(4.0, 2.0, 4.0, 3.9) != "unstable"
    assert label(4.0, 5.0, 4.0, 5.0) == "unstable"


def test_what_swung_before_the_window_is_forgiven():
    losses = [2.1, 5.3, 1.8, 4.2, *(4.0 - i / 10 for i in range(11))]
    assert judge(curve([(500 * i, v, v) for i, v in enumerate(losses)]), CONFIG).label != "unstable"


def test_a_val_loss_that_rises_with_train_loss_is_no_overfit():
    points = [(0, math.nan, 9.0), *((500 * i, 3 + i / 10, 3 + i / 10) for i in range(1, 9))]
    assert judge(curve(points), CONFIG).label != "overfit"
    falls = [(s, 2 - s / 8000, v) for s, _, v in points]
    assert judge(curve(falls), CONFIG).label == "overfit"


def test_a_training_that_is_best_before_its_first_step_is_told_to_stop_after_one():
    points = [(0, math.nan, 3.0), (500, 1.0, 3.3), (1000, 0.9, 3.6)]
    found = judge(curve(points), CONFIG)
    assert (found.label, found.remedy) == ("overfit", "training.max_steps=1")


def test_a_train_loss_far_above_val_loss_is_no_underfit():
    assert judge(flat(9.0, 4.6, start=4.7), CONFIG).label == "converged"


def test_the_remedies_end_where_the_plans_ranges_do():
    clipped = load_config(["training.lr=1e-5", "training.gradient_clip_val=1.0"])
    assert judge(falling(500, 0.5), clipped, "nan").remedy == "training.lr=1e-06"
    near = load_config(["training.lr=5e-4"])
    assert judge(flat(4.5, 4.6, start=4.7), near).remedy == "training.lr=0.001"
    assert next_budget(20_000, [60_000]) == 60_000, "three times, and no more"
    assert next_budget(19_999, [60_000]) is None
