"""Encode shards on every GPU of the node or cluster: one Ray actor a GPU, shards as they come.

A cluster's GPUs are those that Ray counts: the node that the command runs on may have none.
An actor that dies is started again and its shard computed once more; what is finished lies
in the cache whatever happens here.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sesttune.config.schema import Config
from sesttune.data.shards import ENCODING, Encoder, Runner, Shard, ShardEncoder, encode_here
from sesttune.search.ray_session import cluster_address, ray_session
from sesttune.system.cached_folder import Progress
from sesttune.system.machine import gpus


def shard_runner(config: Config) -> Runner:
    """Every GPU of the cluster that was asked for, or of this node if it has several; else here."""

    def run(shards: Sequence[Shard], encoder: Encoder, progress: Progress) -> None:
        if cluster_address(config) is not None or gpus() > 1:
            with ray_session(config):
                import ray

                workers = int(ray.cluster_resources().get("GPU", 0))
                if workers:
                    each = {"num_cpus": 0, "num_gpus": 1}
                    return encode_with_ray(shards, encoder, progress, workers, each)
        encode_here(shards, encoder, progress)

    return run


def encode_with_ray(
    shards: Sequence[Shard],
    encoder: Encoder,
    progress: Progress,
    workers: int,
    resources: Mapping[str, float],
) -> None:
    """Encode on `workers` actors of `resources` (`num_cpus`, `num_gpus`); Ray is running."""
    import ray
    from ray.exceptions import RayTaskError
    from ray.util import ActorPool

    at_once = encoder.calls_at_once
    lasting = {"max_restarts": 3, "max_task_retries": 3, "max_concurrency": at_once}
    options: dict[str, Any] = {**lasting, **resources}
    actor = ray.remote(**options)(ShardEncoder)
    started = [actor.remote(encoder) for _ in range(min(workers, len(shards)))]
    pool: Any = ActorPool(at_once * started)  # an actor takes as many shards as it has places
    done, total = 0, sum(len(shard.rows) for shard in shards)
    progress(ENCODING, 0, total)
    try:
        for cells in pool.map_unordered(lambda worker, shard: worker.encode.remote(shard), shards):
            done += cells
            progress(ENCODING, done, total)
    except RayTaskError as error:
        raise error.cause from None
