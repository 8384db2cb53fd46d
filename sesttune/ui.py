"""`sesttune ui`: MLflow's pages over the right store, on loopback."""

import argparse
import subprocess
import sys
from collections.abc import Sequence

from sesttune.command import add_config_arguments, read_config, run


def main(argv: Sequence[str]) -> int:
    """Browse the results in MLflow (Ctrl-C ends it)."""
    parser = argparse.ArgumentParser("sesttune ui", description=main.__doc__)
    parser.add_argument("--port", type=int, default=5000, help="default: %(default)s")
    parser.add_argument(
        "--host", default="127.0.0.1", help="default: %(default)s (this machine only)"
    )
    add_config_arguments(parser)
    args = parser.parse_args(argv)
    from sesttune.tracking.store import artifact_location, tracking_uri

    uri = tracking_uri(read_config(args))
    if uri.startswith(("http://", "https://")):
        print(f"the tracking server has its own pages: open {uri}")
        return 0
    print(f"http://{args.host}:{args.port}  (Ctrl-C ends it)", flush=True)
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]
    command += ["--host", args.host, "--port", str(args.port), "--workers", "1"]
    where = artifact_location(uri)
    if where is not None:
        command += ["--artifacts-destination", where]
    return subprocess.call(command)


if __name__ == "__main__":
    sys.exit(run(main))
