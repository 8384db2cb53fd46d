"""Batches read ahead: how many, in which order, and what the caller waited for them."""

import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sesttune.data.loader import TrainingBatches


def batches(workers: int, takes_s: float = 0.0) -> tuple[TrainingBatches, list[int]]:
    """Batches that are their own number, and the numbers that have been asked for."""
    asked: list[int] = []

    def next_sets(count: int) -> int:
        asked.append(len(asked))
        return asked[-1]

    def prepare(number: int) -> int:
        time.sleep(takes_s)
        return number

    sampler: Any = SimpleNamespace(next_sets=next_sets, close=lambda: None)
    reader: Any = SimpleNamespace(
        device=torch.device("cpu"), prepare=prepare, finish=lambda number: number
    )
    return TrainingBatches(sampler, reader, 4, workers), asked


@pytest.mark.parametrize("workers", [0, 2])
def test_as_many_are_read_ahead_as_there_are_workers_and_come_in_order(workers: int) -> None:
    made, asked = batches(workers)
    assert [next(made) for _ in range(3)] == [0, 1, 2]
    assert asked == list(range(3 + workers))
    made.close()


def test_the_time_that_the_caller_waited_is_counted() -> None:
    made, _ = batches(0, takes_s=0.02)
    next(made), next(made)
    assert 0.04 <= made.waited_s < 1
