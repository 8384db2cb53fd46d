"""The `sesttune` console script: picks the command and hands over its arguments."""

import importlib
import sys
from collections.abc import Sequence

from sesttune import __version__
from sesttune.command import run
from sesttune.errors import UserError

COMMANDS = {
    "sweep": "search hyperparameters with Ray Tune (the main command)",
    "plan": "what a sweep would take, without running it",
    "train": "one training; se-st-train is the same",
    "encode": "SE embeddings of an h5ad file",
    "compare": "two sweeps side by side",
    "report": "a sweep's report: one HTML page and figures",
    "evaluate": "score a model on held-out data, beside the means",
    "promote": "register a sweep's best model in MLflow",
    "predict": "predict perturbed cells with a registered model",
    "export": "a registered model as a run folder of the public `state tx infer`",
    "reproduce": "what made a registered version; makes it again",
    "track": "deliver to MLflow what it missed while it was away",
    "ui": "browse the results in MLflow",
    "cache": "list, verify or prune cell stores and embeddings",
    "demo": "write the bundled demo data",
}


def main() -> int:
    """Entry point of `sesttune`."""
    return run(_dispatch)


def train() -> int:
    """Entry point of `se-st-train`."""
    return run(lambda argv: _dispatch(["train", *argv]))


def _dispatch(argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(_help())
        return 0
    if argv[0] == "--version":
        print(f"sesttune {__version__}")
        return 0
    name = argv[0]
    if name not in COMMANDS:
        raise UserError(f"unknown command '{name}': one of {', '.join(COMMANDS)}")
    return int(importlib.import_module(f"sesttune.{name}").main(argv[1:]))


def _help() -> str:
    lines = [f"  {name:9} {purpose}" for name, purpose in COMMANDS.items()]
    return "\n".join(
        [
            "usage: sesttune COMMAND [options] [key=value ...]",
            "",
            *lines,
            "",
            "sesttune COMMAND --help tells more; `python -m sesttune.COMMAND` is the same.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
