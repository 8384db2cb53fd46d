import math

import pytest

from sesttune.config.load import load_config
from sesttune.search.landscape import PowerLaw
from sesttune.search.protocol import Job
from sesttune.search.rules import rules_of
from sesttune.search.schedule import Schedule
from sesttune.search.searcher import Suggester
from sesttune.search.simulator import SimulatedCurves, Simulation
from sesttune.search.space_file import parse_space
from sesttune.search.trial_state import ENDED, TrialState


class Listed:
    """Hands out jobs in order; stops a trial at a given step."""

    def __init__(self, jobs, stop_at=None):
        self.jobs, self.stop_at = list(jobs), stop_at or {}
        self.ends, self.reports, self.done = [], [], False

    def next(self):
        self.done = not self.jobs
        return self.jobs.pop(0) if self.jobs else None

    def report(self, job_id, step, best_val_loss):
        self.reports.append((job_id, step, best_val_loss))
        return self.stop_at.get(job_id) == step

    def end(self, job_id, reason):
        self.ends.append((job_id, reason))


class Curve:
    def __init__(self, losses=None, step_s=1.0):
        self.losses, self._step_s = losses, step_s

    def val_loss(self, point, step):
        return (self.losses or {}).get(step, 1 / (1 + step))

    def step_s(self, point):
        return self._step_s * point.get("slow", 1)


def run(scheduler, curve, slots=1, patience=100, startup_s=0.0):
    events = []
    simulation = Simulation(scheduler, curve, slots, 10, patience, startup_s, events.append)
    simulation.run()
    return simulation, events


def test_two_slots_take_the_virtual_time_of_the_longer_ones():
    jobs = [Job("a", {}, 20), Job("b", {"slow": 3}, 20), Job("c", {}, 30)]
    simulation, events = run(Listed(jobs), Curve(), slots=2, startup_s=2.0)
    # a: 22 s, then c: 32 s more; b beside them: 62 s.
    assert simulation.time_s == 62
    assert simulation.slot_s == 22 + 62 + 32
    assert simulation.steps == 70
    assert [event.time_s for event in events] == sorted(event.time_s for event in events)


def test_a_trial_handed_out_again_goes_on_from_its_last_validation():
    jobs = [Job("a", {}, 20), Job("a", {}, 40)]
    scheduler = Listed(jobs)
    simulation, _ = run(scheduler, Curve())
    assert [step for _, step, _ in scheduler.reports] == [0, 10, 20, 30, 40]
    assert simulation.steps == 40
    assert scheduler.ends == [("a", "max_steps"), ("a", "max_steps")]


def test_a_trial_that_continues_another_starts_with_its_curve():
    jobs = [Job("a", {}, 20), Job("b", {}, 40, continues="a")]
    scheduler = Listed(jobs)
    simulation, _ = run(scheduler, Curve())
    assert [(i, step) for i, step, _ in scheduler.reports if i == "b"] == [("b", 30), ("b", 40)]
    assert [step for step, _ in simulation.trainings["b"].lines] == [0, 10, 20, 30, 40]


def test_patience_a_loss_that_is_no_number_and_the_scheduler_end_a_trial():
    rising = Curve({step: 1 + step for step in range(0, 100, 10)})
    scheduler = Listed([Job("a", {}, 90)])
    run(scheduler, rising, patience=3)
    assert scheduler.ends == [("a", "patience")]
    assert [step for _, step, _ in scheduler.reports] == [0, 10, 20, 30]
    scheduler = Listed([Job("a", {}, 90)])
    run(scheduler, Curve({20: math.nan}))
    assert scheduler.ends == [("a", "nan")]
    scheduler = Listed([Job("a", {}, 90)], stop_at={"a": 30})
    run(scheduler, Curve())
    assert scheduler.ends == [("a", "stopped")]


