"""`sesttune export`: a registered model in another program's format.

So far one: the run folder that the public `state tx infer` runs. Any version can be exported,
when it was promoted or later.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sesttune.command import run
from sesttune.config.schema import Config


def main(argv: Sequence[str]) -> int:
    """Write a registered model as a run folder for the public `state tx infer`."""
    parser = argparse.ArgumentParser("sesttune export", description=main.__doc__)
    parser.add_argument("--model", required=True, help="models:/se-st@champion, or a folder")
    parser.add_argument("--state", required=True, type=Path, metavar="DIR", help="a new folder")
    parser.add_argument("--output-dir", default="outputs", help="runs and MLflow: %(default)s")
    args = parser.parse_args(argv)
    from sesttune.model.head_checkpoint import import_head, read_vectors
    from sesttune.model.state_export import export_state, infer_command
    from sesttune.tracking.registry import fetch_model
    from sesttune.tracking.store import tracking_uri

    folder = fetch_model(args.model, tracking_uri(Config(output_dir=args.output_dir)))
    head, about = import_head(folder)
    export_state(args.state, head, about, read_vectors(folder))
    print(
        f"written to {args.state}; its input is the embedding of {about['encoder']['label']}\n"
        f"use it: {infer_command(args.state, about)}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
