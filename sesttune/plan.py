"""`sesttune plan`: what a sweep would take, without running it (`sesttune sweep --dry-run`)."""

import argparse
import sys
from collections.abc import Sequence

from sesttune.command import run
from sesttune.sweep import add_search_arguments, start


def main(argv: Sequence[str]) -> int:
    """Prepare the data and print the plan of a sweep: trials, rungs, GPU-hours, time and disk."""
    parser = argparse.ArgumentParser("sesttune plan", description=main.__doc__)
    add_search_arguments(parser)
    return start(parser.parse_intermixed_args(argv), dry_run=True)


if __name__ == "__main__":
    sys.exit(run(main))
