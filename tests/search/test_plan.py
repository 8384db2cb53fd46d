import multiprocessing
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.tiny_data import MeanEncoder, write_tiny

from sesttune.config.load import load_config
from sesttune.data.trial_data import prepare
from sesttune.errors import UserError
from sesttune.search.calibrate import Speed, calibrate
from sesttune.search.measuring import in_a_process
from sesttune.search.plan import check_disk, make_plan
from sesttune.search.space_file import parse_space

SPEED = Speed(0.1, 0.01, 5.0, 2.0, best_bytes=200_000_000, last_bytes=600_000_000)


def grid(**parameters):
    named = {
        f"training.{key}": {"type": "choice", "values": values}
        for key, values in parameters.items()
    }
    return parse_space({"searcher": "grid", "parameters": named}, "s.yaml")


def alone(*overrides):
    return load_config(["sweep.seeds=1", "sweep.extend_to=[]", *overrides])


def test_the_worst_case_of_a_single_trial_is_all_its_steps_and_validations():
    config = alone("training.max_steps=1000", "training.batch_size=10")
    plan = make_plan(config, grid(lr=[1e-4]), 4, 1.0, SPEED)
    # 1,000 steps of 0.1 + 10 x 0.01 s, two validations of 5 s, and the start.
    assert plan.worst.wall_s == pytest.approx(1_000 * 0.2 + 2 * 5 + 2)
    assert (plan.worst.steps, plan.worst.trainings, plan.rungs) == (1_000, 1, ())
    assert plan.worst.gpu_s == plan.worst.wall_s
    config = alone("training.max_steps=1000", "training.accumulate_grad_batches=2")
    searched = grid(lr=[1e-4], batch_size=[10], accumulate_grad_batches=[2])
    for space in (grid(lr=[1e-4], batch_size=[10]), searched):
        accumulated = make_plan(config, space, 4, 1.0, SPEED)
        assert accumulated.worst.wall_s == pytest.approx(1_000 * 0.3 + 2 * 5 + 2)


def test_in_the_worst_case_nothing_is_stopped_and_what_is_expected_is_less():
    config = alone()
    plan = make_plan(config, grid(lr=[1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3]), 2, 1.0, SPEED)
    assert plan.rungs == (5_000, 10_000, 20_000)
    assert plan.worst.steps == 6 * 40_000
    assert 6 * 5_000 <= plan.expected.steps < plan.worst.steps
    assert plan.expected.wall_s < plan.worst.wall_s


def test_the_worst_case_is_not_below_what_is_expected_where_starting_is_slow():
    slow = replace(SPEED, startup_s=36_000.0)
    points = grid(lr=[1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3])
    plan = make_plan(alone(), points, 2, 1.0, slow)
    assert plan.expected.wall_s <= plan.worst.wall_s
    assert plan.expected.gpu_s <= plan.worst.gpu_s


def test_the_worst_case_counts_repeats_extension_and_shared_trainings():
    space = grid(lr=[1e-4, 3e-4], max_steps=[20_000, 40_000])
    config = load_config(["sweep.seeds=3", "sweep.finalists=2"])
    plan = make_plan(config, space, 8, 1.0, SPEED)
    # Two trainings of 40,000 steps, two more of each, and the winner to 60,000.
    assert plan.trials == 4
    assert plan.worst.trainings == 6
    assert plan.worst.steps == 6 * 40_000 + 20_000


def test_what_is_expected_ends_by_patience_where_trials_do_and_draws_from_an_endless_space():
    lr = {"training.lr": {"type": "loguniform", "low": 1e-4, "high": 1e-3}}
    space = parse_space({"searcher": "gp", "num_trials": 1, "parameters": lr}, "s.yaml")
    for early_stopping in (False, True):
        stopping = f"training.early_stopping={early_stopping}"
        config = alone("sweep.asha=false", "training.patience=2", stopping)
        plan = make_plan(config, space, 1, 1.0, SPEED)
        assert plan.worst.steps == 40_000
        assert (plan.expected.steps < 40_000) == early_stopping


def test_half_a_gpu_a_trial_is_half_the_gpu_hours():
    config = alone("training.max_steps=1000")
    whole = make_plan(config, grid(lr=[1e-4, 1e-3]), 2, 1.0, SPEED)
    half = make_plan(config, grid(lr=[1e-4, 1e-3]), 2, 0.5, SPEED)
    assert half.worst.gpu_s == pytest.approx(whole.worst.gpu_s / 2)


