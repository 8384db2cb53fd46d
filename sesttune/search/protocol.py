"""What a scheduler of trials is asked, by Ray's adapters and by the simulator alike."""

from typing import Any, NamedTuple, Protocol


class Job(NamedTuple):
    """Train trial `id` until `max_steps`, or go on with it from its last checkpoint.

    `continues`: a trial with the same settings but for max_steps, whose checkpoint and curve this
    one starts from when it has none of its own.
    """

    id: str
    point: dict[str, Any]
    max_steps: int
    continues: str | None = None


class Scheduler(Protocol):
    """Decides over trials; it is told everything it may know, and has no clock."""

    @property
    def done(self) -> bool:
        """Whether nothing will be handed out any more."""

    def next(self) -> Job | None:
        """A job for a free slot; None where there is none now."""

    def report(self, job_id: str, step: int, best_val_loss: float) -> object | None:
        """Take in a validation; something true means that the trial must stop here."""

    def end(self, job_id: str, reason: str) -> None:
        """A job has ended: `max_steps`, `patience`, `nan`, `stopped` (as asked), `error: ...`."""
