"""Start Ray quickly and quietly, and say how many trials fit.

A private local instance by default: no dashboard, no usage reports, no files of
Ray's own in the sweep folder, bound to the loopback interface. `RAY_ADDRESS` or
`sweep.address` join an existing cluster instead.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sesttune import host_memory
from sesttune.config.schema import Config
from sesttune.errors import UserError

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths of the user's config must keep their meaning
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the trial folders hold the metrics
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the sweep; --resume continues it
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "60",  # a stopped trial may be closing its files
    "TUNE_GLOBAL_CHECKPOINT_S": "31536000",  # Ray's snapshots are never read
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "31536000",
}
_OBJECT_STORE_BYTES = 100 * 1024**2  # trials pass a few numbers a minute


@dataclass(frozen=True)
class Slots:
    """What a trial is given, and how many run at once."""

    cpus: float
    gpus: float
    concurrent: int

    @property
    def threads(self) -> int:
        """Compute threads of a trial: no more than its cores."""
        return max(1, int(self.cpus))


@contextmanager
def ray_session(config: Config) -> Iterator[Slots]:
    """A running Ray, shut down at the end if it was started here."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    started = not ray.is_initialized()
    if started:
        _start(config.sweep.address or os.environ.get("RAY_ADDRESS"), config.training.device)
    try:
        yield slots(config, ray.cluster_resources())
    finally:
        if started:
            ray.shutdown()


def _start(address: str | None, device: str) -> None:
    import ray
    import torch

    if address is not None:
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except ConnectionError as error:
            raise UserError(f"sweep.address={address}: no Ray cluster answers ({error})") from None
        return
    if device == "cpu" or not torch.cuda.is_available():
        os.environ.update(host_memory.ENVIRONMENT)  # for the workers
    ray.init(
        address="local",
        num_cpus=len(os.sched_getaffinity(0)),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=_OBJECT_STORE_BYTES,
        _node_ip_address="127.0.0.1",
    )


def slots(config: Config, available: dict[str, float]) -> Slots:
    """Share out what Ray has (`CPU`, `GPU`). Raises UserError where not one trial fits."""
    sweep, device = config.sweep, config.training.device
    cpus, gpus = available.get("CPU", 0.0), available.get("GPU", 0.0)
    if device == "cuda" and gpus == 0:
        raise UserError("training.device=cuda, but Ray has no GPU: set training.device=auto or cpu")
    per_trial = 0.0 if device == "cpu" or gpus == 0 else sweep.gpu_share
    if sweep.cpus_per_trial > cpus:
        raise UserError(f"sweep.cpus_per_trial={sweep.cpus_per_trial:g}: there are {cpus:g} cores")
    if per_trial > gpus:
        raise UserError(f"sweep.gpus_per_trial={per_trial:g}: there are {gpus:g} GPUs")
    fit = int(cpus / sweep.cpus_per_trial)
    if per_trial:
        fit = min(fit, int(gpus / per_trial + 1e-9))
    return Slots(sweep.cpus_per_trial, per_trial, min(sweep.max_concurrent or fit, fit))
