"""`sesttune cache`: see, check and shrink the folder of cell stores and embeddings."""

import argparse
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from sesttune.command import run
from sesttune.config.schema import DataConfig
from sesttune.errors import UserError


def main(argv: Sequence[str]) -> int:
    """List, verify or prune the cache of cell stores and embeddings."""
    parser = argparse.ArgumentParser("sesttune cache", description=main.__doc__)
    parser.add_argument("action", choices=("list", "verify", "prune"))
    parser.add_argument("--cache-dir", default=DataConfig.cache_dir, help="default: %(default)s")
    parser.add_argument(
        "--older-than", type=float, default=30, metavar="DAYS", help="prune: unused for %(default)s"
    )
    parser.add_argument("--dry-run", action="store_true", help="prune: only say what would go")
    args = parser.parse_args(argv)
    folder = Path(args.cache_dir).expanduser()
    if not folder.is_dir():
        raise UserError(f"--cache-dir {folder} is not a folder")
    actions = {"list": _list, "verify": _verify, "prune": _prune}
    return actions[args.action](folder, args)


def _list(folder: Path, args: argparse.Namespace) -> int:
    from sesttune.data.cache_entries import DAY_S, KINDS, entries

    found = entries(folder)
    table = Table("what", "folders", "size", "last used", "of them torn", box=None)
    for kind in KINDS:
        of_kind = [entry for entry in found if entry.kind == kind]
        days = [(time.time() - entry.used) / DAY_S for entry in of_kind]
        when = f"{min(days):.0f} to {max(days):.0f} days ago" if days else ""
        torn = sum(not entry.complete for entry in of_kind)
        table.add_row(kind, f"{len(of_kind)}", _mib(e.size for e in of_kind), when, f"{torn or ''}")
    Console().print(table)
    print(f"{_mib(entry.size for entry in found)} in {folder}")
    return 0


def _verify(folder: Path, args: argparse.Namespace) -> int:
    from sesttune.data.cache_entries import entries
    from sesttune.system.cached_folder import is_intact
    from sesttune.system.progress_bars import progress_bars

    found, broken = entries(folder), []
    whole, done = sum(entry.size for entry in found) >> 20, 0
    with progress_bars(Console(stderr=True)) as show:
        for entry in found:
            if not is_intact(entry.folder):
                broken.append(entry)
            done += entry.size
            show("reading (MiB)", done >> 20, whole)
    for entry in broken:
        print(f"damaged: {entry.folder} (remove it; it is built again when needed)")
    print(f"{len(found) - len(broken)} of {len(found)} folders are as they were written")
    return 1 if broken else 0


def _prune(folder: Path, args: argparse.Namespace) -> int:
    from sesttune.data.cache_entries import prune

    if not args.older_than >= 0:
        raise UserError(f"--older-than {args.older_than:g} must be a number of days, at least 0")
    try:
        count, size = prune(folder, args.older_than, args.dry_run)
    except OSError as error:
        raise UserError(f"--cache-dir {folder}: cannot remove from it ({error})") from None
    print(f"{'would remove' if args.dry_run else 'removed'} {count} folders, {_mib([size])}")
    return 0


def _mib(sizes: Iterable[int]) -> str:
    return f"{sum(sizes) / 2**20:,.1f} MiB"


if __name__ == "__main__":
    sys.exit(run(main))
