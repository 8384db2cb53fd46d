import pytest

from sesttune.config.schema import SweepConfig
from sesttune.search.budget import Spending, limit_reached
from sesttune.training.records import TrialRecord, append_metrics, trial_folder, write_trial


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_time_is_counted_by_what_runs_and_over_the_drivers_of_a_sweep(tmp_path):
    clock = Clock()
    first = Spending(tmp_path, SweepConfig(), 0.5, clock)
    first.tick(2)
    clock.now += 10  # two trials, half a GPU each
    first.tick(4)
    clock.now += 5  # four
    first.tick(0)
    assert (first.wall_s, first.gpu_s) == (15, 20)
    first.save()
    clock.now += 1000  # no driver
    second = Spending(tmp_path, SweepConfig(), 0.5, clock)
    assert (second.wall_s, second.gpu_s) == (15, 20)


def test_a_killed_driver_loses_only_the_last_seconds_of_the_count(tmp_path):
    clock = Clock()
    spending = Spending(tmp_path, SweepConfig(), 0.0, clock)
    spending.tick(1)
    for _ in range(60):
        clock.now += 1
        spending.tick(1)
    assert Spending(tmp_path, SweepConfig(), 0.0, clock).gpu_s >= 50


@pytest.mark.parametrize(
    ("limits", "within", "beyond"),
    [
        ({"time_budget": "1m"}, (59, 0.5), (60, 0.5)),
        ({"gpu_hours": 0.02}, (35, 0.5), (36, 0.5)),  # two trials, a GPU each
        ({"target_val_loss": 0.4}, (10, 0.41), (10, 0.4)),
    ],
)
def test_each_limit_is_reached_at_its_own_measure(tmp_path, limits, within, beyond):
    for (seconds, best), expected in ((within, False), (beyond, True)):
        clock = Clock()
        spending = Spending(tmp_path, SweepConfig(**limits), 1.0, clock)
        spending.tick(2)
        clock.now += seconds
        spending.tick(2)
        why = spending.exceeded(best)
        assert (why is not None) == expected
        assert not expected or f"sweep.{next(iter(limits))}" in why


def test_what_a_sweeps_files_say_of_its_limits_is_that_of_the_best_validation(tmp_path):
    limits = SweepConfig(target_val_loss=0.5)
    assert limit_reached(tmp_path, limits) is None, "no trial yet"
    folder = trial_folder(tmp_path, "001")
    write_trial(TrialRecord("001", folder, {}))
    for step, best in enumerate([0.9, 0.5]):
        assert limit_reached(tmp_path, limits) is None
        append_metrics(folder, {"step": step, "best_val_loss": best, "time": step})
    assert "sweep.target_val_loss" in limit_reached(tmp_path, limits)
