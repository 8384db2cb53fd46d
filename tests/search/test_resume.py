"""A sweep killed anywhere and resumed ends as if nothing had happened.

The ledger and its folders are real; only the training is replaced by curves in virtual time, so
that hundreds of kills take seconds.
"""

import heapq
import itertools
import math
import random
import shutil

import pytest

from sesttune.config.load import load_config
from sesttune.search.ledger import TrialLedger
from sesttune.search.outcome import read_outcome
from sesttune.search.recorded import read_schedule
from sesttune.search.space_file import parse_space
from sesttune.training.records import (
    append_metrics,
    cut_metrics,
    list_trials,
    read_metrics,
    read_trial,
    trial_folder,
    update_trial,
)

EVERY = 10
CONFIG = load_config(
    [
        "training.val_check_interval=10",
        "training.patience=2",
        "sweep.reduction_factor=2",
        "sweep.extend_to=[100,120]",
        "sweep.finalists=2",
        "sweep.seeds=2",
    ]
)
STEPS = {"type": "choice", "values": [40, 60, 80]}
SPACES = {
    "tpe": {"training.lr": {"type": "loguniform", "low": 1e-5, "high": 1e-1}},
    # Few points: most trials share a training, and longer ones come after shorter ones.
    "random": {"training.lr": {"type": "choice", "values": [1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 1e-2]}},
    "grid": {"training.lr": {"type": "choice", "values": [1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 1e-2]}},
}


class Killed(Exception):
    pass


class Machines:
    """`slots` workers in virtual time, over the trials of the sweep in `folder`."""

    def __init__(self, folder, space, seed, slots=3):
        self.folder, self.space, self.seed, self.slots = folder, space, seed, slots
        self.now, self.queue, self.jobs = 0.0, [], {}
        self.order, self.lines = itertools.count(), 0
        self.ledger = None

    def run(self, kill_at=None, reported=False):
        """Until all is done, or a kill after the `kill_at`th validation was written."""
        self.ledger = TrialLedger(self.folder, CONFIG, self.space)
        # What a resumed ledger finds ended, or stops at once, is not in flight any more.
        going = {record.id for record in list_trials(self.ledger.folder) if not record.finished}
        self.queue = [event for event in self.queue if event[2] in going]
        heapq.heapify(self.queue)
        in_flight, self.jobs = {event[2] for event in self.queue}, {}
        while True:
            while len(self.jobs) < self.slots and (job := self.ledger.next()) is not None:
                self.jobs[job.id] = job
                if job.id in in_flight:
                    in_flight.remove(job.id)
                else:
                    self._start(job)
            if not self.queue:
                assert self.ledger.done
                return
            self._validate(*heapq.heappop(self.queue), kill_at, reported)

    def _start(self, job):
        folder = trial_folder(self.folder, job.id)
        assert read_trial(folder).params == job.point, "the folder of another trial"
        update_trial(folder, "running", None)
        if self.ledger.schedule.trials[job.id].step < 0:  # there is no checkpoint
            cut_metrics(folder, -1)
        lines = read_metrics(folder)
        self._later(job, lines[-1]["step"] + EVERY if lines else 0)

    def _later(self, job, step):
        pace = random.Random(f"{self.seed} pace {job.point['training.lr']}").uniform(1, 3)
        heapq.heappush(self.queue, (self.now + pace, next(self.order), job.id, step))

    def _validate(self, at, _, trial_id, step, kill_at, reported):
        self.now, job = at, self.jobs[trial_id]
        folder = trial_folder(self.folder, trial_id)
        before = read_metrics(folder)
        best = before[-1]["best_val_loss"] if before else math.inf
        best = min(best, self._loss(job.point, step))
        line = {"step": step, "train_loss": best, "val_loss": best, "best_val_loss": best}
        append_metrics(folder, line | {"best_step": step, "time": self.now, "lr": 1e-4})
        self.lines += 1
        if self.lines == kill_at and not reported:
            if step >= job.max_steps:
                update_trial(folder, "done", "max_steps")
            self._later(job, step + EVERY)
            raise Killed
        stop = self.ledger.report(trial_id, step, best)
        if step >= job.max_steps and not stop:
            update_trial(folder, "done", "max_steps")
        elif not stop or self.lines == kill_at:
            self._later(job, step + EVERY)
        if self.lines == kill_at:
            raise Killed
        if stop or step >= job.max_steps:
            del self.jobs[trial_id]
            self.ledger.end(trial_id)

    def _loss(self, point, step):
        lr, draw = point["training.lr"], point.get("training.replicate", 0)
        curve = random.Random(f"{self.seed} {lr}")
        low, fall = curve.random(), curve.uniform(0.3, 1.0)
        noise = random.Random(f"{self.seed} {lr} {draw} {step}").uniform(0, 0.05)
        return low + 3 * (1 + step / EVERY) ** -fall + noise


def outcome(folder):
    return {
        record.id: (
            record.params,
            record.status,
            record.stop_reason,
            [(line["step"], line["best_val_loss"]) for line in record.metrics()],
        )
        for record in list_trials(folder)
    }


@pytest.mark.parametrize("searcher", SPACES)
@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))])
def test_a_sweep_killed_anywhere_and_resumed_ends_as_if_nothing_had_happened(
    tmp_path, searcher, seed
):
    parameters = SPACES[searcher] | {"training.max_steps": STEPS}
    space = parse_space(
        {"searcher": searcher, "num_trials": 14, "parameters": parameters}, "s.yaml"
    )
    whole = Machines(tmp_path / "whole", space, seed)
    whole.run()
    expected = outcome(whole.folder)
    assert any("training.replicate" in params for params, *_ in expected.values())
    assert any(curve[-1][0] == 120 for *_, curve in expected.values()), "the winner was extended"
    assert searcher != "tpe" or any(reason[:4] == "asha" for _, _, reason, _ in expected.values())
    for kill_at in range(1 + seed, whole.lines, 7):
        machines = Machines(tmp_path / f"killed{kill_at}", space, seed)
        with pytest.raises(Killed):
            machines.run(kill_at, reported=bool(kill_at % 2))
        machines.run()
        assert outcome(machines.folder) == expected, f"killed at validation {kill_at}"


def test_without_the_folder_of_a_trial_a_sweep_is_reported_and_gone_on_with(tmp_path):
    parameters = SPACES["random"] | {"training.max_steps": STEPS}
    space = parse_space({"searcher": "random", "num_trials": 5, "parameters": parameters}, "s.yaml")
    Machines(tmp_path / "whole", space, seed=0).run()
    expected = outcome(tmp_path / "whole")
    kept = {r.id: read_schedule(r.folder) for r in list_trials(tmp_path / "whole")}
    needed = {
        name: {about.get(name) for about in kept.values()}
        for name in ("shares", "continues", "repeats")
    }
    for gone in set.union(*needed.values()) - {None}:
        machines = Machines(tmp_path / f"without {gone}", space, seed=0)
        shutil.copytree(tmp_path / "whole", machines.folder)
        shutil.rmtree(trial_folder(machines.folder, gone))
        assert read_outcome(machines.folder, CONFIG).best.id != gone
        TrialLedger(machines.folder, CONFIG, space)  # of a driver that is killed at once
        for record in list_trials(machines.folder):
            if kept[record.id].get("shares") == gone:
                assert not record.metrics(), "whose checkpoints are gone"
        machines.run()
        found = outcome(machines.folder)
        assert all(status != "pending" for _, status, *_ in found.values()), gone
        there = expected.keys() - {gone}
        assert [found[i][0] for i in there] == [expected[i][0] for i in there], gone
