"""Threads beside the main one, each computing on one core.

torch gives every thread that computes a team of its own, as large as the process was told:
a reader's team and the training loop's would wait for each other's cores at every operation.
"""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Lock

import torch

_SETTING = Lock()  # of the process's number, by one caller at a time


def one_core_each(count: int, name: str) -> ThreadPoolExecutor:
    """A pool of `count` threads whose torch operations take one core, whatever others take."""
    begun = Barrier(count + 1)

    def begin() -> None:
        torch.get_num_threads()  # the first call in a thread takes the process's number
        torch.set_num_threads(1)
        begun.wait()

    pool = ThreadPoolExecutor(count, name, initializer=begin)
    with _SETTING:
        others = torch.get_num_threads()
        for _ in range(count):
            pool.submit(int)  # a pool starts a thread for each call that finds none idle
        begun.wait()
        torch.set_num_threads(others)  # what threads that are still to come begin with
    return pool
