"""Training batches read ahead by threads, in order.

Threads rather than processes: the store is memory-mapped and numpy releases the
GIL where it copies, so nothing is pickled and a trial starts at once. The state is
that of the batches handed out, not of those read ahead, so a resumed trial
neither skips nor repeats a set.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from sesttune.data.sampling import CellSetSampler, read_batch
from sesttune.data.trial_data import TrialData

Batch = dict[str, torch.Tensor]


class TrainingBatches:
    """An endless iterator of `read_batch` tensors of `batch_size` sets each."""

    def __init__(
        self, data: TrialData, set_len: int, batch_size: int, seed: int, num_workers: int
    ) -> None:
        self._data, self._batch_size, self._workers = data, batch_size, num_workers
        self._sampler = CellSetSampler(data, set_len, seed)
        self._consumed = 0
        self._ahead: deque[Future[Batch]] = deque()
        self._threads = ThreadPoolExecutor(num_workers) if num_workers else None

    def state_dict(self) -> dict[str, int]:
        """Sets handed out so far."""
        return {"sets": self._consumed}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self._drop_ahead()
        self._consumed = int(state["sets"])
        self._sampler.load_state_dict(state)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._threads is None:
            batch = read_batch(self._data, self._sampler.next_sets(self._batch_size))
        else:
            while len(self._ahead) <= self._workers:
                sets = self._sampler.next_sets(self._batch_size)
                self._ahead.append(self._threads.submit(read_batch, self._data, sets))
            batch = self._ahead.popleft().result()
        self._consumed += self._batch_size
        return batch

    def close(self) -> None:
        """Stop reading ahead."""
        self._drop_ahead()
        if self._threads is not None:
            self._threads.shutdown()
            self._threads = None

    def _drop_ahead(self) -> None:
        for future in self._ahead:
            future.cancel()
        self._ahead.clear()
