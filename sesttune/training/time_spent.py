"""Where the time of a trial went, from its report lines (see `callbacks.py`).

A line knows the seconds since its process began to train (`elapsed_s`), the speed of the steps
since the last validation (`steps_per_s`, its own time left out), and the share of those spent
waiting for data. What is left of an interval is validation and saving. The validation after the
last line is in none.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sesttune.training.records import Line


@dataclass(frozen=True)
class Interval:
    """Seconds from one report line to the next; `elapsed_s` leaves out what `startup_s` is.

    `startup_s`: from the wish for a trial to its first step, in the first interval of a process.
    """

    elapsed_s: float
    computing_s: float = 0.0
    waiting_s: float = 0.0
    validating_s: float = 0.0
    startup_s: float = 0.0


def intervals(lines: Sequence[Line]) -> list[Interval]:
    """One for each line, the time that led to it."""
    found = []
    before: Line = {"step": 0, "elapsed_s": 0.0}
    starting = True
    for line in lines:
        rate, steps = line["steps_per_s"], line["step"] - before["step"]
        trained = steps / rate if rate > 0 else 0.0
        elapsed = line["elapsed_s"] - before["elapsed_s"]
        # A new process counts from 0: its first interval cannot be shorter than its own steps.
        if elapsed < 0.999 * trained:
            elapsed, starting = line["elapsed_s"], True
        waiting = trained * line["data_wait_frac"]
        startup = line["startup_s"] if starting and trained else 0.0
        found.append(
            Interval(
                elapsed,
                trained - waiting,
                waiting,
                # What a process does before its first step is start-up.
                0.0 if starting else max(0.0, elapsed - trained),
                startup,
            )
        )
        starting = starting and not trained
        before = line
    return found
