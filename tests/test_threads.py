import threading
from concurrent.futures import ThreadPoolExecutor

import torch

from sesttune.threads import one_core_each


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