def schedule(searcher="grid", trials=12, *overrides):
    values = {"type": "choice", "values": [1e-5, 1e-4, 3e-4, 1e-3]}
    if searcher != "grid":
        values = {"type": "loguniform", "low": 1e-5, "high": 1e-2}
    steps = {"type": "choice", "values": [20_000, 40_000, 60_000]}
    content = {
        "searcher": searcher,
        "num_trials": trials,
        "parameters": {"training.lr": values, "training.max_steps": steps},
    }
    config = load_config(list(overrides))
    space, curves = parse_space(content, "s.yaml"), SimulatedCurves(5_000)
    rules = rules_of(config, space)
    return Schedule(rules, Suggester(space, searcher, 1, rules.trials), curves), curves


def simulate(made, slots=4, law=None):
    scheduler, curves = made
    simulation = Simulation(scheduler, law or PowerLaw(), slots, 500, 10)
    curves.simulation = simulation
    simulation.run()
    return simulation


def test_a_schedule_trains_each_training_of_a_grid_once_and_names_a_winner_by_its_seeds():
    scheduler, curves = schedule("grid", 12, "sweep.asha=False")
    simulation = simulate((scheduler, curves), law=PowerLaw(rise=0.6))
    searched = [t for t in scheduler.trials.values() if t.repeats is None]
    assert len(searched) == 12
    assert sum(t.shares is None for t in searched) == 4
    assert all(not t.active for t in scheduler.trials.values())
    own = {t.id for t in scheduler.trials.values() if t.shares is None}
    assert set(simulation.trainings) == own, "shared ones never took a slot"
    repeats = [t for t in scheduler.trials.values() if t.repeats is not None]
    assert {t.point["training.replicate"] for t in repeats} == {1, 2}
    assert scheduler.winner().point["training.lr"] == pytest.approx(3e-4)
    assert scheduler.done


def test_the_winner_is_extended_to_50k_then_60k_where_it_still_falls():
    slow = PowerLaw(steps_scale=20_000, noise=0.0, seed_noise=0.0)
    for key in ("extended", "not"):
        space = parse_space(
            {
                "searcher": "grid",
                "parameters": {"training.lr": {"type": "choice", "values": [1e-4, 3e-4]}},
            },
            "s.yaml",
        )
        limits = [] if key == "extended" else ["sweep.extend_to=[]"]
        rules = rules_of(load_config(limits), space)
        curves = SimulatedCurves(5_000)
        scheduler = Schedule(rules, Suggester(space, "grid", 1, 2), curves)
        simulate((scheduler, curves), law=slow)
        steps = sorted(t.step for t in scheduler.trials.values() if t.repeats is None)
        assert steps[-1] == (60_000 if key == "extended" else 40_000)


def test_trials_that_wait_to_be_compared_cost_less_and_leave_as_many_finalists_as_wanted():
    waiting = schedule("random", 24, "sweep.seeds=1", "sweep.extend_to=[]")
    stopped = schedule("random", 24, "sweep.seeds=1", "sweep.continue_stopped=false")
    costs = [simulate(made).steps for made in (waiting, stopped)]
    assert costs[0] < 0.9 * costs[1]
    complete = [t for t in waiting[0].trials.values() if t.complete and not t.shares]
    assert len(complete) >= 3
    assert all(not trial.active for trial in waiting[0].trials.values())


@pytest.mark.parametrize("trials", [1, 2, 3, 5])
def test_however_few_trials_there_are_the_best_is_trained_to_its_end(trials):
    scheduler, curves = schedule("random", trials, "sweep.seeds=1", "sweep.finalists=1")
    simulate((scheduler, curves))
    assert scheduler.winner().complete


def test_ten_thousand_trials_leave_no_curve_in_memory_when_none_is_asked_for():
    scheduler, curves = schedule("random", 200, "sweep.seeds=1", "sweep.extend_to=[]")
    simulation = Simulation(scheduler, PowerLaw(), 50, 500, 10, keep_lines=False)
    curves.simulation = simulation
    simulation.run()
    assert len(simulation.trainings) == 200
    assert all(training.lines == [] for training in simulation.trainings.values())


