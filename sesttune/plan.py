"""`sesttune plan`: what a sweep would take, without running it (`sesttune sweep --dry-run`)."""

import sys
from collections.abc import Sequence

from sesttune import sweep
from sesttune.command import run


def main(argv: Sequence[str]) -> int:
    """Print the plan of a sweep: trials, rungs, GPU-hours, wall-clock and disk."""
    return sweep.main(["--dry-run", *argv])


if __name__ == "__main__":
    sys.exit(run(main))
