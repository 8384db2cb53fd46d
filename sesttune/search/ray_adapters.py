"""Glue between Ray Tune's three interfaces and the `TrialLedger`; no decision is made here.

Ray asks the searcher for trials, the scheduler whether one goes on, and tells the callback
what happened. Ray's own trial ids are private to this file: the trial is named by
the `folder` in its settings.
"""

import logging
import time
from collections.abc import Callable, Mapping
from operator import methodcaller
from pathlib import Path
from typing import Any, cast

import ray
from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from sesttune.errors import UserError
from sesttune.search.ledger import INTERRUPTED, TrialLedger
from sesttune.search.listener import SweepListener
from sesttune.training.records import read_trial, trial_folder

log = logging.getLogger(__name__)

_CLOSED = {
    INTERRUPTED: "interrupted: each trial stops at its next validation, nothing of it is lost; "
    "Ctrl-C again stops at once"
}
_DEALT_WITH = ("Could not re-use actor", "Trials did not complete")
"""How what Ray calls an error begins where nothing is lost: the trial is handed out again, or its
record says why it has ended."""
_ASK_S = 10.0
"""How often Ray is asked whether it lives; it takes about as long to know."""


class LedgerSearcher(Searcher):
    """Hands out the ledger's trials, no more at once than there are slots.

    Asking only when a slot is free gives the suggestion all results known by then.
    """

    def __init__(self, ledger: TrialLedger, concurrent: int) -> None:
        super().__init__()
        self._ledger, self._concurrent = ledger, concurrent
        self._running: set[str] = set()

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        if len(self._running) >= self._concurrent:
            return None
        job = self._ledger.next()
        if job is None:
            # "Finished" is a word, whatever Ray's own annotation says.
            return cast(None, Searcher.FINISHED) if self._ledger.done else None
        self._running.add(trial_id)
        folder = str(trial_folder(self._ledger.folder, job.id))
        return {"folder": folder, "max_steps": job.max_steps, "handed_out": time.time()}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        self._running.discard(trial_id)

    def hand_out_again(self, trials: list[Trial]) -> None:
        """Put back trials that Ray gave up without a word to its searcher or its callbacks.

        It does so where a kept worker will not let go of its last trial. That worker is gone then,
        so each is tried once more for each that was stopped, at most.
        """
        for trial in trials:
            if trial.status == Trial.ERROR and trial.trial_id in self._running:
                self._running.remove(trial.trial_id)
                self._ledger.put_back(id_of(trial))
                log.info("%s is handed out again: its worker kept its last trial", id_of(trial))


class LedgerScheduler(FIFOScheduler):
    """Stops a trial when the ledger says so."""

    def __init__(self, ledger: TrialLedger) -> None:
        super().__init__()
        self._ledger = ledger

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        stop = self._ledger.report(id_of(trial), int(result["step"]), result["best_val_loss"])
        return TrialScheduler.STOP if stop else TrialScheduler.CONTINUE


class LedgerCallback(Callback):
    """Settles the record of each trial that ended, and passes events to the listeners."""

    def __init__(
        self, ledger: TrialLedger, searcher: LedgerSearcher, listeners: list[SweepListener]
    ) -> None:
        self._ledger, self._searcher, self._listeners = ledger, searcher, list(listeners)
        self._told = False
        self._asked = time.monotonic()

    def on_step_begin(self, iteration: int, trials: list[Trial], **_: Any) -> None:
        self._searcher.hand_out_again(trials)

    def __getstate__(self) -> dict[str, Any]:
        # Ray pickles its callbacks for a restore that is never made; a live table cannot be.
        return {"_ledger": self._ledger, "_listeners": []}

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        record = read_trial(Path(trial.config["folder"]))
        assert record is not None, "the ledger writes the record before it hands out the trial"
        self._tell(lambda listener: listener.on_start(record, trial.config["max_steps"]))

    def on_trial_result(
        self,
        iteration: int,
        trials: list[Trial],
        trial: Trial,
        result: Mapping[str, float],
        **_: Any,
    ) -> None:
        self._tell(lambda listener: listener.on_report(id_of(trial), result))

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **_: Any
    ) -> None:
        self._ledger.end(id_of(trial))

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        self._ledger.end(
            id_of(trial), "the worker process was lost twice (killed, or out of memory)"
        )

    def on_step_end(self, iteration: int, trials: list[Trial], **_: Any) -> None:
        self._refuse_dead_ray()
        self._ledger.tick()
        for record in self._ledger.take_ended():
            self._tell(methodcaller("on_end", record))
        why = self._ledger.closed
        if why is not None and not self._told:
            self._told = True
            self._tell(lambda listener: listener.on_note(_CLOSED.get(why, why)))
        self._tell(lambda listener: listener.on_tick())

    def _refuse_dead_ray(self) -> None:
        """Ray waits for ever for the trials of a machine whose raylet is gone."""
        if time.monotonic() - self._asked < _ASK_S:
            return
        self._asked = time.monotonic()
        if not any(node["Alive"] for node in ray.nodes()):
            raise UserError(
                "Ray has died on every machine of the sweep (killed, or out of memory): what was "
                "validated is safe, continue with --resume"
            )

    def _tell(self, event: Callable[[SweepListener], None]) -> None:
        for listener in list(self._listeners):
            try:
                event(listener)
            except Exception:  # a display must not end days of training
                log.exception("%s fell silent", type(listener).__name__)
                self._listeners.remove(listener)


def quieten() -> None:
    """Keep Ray from printing as errors what is dealt with here."""
    for name in ("ray.tune.execution.tune_controller", "ray.tune.tune"):
        logging.getLogger(name).addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_DEALT_WITH)


def id_of(trial: Trial) -> str:
    """The ledger's id of a Ray trial."""
    return Path(trial.config["folder"]).name
