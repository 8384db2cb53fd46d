"""Start Ray quickly and quietly, and say how many trials fit.

A private local instance by default: no dashboard, no usage reports, no files of
Ray's own in the sweep folder, bound to the loopback interface. `RAY_ADDRESS` or
`sweep.address` join an existing cluster instead.
"""

import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from sesttune.config.schema import Config
from sesttune.errors import UserError
from sesttune.system import host_memory
from sesttune.system.machine import cores, gpus

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
_ANSWERS_WITHIN_S = 5.0
_SOCKET, _SOCKET_BYTES = "/session_2026-11-26_18-44-05_498205_4194304/sockets/plasma_store", 107
"""The longest path in Ray's folder, and what Linux allows for a socket's."""
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


def cluster_address(config: Config) -> str | None:
    """The existing cluster that was asked for, `host:port` or `auto`; None: one of our own."""
    address = config.sweep.address or os.environ.get("RAY_ADDRESS")
    return None if address == "local" else address


def check_cluster(config: Config) -> None:
    """Join and leave the existing cluster that is asked for, if any.

    Raises UserError where it cannot be joined, or no trial fits it.
    """
    if cluster_address(config) is not None:
        with ray_session(config):
            pass


def check_room(config: Config) -> None:
    """Raise UserError where no trial fits the cluster that is asked for, or this machine.

    For a sweep that begins: it would encode, which may take hours, before its trials find no GPU.
    """
    check_cluster(config)
    if cluster_address(config) is None:
        slots(config, {"CPU": cores(), "GPU": gpus()})


@contextmanager
def ray_session(config: Config) -> Iterator[Slots]:
    """A running Ray, shut down at the end if it was started here."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    started = not ray.is_initialized()
    if started:
        with _same_sigterm():
            if cluster_address(config) is None:
                _start(config.training.device)
            else:
                _join(config)
    try:
        yield slots(config, ray.cluster_resources())
    finally:
        if started:
            ray.shutdown()


def _join(config: Config) -> None:
    import ray
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.exceptions import RayError

    address = cluster_address(config)
    asked = f"{'sweep.address' if config.sweep.address else 'RAY_ADDRESS'}={address}"
    if address != "auto":
        _refuse_silence(str(address), asked)
    try:
        if address != "auto":
            GcsClient(address=address)  # which ray.init would try for 20 s, printing each time
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (RayError, ConnectionError, RuntimeError, ValueError) as error:
        reason = re.split(r"\.\s|\n", str(error).strip())[0]
        raise UserError(
            f"{asked}: this cluster cannot be joined ({reason}); one that wants a token gets that "
            "of ~/.ray/auth_token with RAY_AUTH_MODE=token"
        ) from None


@contextmanager
def _same_sigterm() -> Iterator[None]:
    """Ray has handlers of its own: one ends the process without a word, one with a trace of C++."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _refuse_silence(address: str, asked: str) -> None:
    """Raise UserError where nothing listens: Ray would try for minutes."""
    found = re.fullmatch(r"\[?([^\[\]/]+)\]?:(\d+)", address)
    if found is None:
        raise UserError(
            f"{asked} must be host:port of a cluster's head node, or auto, and the sweep run on a "
            "node of that cluster"
        )
    try:
        socket.create_connection((found[1], int(found[2])), _ANSWERS_WITHIN_S).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"{asked}: no Ray cluster answers there ({error})") from None


def _start(device: str) -> None:
    import ray
    import torch

    if device == "cpu" or not torch.cuda.is_available():
        os.environ.update(host_memory.ENVIRONMENT)  # for the workers
    with _deaf_to_stops(), _loopback_as_it_is(), _token_for_this_user():
        ray.init(
            address="local",
            _temp_dir=_short_folder(),
            num_cpus=cores(),
            # As planned with. By itself Ray asks NVML, which a container may lack, and which counts
            # a GPU of several instances (MIG) otherwise than CUDA does.
            num_gpus=gpus(),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=_OBJECT_STORE_BYTES,
            _node_ip_address="127.0.0.1",
        )


@contextmanager
def _loopback_as_it_is() -> Iterator[None]:
    """Ray replaces 127.0.0.1 by the machine's address, and listens on every interface then.

    Only its token, which Ray before 2.60 does not ask for by itself, keeps others from running code
    as this user. There is no setting for it.
    """
    from ray._private import services

    replace = services.resolve_ip_for_localhost
    services.resolve_ip_for_localhost = lambda host: host
    try:
        yield
    finally:
        services.resolve_ip_for_localhost = replace


@contextmanager
def _token_for_this_user() -> Iterator[None]:
    """Whoever reads Ray's token runs code as this user, and Ray writes it for all to read."""
    token = Path.home() / ".ray" / "auth_token"
    with suppress(OSError):  # Ray says what it cannot write
        token.parent.mkdir(mode=0o700, exist_ok=True)
    try:
        yield
    finally:
        with suppress(OSError):  # no token before Ray 2.60, nor where one is named otherwise
            token.chmod(0o600)


@contextmanager
def _deaf_to_stops() -> Iterator[None]:
    """Processes begun inside do not hear that the terminal closes, or that all are to end.

    A batch system or `timeout` tells each process of a job; the trials must save, so only this
    one acts on it. They inherit what this thread blocks. Ray gives each of its own processes a
    second to end when told, so it takes 5 s to shut down, not 1.5.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _short_folder() -> str | None:
    """A folder for Ray where a TMPDIR, as batch systems give, is too long; None: where it will."""
    asked = os.environ.get("RAY_TMPDIR")
    room = _SOCKET_BYTES - len("/ray" + _SOCKET)
    if len(os.fsencode(asked or os.environ.get("TMPDIR", "/tmp"))) <= room:
        return None
    if asked:
        raise UserError(
            f"RAY_TMPDIR={asked}: Ray's sockets lie in it, whose paths may not be that long: name "
            f"a folder of {room} bytes at most"
        )
    return os.path.join(os.sep, "tmp", f"ray-{os.getuid()}")  # each user's own


def slots(config: Config, available: dict[str, float]) -> Slots:
    """Share out what Ray has (`CPU`, `GPU`). Raises UserError where not one trial fits."""
    sweep, device = config.sweep, config.training.device
    cpus, gpus = available.get("CPU", 0.0), available.get("GPU", 0.0)
    if device == "cuda" and gpus == 0:
        raise UserError("training.device=cuda, but Ray has no GPU: set training.device=auto or cpu")
    per_trial = 0.0 if device == "cpu" or gpus == 0 else sweep.gpu_share
    if sweep.cpus_per_trial > cpus:
        raise UserError(f"sweep.cpus_per_trial={sweep.cpus_per_trial:g}: there are {cpus:g} cores")
    fit = int(cpus / sweep.cpus_per_trial)
    if per_trial:
        fit = min(fit, int(gpus) * int(1 / per_trial + 1e-9))  # none lies across two GPUs
    return Slots(sweep.cpus_per_trial, per_trial, min(sweep.max_concurrent or fit, fit))
