"""Deliver a run folder to MLflow beside the sweep, never in its way.

A thread looks for news every few seconds. A store that is away, slow or broken
costs a warning and another try at the next turn; trials never notice.
"""

import logging
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from sesttune.tracking.store import without_secrets

log = logging.getLogger(__name__)

INTERVAL_S = 3.0
LAST_TRIES = 3


class BackgroundSync:
    """Context manager: syncs while the block runs, and once more at its end."""

    def __init__(self, folder: Path, uri: str, experiment: str) -> None:
        self._folder, self._uri, self._experiment = folder, uri, experiment
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="mlflow-sync", daemon=True)
        self.delivered = False
        """Whether everything had reached MLflow at the end."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join()

    def _loop(self) -> None:
        warned = False
        while not self._done.wait(INTERVAL_S):
            problem = self._try()
            if problem is not None and not warned:
                where = without_secrets(self._uri)
                log.warning("MLflow at %s: %s; will try again", where, problem)
                warned = True
        for _ in range(LAST_TRIES):
            problem = self._try()
            if problem is None:
                self.delivered = True
                return
        log.warning("MLflow is away (%s): results are safe in %s", problem, self._folder)

    def _try(self) -> str | None:
        """Sync once; returns what went wrong, in a line."""
        from sesttune.tracking.sync import RunTracker

        try:
            RunTracker(self._folder, self._uri, self._experiment).sync()
        except Exception as error:  # nothing that happens to tracking may end a sweep
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            return (str(cause) or type(cause).__name__).splitlines()[0][:200]
        return None
