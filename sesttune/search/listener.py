"""What others may hear of a running sweep. Listeners observe: they cannot stop or change it."""

from collections.abc import Mapping

from sesttune.training.records import TrialRecord


class SweepListener:
    """Override what you need. Called in the driver, so be quick: trials wait meanwhile."""

    def on_note(self, text: str) -> None:
        """Something of the whole sweep that a person should know, in one line."""

    def on_start(self, record: TrialRecord, max_steps: int) -> None:
        """A trial begins, or goes on after its worker was lost."""

    def on_report(self, trial_id: str, metrics: Mapping[str, float]) -> None:
        """A trial has validated; `metrics` is its report line."""

    def on_end(self, record: TrialRecord) -> None:
        """A trial has ended; `record` says how."""

    def on_tick(self) -> None:
        """Called a few times a second while the sweep runs."""
