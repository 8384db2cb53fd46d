"""Training batches read ahead by threads, in order.

Threads rather than processes: the store is memory-mapped and numpy releases the
GIL where it copies, so nothing is pickled and a trial starts at once. Where the
stream stands is the caller's to know (sets trained on), because batches read
ahead do not count: a resumed trial neither skips nor repeats a set.
"""

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import torch

from sesttune.data.readers import Batch, Reader
from sesttune.data.sampling import CellSetSampler
from sesttune.system.threads import one_core_each


class TrainingBatches:
    """An endless iterator of batches of `batch_size` sets, `num_workers` of them read ahead."""

    def __init__(
        self, sampler: CellSetSampler, reader: Reader, batch_size: int, num_workers: int = 0
    ) -> None:
        self._sampler, self._reader = sampler, reader
        self._batch_size, self._workers = batch_size, num_workers
        self._ahead: deque[Future[Any]] = deque()
        self._threads = one_core_each(num_workers, "reader") if num_workers else None
        self._stream: torch.cuda.Stream | None = None
        self._moving: tuple[Batch, torch.cuda.Event] | None = None
        if reader.device.type == "cuda":
            self._stream = torch.cuda.Stream(reader.device)
            self._stream.wait_stream(torch.cuda.current_stream())  # the reader's own uploads
        self.waited_s = 0.0
        """Seconds the caller has waited for batches."""

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._stream is None:
            return self._reader.finish(self._prepared())
        batch, ready = self._moving or self._move(self._stream)
        self._moving = self._move(self._stream)
        loop = torch.cuda.current_stream()
        loop.wait_event(ready)
        for tensor in batch.values():
            tensor.record_stream(loop)  # or its memory could be given away while it is read
        return batch

    def close(self) -> None:
        """Stop reading ahead."""
        for future in self._ahead:
            future.cancel()
        self._ahead.clear()
        if self._threads is not None:
            self._threads.shutdown()
            self._threads = None
        self._sampler.close()

    def _move(self, stream: torch.cuda.Stream) -> tuple[Batch, torch.cuda.Event]:
        """Have the next batch copied and made dense beside the step that is being computed."""
        prepared = self._prepared()
        with torch.cuda.stream(stream):
            return self._reader.finish(prepared), stream.record_event()

    def _prepared(self) -> Any:
        start = time.perf_counter()
        if self._threads is None:
            prepared = self._reader.prepare(self._sampler.next_sets(self._batch_size))
        else:
            while len(self._ahead) <= self._workers:
                sets = self._sampler.next_sets(self._batch_size)
                self._ahead.append(self._threads.submit(self._reader.prepare, sets))
            prepared = self._ahead.popleft().result()
        self.waited_s += time.perf_counter() - start
        return prepared