@pytest.mark.parametrize(("rate_schedule", "steps"), [("constant", 60_000), ("wsd", 40_000)])
def test_a_winner_whose_rate_has_come_down_is_not_extended(rate_schedule, steps):
    values = {"training.lr": {"type": "choice", "values": [1e-4]}}
    config = load_config([f"training.lr_schedule={rate_schedule}"])
    space, curves = parse_space({"parameters": values}, "s.yaml"), SimulatedCurves(5_000)
    scheduler = Schedule(rules_of(config, space), Suggester(space, "grid", 1, 1), curves)
    simulate((scheduler, curves), law=Falling())
    assert [t.step for t in scheduler.trials.values()] == [steps]


class Falling:
    """Trainings that would always go on falling."""

    def val_loss(self, point, step):
        return math.exp(-step / 10_000)

    def step_s(self, point):
        return 1.0


class Swinging(SimulatedCurves):
    """The larger rate leads and is unstable."""

    def still_falling(self, trial):
        return False

    def remedy(self, trial):
        rate = trial.point["training.lr"]
        return {"training.lr": 1e-4} if rate == 1e-3 else None


class LargerIsBetter(Falling):
    def val_loss(self, point, step):
        return super().val_loss(point, step) + (point["training.lr"] < 1e-3)


@pytest.mark.parametrize("rates", [[1e-3], [1e-3, 1e-4]])
def test_a_remedy_that_is_a_point_of_the_sweep_is_not_trained_twice(rates):
    values = {"training.lr": {"type": "choice", "values": rates}}
    config = load_config(["sweep.try_remedies=true", "sweep.seeds=2", "sweep.finalists=2"])
    space, curves = parse_space({"parameters": values}, "s.yaml"), Swinging(5_000)
    scheduler = Schedule(rules_of(config, space), Suggester(space, "grid", 1, 2), curves)
    simulation = simulate((scheduler, curves), law=LargerIsBetter())
    assert simulation.steps == 4 * 40_000  # both rates, each with two seeds
    [remedy] = [t for t in scheduler.trials.values() if t.remedies]
    assert scheduler.trials[remedy.remedies].point["training.lr"] == 1e-3


@pytest.mark.parametrize(("earlier", "gone_on_with"), [(1, 1), (3, 2), (4, 2)])
def test_the_best_half_of_earlier_trainings_rounded_up_is_gone_on_with(earlier, gone_on_with):
    rates = [1e-5, 1e-4, 3e-4, 1e-3][:earlier]
    trained = [
        TrialState(f"quick/{n}", {"training.lr": rate}, 100, 100, ENDED, "max_steps", 100, 1.0 - n)
        for n, rate in enumerate(rates)
    ]
    values = {"training.lr": {"type": "loguniform", "low": 1e-5, "high": 1e-2}}
    space = parse_space({"searcher": "random", "num_trials": 4, "parameters": values}, "s.yaml")
    rules, curves = rules_of(load_config(["sweep.asha=false"]), space), EarlierCurves(5_000)
    scheduler = Schedule(rules, Suggester(space, "random", 1, 4), curves, trained)
    jobs = [scheduler.next() for _ in range(4)]
    assert [job.point["training.lr"] for job in jobs][:gone_on_with] == rates[::-1][:gone_on_with]
    assert [job.continues is not None for job in jobs] == [n < gone_on_with for n in range(4)]


class EarlierCurves(SimulatedCurves):
    def best_until(self, trial_id, step):
        return min(step, 100), 1.0


def test_an_extension_is_not_compared_at_rungs():
    config = load_config(["sweep.rungs=[5000,20000,45000]", "sweep.extend_to=[50000]"])
    steps = {"type": "choice", "values": [30_000, 60_000]}
    space = parse_space({"searcher": "grid", "parameters": {"training.max_steps": steps}}, "s.yaml")
    scheduler = Schedule(
        rules_of(config, space), Suggester(space, "grid", 1, 2), SimulatedCurves(5_000)
    )
    scheduler.restore([TrialState("001", {"training.max_steps": 30_000}, 50_000, 30_000)], [])
    assert scheduler.rungs.recorded.keys() == {5_000, 20_000, 45_000}
    for step in (20_000, 45_000):
        scheduler.report("001", step, 1.0)
    assert [len(seen) for seen in scheduler.rungs.recorded.values()] == [0, 1, 0]
