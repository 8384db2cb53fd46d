"""`sesttune ui`: MLflow's pages over the right store, on loopback."""

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence

from sesttune.command import add_config_arguments, read_config, run
from sesttune.errors import UserError


def main(argv: Sequence[str]) -> int:
    """Browse the results in MLflow (Ctrl-C ends it)."""
    parser = argparse.ArgumentParser("sesttune ui", description=main.__doc__)
    parser.add_argument("--port", type=int, default=5000, help="default: %(default)s")
    parser.add_argument(
        "--host", default="127.0.0.1", help="default: %(default)s (this machine only)"
    )
    add_config_arguments(parser)
    args = parser.parse_intermixed_args(argv)
    from sesttune.tracking.store import artifact_location, tracking_uri, without_secrets
    from sesttune.tracking.views import pages

    config = read_config(args)
    uri = tracking_uri(config)
    has_server = uri.startswith(("http://", "https://"))
    base = without_secrets(uri).rstrip("/") if has_server else f"http://{args.host}:{args.port}"
    addresses = pages(uri, config.tracking.experiment, base)
    if not has_server:
        _require_port(args.host, args.port)
    for name, address in addresses.items():
        print(f"{name + ':':<8}{address}", flush=True)
    if has_server:
        return 0
    print("Ctrl-C ends it", flush=True)
    command = [sys.executable, "-m", "mlflow", "server"]
    command += ["--host", args.host, "--port", str(args.port), "--workers", "1"]
    command += ["--uvicorn-opts", "--log-level warning"]
    where = artifact_location(uri)
    if where is not None:
        command += ["--artifacts-destination", where]
    # MLflow's job runners are for judging prompts: three more processes a sweep has no use for.
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    environment["MLFLOW_BACKEND_STORE_URI"] = uri  # whose password `ps` shows on a command line
    # A group of its own, since what MLflow starts there outlives it, and keeps the port.
    with subprocess.Popen(command, env=environment, process_group=0) as server:
        try:
            return server.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGTERM)


def _require_port(host: str, port: int) -> None:
    """Raises UserError where nothing can listen there; MLflow says so after its addresses."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        socket.create_server((host, port), family=family).close()
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(
            f"{host}:{port} cannot be listened on ({reason}): choose another with --port, "
            "or stop what is there"
        ) from None


if __name__ == "__main__":
    sys.exit(run(main))
