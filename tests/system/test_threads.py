import threading
from concurrent.futures import ThreadPoolExecutor

import torch

from sesttune.system.threads import one_core_each


def teams(pool: ThreadPoolExecutor, count: int) -> list[int]:
    """Threads that torch would use, asked in `count` threads of `pool` at once."""
    together = threading.Barrier(count)

    def ask(_: int) -> int:
        together.wait()
        torch.ones(100_000).log1p()  # large enough to be shared out
        return torch.get_num_threads()

    return list(pool.map(ask, range(count)))


def test_only_the_threads_of_the_pool_have_one_core_each() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with one_core_each(4, "reader") as pool, ThreadPoolExecutor(2) as others:
            assert teams(pool, 4) == [1] * 4
            assert torch.get_num_threads() == 3
            assert teams(others, 2) == [3, 3]
    finally:
        torch.set_num_threads(before)


def test_pools_made_at_the_same_time_leave_the_number_of_others_alone() -> None:
    before = torch.get_num_threads()

    def make(_: int) -> None:
        one_core_each(2, "encoder").shutdown()

    try:
        torch.set_num_threads(3)
        for _ in range(50):
            with ThreadPoolExecutor(8) as makers:
                list(makers.map(make, range(8)))
            with ThreadPoolExecutor(1) as others:
                assert teams(others, 1) == [3]
    finally:
        torch.set_num_threads(before)
