"""Deliver a run folder to MLflow beside the sweep, never in its way.

A thread looks for news every few seconds. A store that is away, slow or broken
costs a warning and another try at the next turn; trials never notice. How long it is away
changes nothing but the number of turns: nothing is kept in memory.
"""

import logging
import shlex
import threading
from pathlib import Path
from typing import Self

from sesttune.tracking.store import problem, without_secrets

log = logging.getLogger(__name__)

INTERVAL_S = 3.0
LAST_TRIES = 3
FILES_PAUSE_TURNS = 100
"""How long files rest where one was not taken: a checkpoint is 0.6 GB, and would be sent again."""


class BackgroundSync:
    """Context manager: syncs while the block runs, and once more at its end."""

    def __init__(
        self, folder: Path, uri: str, experiment: str, interval_s: float = INTERVAL_S
    ) -> None:
        self._folder, self._uri, self._experiment = folder, uri, experiment
        self._interval_s = interval_s
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="mlflow-sync", daemon=True)
        self.delivered = False
        """Whether everything had reached MLflow at the end."""
        self.failed_turns = 0
        self._files_pause = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

    def _loop(self) -> None:
        while not self._done.wait(self._interval_s):
            self._files_pause = max(0, self._files_pause - 1)
            wrong = self._try(files=self._files_pause == 0)
            if wrong is not None:
                if self.failed_turns == 0:
                    where = without_secrets(self._uri)
                    log.warning("MLflow at %s: %s; will try again", where, wrong)
                self.failed_turns += 1
        self._files_pause = 0
        for _ in range(LAST_TRIES):
            wrong = self._try()
            if wrong is None:
                self.delivered = True
                return
            if self._files_pause:  # all else is there, and a file has had its time
                break
        log.warning(
            "not all has reached MLflow (%s): results are safe in %s; deliver them with: "
            "sesttune track sync %s --output-dir %s",
            wrong,
            self._folder,
            shlex.quote(self._folder.name),
            shlex.quote(str(self._folder.parent)),
        )

    def _try(self, files: bool = True) -> str | None:
        """Sync once; returns what went wrong, in a line."""
        from sesttune.tracking.sync import RunTracker

        try:
            wrong = RunTracker(self._folder, self._uri, self._experiment).sync(files)
        except Exception as error:  # nothing that happens to tracking may end a sweep
            return problem(error, self._uri)
        if wrong is not None:
            self._files_pause = FILES_PAUSE_TURNS
        return wrong
