"""What runs in a Ray worker: one trial in its folder, never an exception.

A failing trial is recorded here, by the process that knows why, and returns normally; so
Ray's one retry is left for the workers that die without a word (killed, out of memory), and
that retry continues from the trial's own last checkpoint.
"""

import fcntl
import logging
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sesttune.errors import UserError
from sesttune.search.trial_state import ERROR
from sesttune.system.atomic import write_text

_LOCK_WAIT_S = 60.0


def work(settings: Mapping[str, Any]) -> None:
    """Train the trial in `settings["folder"]` and report each validation to Ray.

    `settings`: `folder` (absolute, holding `trial.json`), `manifest` (of the prepared
    data), `config` (nested dict of the sweep's settings), `max_steps` (until where), `threads`
    (for torch), `handed_out` (when the trial was, in seconds since the epoch).
    """
    import torch
    from ray import tune

    from sesttune.config.load import from_dict, with_point
    from sesttune.system.out_of_memory import give_back
    from sesttune.training.records import read_trial, update_trial
    from sesttune.training.trial import run_trial

    logging.getLogger().setLevel(logging.WARNING)
    torch.set_num_threads(settings["threads"])
    folder, stopped = Path(settings["folder"]), None
    try:
        with _sole_owner(folder):
            record = read_trial(folder)
            assert record is not None, "the driver writes the record first"
            if not record.finished:
                budget = {"training.max_steps": settings["max_steps"]}
                config = with_point(from_dict(settings["config"]), record.params | budget)
                manifest, started = Path(settings["manifest"]), settings["handed_out"]
                run_trial(config, manifest, folder, tune.report, started)
    except Exception as error:  # whatever it is, it is this trial's result
        write_text(folder / "error.txt", traceback.format_exc())
        update_trial(folder, "failed", f"{ERROR}{_one_line(error)}")
    except SystemExit as error:  # how Ray ends a trial that is stopped early
        stopped = SystemExit(error.code)
    # The process is used again: leave nothing of this trial in memory. Outside of `except`, whose
    # traceback keeps all that the trial held.
    give_back()
    if stopped is not None:
        raise stopped


def _one_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    if isinstance(error, UserError):
        return str(error)
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


@contextmanager
def _sole_owner(folder: Path) -> Iterator[None]:
    """Hold the folder's lock: a worker orphaned by a killed driver may still be writing."""
    with (folder / ".lock").open("w") as file:
        deadline = time.monotonic() + _LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"another process is still running {folder}") from None
                time.sleep(0.2)
        yield
