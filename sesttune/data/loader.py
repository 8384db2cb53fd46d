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

import torch

from sesttune.data.sampling import CellSetSampler, read_batch
from sesttune.data.trial_data import TrialData

Batch = dict[str, torch.Tensor]


class TrainingBatches:
    """An endless iterator of `read_batch` tensors of `batch_size` sets, after `drawn` sets."""

    def __init__(
        self,
        data: TrialData,
        set_len: int,
        batch_size: int,
        seed: int,
        num_workers: int = 0,
        drawn: int = 0,
    ) -> None:
        self._data, self._batch_size, self._workers = data, batch_size, num_workers
        self._sampler = CellSetSampler(data, set_len, seed)
        self._sampler.load_state_dict({"sets": drawn})
        self._ahead: deque[Future[Batch]] = deque()
        self._threads = ThreadPoolExecutor(num_workers) if num_workers else None
        self.waited_s = 0.0
        """Seconds the caller has waited for batches."""

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        start = time.perf_counter()
        batch = self._read() if self._threads is None else self._read_ahead(self._threads)
        self.waited_s += time.perf_counter() - start
        return batch

    def close(self) -> None:
        """Stop reading ahead."""
        for future in self._ahead:
            future.cancel()
        self._ahead.clear()
        if self._threads is not None:
            self._threads.shutdown()
            self._threads = None

    def _read(self) -> Batch:
        return read_batch(self._data, self._sampler.next_sets(self._batch_size))

    def _read_ahead(self, threads: ThreadPoolExecutor) -> Batch:
        while len(self._ahead) <= self._workers:
            sets = self._sampler.next_sets(self._batch_size)
            self._ahead.append(threads.submit(read_batch, self._data, sets))
        return self._ahead.popleft().result()
