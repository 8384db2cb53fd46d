"""Where trials are measured before a sweep: in a process of this node, or on a GPU of the cluster.

A node without a GPU may start a sweep on a cluster that has some. What is measured on its own CPU
would be a plan of other trials than those that run; joining the cluster again takes seconds.
"""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from sesttune.config.schema import Config
from sesttune.search.ray_session import Slots, cluster_address, ray_session

Place = Callable[..., Any]
"""Calls a function with arguments in another process; raises `Lost` or what the function raises."""


class Lost(Exception):
    """The other process has ended without a word: killed, or out of memory."""


def place_for(config: Config, given: Slots) -> Place:
    """The `Place` where trials run that have `given`, or one like it."""
    import torch

    if cluster_address(config) is None or not given.gpus or torch.cuda.is_available():
        return in_a_process

    def on_the_cluster(function: Callable[..., Any], *arguments: object) -> Any:
        import ray
        from ray.exceptions import OutOfMemoryError, RayTaskError, WorkerCrashedError

        options: dict[str, Any] = {"num_cpus": given.cpus, "num_gpus": given.gpus}
        with ray_session(config):
            task = ray.remote(**options, max_calls=1, max_retries=0)(function)
            try:
                return ray.get(task.remote(*arguments))
            except (OutOfMemoryError, WorkerCrashedError):
                raise Lost from None
            except RayTaskError as error:
                raise error.cause from None

    return on_the_cluster


def in_a_process(function: Callable[..., Any], *arguments: object) -> Any:
    """The `Place` of this node."""
    spawn = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    try:
        with ProcessPoolExecutor(1, mp_context=spawn) as process:
            return process.submit(function, *arguments).result()
    except BrokenProcessPool:
        raise Lost from None
