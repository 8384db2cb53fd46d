"""`sesttune compare`: two sweeps on the same data side by side, and whether they differ."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from sesttune.command import open_console, run, show_table
from sesttune.errors import UserError

if TYPE_CHECKING:
    from sesttune.run_setup import Run
    from sesttune.search.finals import Standing
    from sesttune.search.outcome import SweepOutcome


@dataclass(frozen=True)
class _Side:
    run: "Run"
    outcome: "SweepOutcome"
    winner: "Standing"


def main(argv: Sequence[str]) -> int:
    """Compare two sweeps on the same data: winners, seeds, cost, and the settings that differ."""
    parser = argparse.ArgumentParser("sesttune compare", description=main.__doc__)
    parser.add_argument("sweep_a", metavar="SWEEP_A")
    parser.add_argument("sweep_b", metavar="SWEEP_B")
    parser.add_argument("--output-dir", default="outputs", help="default: %(default)s")
    args = parser.parse_args(argv)
    from sesttune.result import unfinished
    from sesttune.search.finals import difference

    sides = [_side(args.output_dir, name) for name in (args.sweep_a, args.sweep_b)]
    _require_comparable(*(side.run for side in sides))
    console = open_console()
    table = Table(box=SIMPLE_HEAD)
    for column in ("", *(side.run.folder.name for side in sides)):
        table.add_column(column, overflow="fold")
    for row in zip(*(_facts(side).items() for side in sides), strict=True):
        table.add_row(row[0][0], *(value for _, value in row))
    for key, values in _other_settings(*(side.run for side in sides)).items():
        table.add_row(key, *map(str, values))
    show_table(console, table)
    for told in filter(None, (unfinished(side.run) for side in sides)):
        console.print(told)
    better, worse = sorted((side.winner for side in sides), key=lambda s: (s.diverged, s.mean))
    console.print(difference(better, worse))
    return 0


def _side(output_dir: str, name: str) -> _Side:
    from sesttune.run_setup import open_run
    from sesttune.search.finals import Standing
    from sesttune.search.outcome import read_outcome

    known = open_run(output_dir, name)
    outcome = read_outcome(known.folder, known.config)
    if outcome.best is None:
        raise UserError(f"no trial of {name} has a result yet: nothing to compare")
    if outcome.finals:
        return _Side(known, outcome, replace(outcome.finals[0], trial=f"{name}/{outcome.best.id}"))
    single = Standing(f"{name}/{outcome.best.id}", (outcome.best.best_val_loss,))
    return _Side(known, outcome, single)


def _require_comparable(first: "Run", second: "Run") -> None:
    from sesttune.search.warm_start import other_loss
    from sesttune.training.records import read_data

    names = f"{first.folder.name} and {second.folder.name}"
    prints = [read_data(run.folder)["fingerprint"] for run in (first, second)]
    if prints[0] != prints[1]:
        raise UserError(f"{names} were run on other data, so their losses are not comparable")
    if (key := other_loss(first.config, second.config)) is not None:
        raise UserError(f"{names} differ in {key}, so their losses are not comparable")


def _facts(side: _Side) -> dict[str, str]:
    from sesttune.plan_run import trained_steps
    from sesttune.search.budget import read_spent
    from sesttune.search.live import describe, duration

    best, took = side.outcome.best, read_spent(side.run.folder)
    assert best is not None
    draws = side.winner.values
    return {
        "winner": f"{best.id}: {describe(best.params)}",
        "best val_loss": f"{best.best_val_loss:.4g} at step {best.best_step:,}",
        "over seeds": f"{side.winner} (n={len(draws)})" if len(draws) > 1 else "a single training",
        "verdict": f"{side.outcome.verdict}: {side.outcome.evidence}",
        "trials": str(len(side.outcome.leaderboard)),
        "steps trained": f"{trained_steps(side.run.folder):,}",
        "wall-clock": duration(took["wall_s"]) if took else "-",
        "GPU- or slot-hours": f"{took['gpu_s'] / 3600:.3g}" if took else "-",
    }


def _other_settings(first: "Run", second: "Run") -> dict[str, tuple[Any, Any]]:
    """Settings in which the sweeps differ, but for their names and where they lie."""
    from sesttune.config.load import settings_by_key

    one, other = (settings_by_key(run.config) for run in (first, second))
    differing = {
        key: (value, other[key])
        for key, value in one.items()
        if value != other[key]
        and key not in ("name", "output_dir", "data.cache_dir", "tracking.uri")
    }
    searched = [_searched(run.space or {}) for run in (first, second)]
    for key in dict.fromkeys([*searched[0], *searched[1]]):
        values = (searched[0].get(key, "-"), searched[1].get(key, "-"))
        if values[0] != values[1]:
            differing[key] = values
    return differing


def _searched(space: Mapping[str, Any]) -> dict[str, str]:
    """A search space by the rows of the table; empty of a single training."""
    from sesttune.tracking.describe import range_of

    if not space:
        return {}
    ranges = {f"searched {key}": range_of(it) for key, it in space["parameters"].items()}
    rules = "; ".join(map(str, space.get("constraints", ()))) or "-"
    return {"searcher": space["searcher"], **ranges, "only where": rules}


if __name__ == "__main__":
    sys.exit(run(main))