def test_the_checkpoints_of_a_trial_are_thinned_to_their_budget():
    def trial_gb(*overrides):
        return make_plan(alone(*overrides), grid(lr=[1e-4]), 1, 1.0, SPEED).trial_gb

    assert trial_gb() == pytest.approx(1.5)
    assert trial_gb("training.checkpoint_budget_gb=100") == pytest.approx(0.2 + 9 * 0.6)
    long_and_short = grid(max_steps=[5_000, 40_000])
    plan = make_plan(alone("training.checkpoint_budget_gb=100"), long_and_short, 1, 1.0, SPEED)
    assert plan.trial_gb == pytest.approx(0.2 + 9 * 0.6), "as the longest"
    assert trial_gb("training.checkpoint_budget_gb=0.1") == pytest.approx(0.8), "best and last stay"


def test_a_disk_that_cannot_hold_the_worst_case_is_refused_with_what_would_fit(tmp_path):
    config = alone()
    space = grid(lr=[k * 1e-5 for k in range(1, 11)])
    plan = make_plan(config, space, 2, 1.0, SPEED)
    assert plan.disk_gb == pytest.approx(10 * (1.5 + 0.2) + 2 * 0.6)
    check_disk(plan, config, SPEED, 20e9, tmp_path)
    with pytest.raises(UserError, match="training.checkpoint_budget_gb=1.08 would fit") as found:
        check_disk(plan, config, SPEED, 15e9, tmp_path)
    assert "may fill 18.2 GB of" in str(found.value)
    fitting = alone("training.checkpoint_budget_gb=1.08")
    check_disk(make_plan(fitting, space, 2, 1.0, SPEED), fitting, SPEED, 15e9, tmp_path)
    with pytest.raises(UserError, match="free some space, or search at most 3 points"):
        check_disk(plan, config, SPEED, 6e9, tmp_path)
    repeated = load_config(["sweep.seeds=2", "sweep.finalists=2", "sweep.extend_to=[]"])
    with pytest.raises(UserError, match="search at most 1 points"):  # and two repeats
        check_disk(make_plan(repeated, space, 2, 1.0, SPEED), repeated, SPEED, 6e9, tmp_path)
    least = alone("training.checkpoint_budget_gb=0.8")
    three = make_plan(least, grid(lr=[1e-5, 1e-4, 1e-3]), 2, 1.0, SPEED)
    check_disk(three, least, SPEED, 6e9, tmp_path)


def test_steps_are_measured_in_real_trials_and_nothing_of_them_stays(tmp_path):
    (tmp_path / "data").mkdir()
    data = write_tiny(tmp_path / "data")
    config = load_config(["training.accumulate_grad_batches=2"], base=data.settings())
    manifest = prepare(config, MeanEncoder)
    space, samples = grid(batch_size=[1, 6]), []

    def measured(*arguments):
        samples.extend(in_a_process(*arguments))
        return samples

    speed = calibrate(config, space, manifest, tmp_path / "scratch", threads=1, place=measured)
    assert [sample.sets for sample in samples] == [2, 12], "of a step, which the plan asks for"
    assert speed.fixed_s + speed.set_s > 0
    assert speed.set_s >= 0
    assert speed.startup_s > 0
    assert 0 < speed.best_bytes < speed.last_bytes, "the optimizer is in the last one alone"
    assert not (tmp_path / "scratch").exists()


def kill_what_trains_in(folder: Path) -> None:
    """As the kernel does where memory runs out."""
    deadline = time.monotonic() + 100
    while not list(folder.rglob("metrics.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.05)
    for process in multiprocessing.active_children():
        process.kill()


def test_a_measuring_process_that_is_killed_is_one_line_and_leaves_nothing(tmp_path):
    (tmp_path / "data").mkdir()
    config = load_config(base=write_tiny(tmp_path / "data").settings())
    manifest, scratch = prepare(config, MeanEncoder), tmp_path / "scratch"
    killer = threading.Thread(target=kill_what_trains_in, args=[scratch])
    killer.start()
    with pytest.raises(UserError) as found:
        calibrate(config, grid(batch_size=[6]), manifest, scratch, threads=1)
    killer.join()
    assert str(found.value) == (
        "the process that measured trials of training.batch_size=6 was lost (killed, or out of "
        "memory): free some memory of its machine, or lower training.batch_size"
    )
    assert not scratch.exists()
