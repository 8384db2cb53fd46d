"""Run a scheduler in virtual time against learning curves that are functions, without an engine.

A simulated validation costs about ten microseconds, so what a scheduling rule is worth can be
measured over thousands of sweeps, and a plan can say what a sweep will cost before it starts.
Trials behave as real ones do: they validate at every interval, spend their patience, end at their
budget or where the loss is not a number, and go on from their last validation when they are handed
out again.
"""

import heapq
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from sesttune.search.protocol import Job, Scheduler
from sesttune.search.trial_state import TrialState
from sesttune.search.verdict import CHANGE
from sesttune.training.progress import Progress
from sesttune.training.records import MAX_STEPS, NAN, PATIENCE


class Landscape(Protocol):
    """Learning curves over a search space."""

    def val_loss(self, point: Mapping[str, Any], step: int) -> float:
        """The validation loss of a trial at a step; nan where it has diverged."""

    def step_s(self, point: Mapping[str, Any]) -> float:
        """Seconds of one optimizer step."""


class Event(NamedTuple):
    """One validation: when, what all trials had cost by then, and the best loss of any of them."""

    time_s: float
    slot_s: float
    steps: int
    best_val_loss: float


@dataclass
class Training:
    """A trial's own state, as its last checkpoint has it."""

    progress: Progress
    step: int = -1
    lines: list[tuple[int, float]] = field(default_factory=list)
    """(step, val_loss) of its validations, where they are kept."""


class SimulatedCurves:
    """What a `Schedule` looks up of past curves, from the simulation that runs it."""

    simulation: "Simulation"

    def __init__(self, window: int) -> None:
        """`window`: steps over which a change counts, patience x val_check_interval."""
        self._window = window

    def best_until(self, trial_id: str, step: int) -> tuple[int, float]:
        lines = [line for line in self.simulation.trainings[trial_id].lines if line[0] <= step]
        return (lines[-1][0], min(loss for _, loss in lines)) if lines else (-1, math.inf)

    def still_falling(self, trial: TrialState) -> bool:
        _, before = self.best_until(trial.id, trial.step - self._window)
        return (before - trial.best) / before >= CHANGE

    def remedy(self, trial: TrialState) -> dict[str, Any] | None:
        return None


class Simulation:
    """`slots` workers over one sweep.

    `interval`, `patience`: of validations, as in `training.*`. `startup_s`: from hand-out to first
    step. `on_event`: called at every validation. `keep_lines`: keep each trial's curve, for
    schedulers that look back at it.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        landscape: Landscape,
        slots: int,
        interval: int,
        patience: int,
        startup_s: float = 0.0,
        on_event: Callable[[Event], None] | None = None,
        keep_lines: bool = True,
    ) -> None:
        self.scheduler, self._landscape, self._slots = scheduler, landscape, slots
        self._interval, self._patience, self._startup_s = interval, patience, startup_s
        self._on_event, self._keep_lines = on_event, keep_lines
        self.trainings: dict[str, Training] = {}
        self.time_s = self.slot_s = 0.0
        self.steps = self._order = 0
        self.best = math.inf
        self._queue: list[tuple[float, int, int, Job, float]] = []

    def run(self) -> None:
        """Until the scheduler has nothing left to hand out."""
        while True:
            while len(self._queue) < self._slots and (job := self.scheduler.next()) is not None:
                self._start(job)
            if not self._queue:
                return
            self._validate(*heapq.heappop(self._queue))

    def _start(self, job: Job) -> None:
        training = self.trainings.get(job.id)
        if training is None:
            training = self.trainings[job.id] = Training(Progress(self._patience, 0.0))
            if job.continues is not None:
                source = self.trainings[job.continues]
                training.step, training.lines = source.step, list(source.lines)
                training.progress.load_state_dict(source.progress.state_dict())
        self._schedule(job, training, self._startup_s)

    def _schedule(self, job: Job, training: Training, startup_s: float = 0.0) -> None:
        step = training.step
        following = (step // self._interval + 1) * self._interval if step >= 0 else 0
        following = min(following, job.max_steps)
        took = startup_s + (following - max(step, 0)) * self._landscape.step_s(job.point)
        self._order += 1
        heapq.heappush(self._queue, (self.time_s + took, self._order, following, job, took))

    def _validate(self, at: float, _: int, step: int, job: Job, took: float) -> None:
        training, scheduler = self.trainings[job.id], self.scheduler
        self.steps += step - max(training.step, 0)
        self.time_s, self.slot_s, training.step = at, self.slot_s + took, step
        loss = self._landscape.val_loss(job.point, step)
        if not math.isfinite(loss):
            scheduler.end(job.id, NAN)
            return
        if self._keep_lines:
            training.lines.append((step, loss))
        training.progress.update(step, loss)
        self.best = min(self.best, loss)
        stop = scheduler.report(job.id, step, training.progress.best)
        if self._on_event is not None:
            self._on_event(Event(self.time_s, self.slot_s, self.steps, self.best))
        if stop:
            scheduler.end(job.id, "stopped")
        elif training.progress.exhausted:
            scheduler.end(job.id, PATIENCE)
        elif step >= job.max_steps:
            scheduler.end(job.id, MAX_STEPS)
        else:
            self._schedule(job, training)
