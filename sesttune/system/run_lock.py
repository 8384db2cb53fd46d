"""The one process that runs a run folder, and how it goes on after a full disk."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sesttune.errors import UserError
from sesttune.system.atomic import DiskFull


@contextmanager
def only_driver(folder: Path) -> Iterator[None]:
    """Hold the run folder: two processes would train the same trials, and cut each other's files.

    Raises UserError where another process holds it; that of a full disk says how to go on.
    """
    with (folder / ".driver.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder} is being run by another process: wait, or stop it") from None
        try:
            yield
        except DiskFull as error:
            raise UserError(
                f"{error}, or lower training.checkpoint_budget_gb, and continue with --resume "
                f"{folder.name}: nothing is lost"
            ) from None
