"""Training batches read ahead by threads, in order.

Threads rather than processes: the store is memory-mapped and numpy releases the
GIL where it copies, so nothing is pickled and a trial starts at once. Where the
stream stands is the caller's to know (sets trained on), because batches read
ahead do not count: a resumed trial neither skips nor repeats a set.
"""

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from sesttune.data.readers import Batch, Reader
from sesttune.data.sampling import CellSetSampler


class TrainingBatches:
    """An endless iterator of batches of `batch_size` sets, `num_workers` of them read ahead."""

    def __init__(
        self, sampler: CellSetSampler, reader: Reader, batch_size: int, num_workers: int = 0
    ) -> None:
        self._sampler, self._reader = sampler, reader
        self._batch_size, self._workers = batch_size, num_workers
        self._ahead: deque[Future[Any]] = deque()
        self._threads = ThreadPoolExecutor(num_workers, "reader") if num_workers else None
        self.waited_s = 0.0
        """Seconds the caller has waited for batches."""

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        start = time.perf_counter()
        prepared = self._read() if self._threads is None else self._read_ahead(self._threads)
        self.waited_s += time.perf_counter() - start
        return self._reader.finish(prepared)

    def close(self) -> None:
        """Stop reading ahead."""
        for future in self._ahead:
            future.cancel()
        self._ahead.clear()
        if self._threads is not None:
            self._threads.shutdown()
            self._threads = None
        self._sampler.close()

    def _read(self) -> Any:
        return self._reader.prepare(self._sampler.next_sets(self._batch_size))

    def _read_ahead(self, threads: ThreadPoolExecutor) -> Any:
        while len(self._ahead) <= self._workers:
            sets = self._sampler.next_sets(self._batch_size)
            self._ahead.append(threads.submit(self._reader.prepare, sets))
        return self._ahead.popleft().result()
