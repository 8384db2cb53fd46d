"""`sesttune report`: what came of a sweep as one HTML page and a PNG a figure.

A sweep writes it at its end; this command writes it again, or from a sweep that still runs.
"""

import argparse
import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sesttune.command import check_output, program, run
from sesttune.errors import UserError, first_line

if TYPE_CHECKING:
    from sesttune.run_setup import Run
    from sesttune.search.outcome import SweepOutcome

log = logging.getLogger(__name__)


def main(argv: Sequence[str]) -> int:
    """Write the report of a sweep (or training), ended or running, into its folder, or as FILE."""
    parser = argparse.ArgumentParser("sesttune report", description=main.__doc__)
    parser.add_argument("--sweep", required=True, metavar="NAME", help="the sweep or training")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE.html",
        help="the page alone; default: report.html and plots/*.png in the run's folder",
    )
    parser.add_argument("--output-dir", default="outputs", help="default: %(default)s")
    args = parser.parse_args(argv)
    if args.output is not None:
        check_output(args.output, (".html",))
    from sesttune.result import unfinished
    from sesttune.run_setup import open_run
    from sesttune.search.outcome import read_outcome
    from sesttune.training.records import RESULT

    known = open_run(args.output_dir, args.sweep)
    outcome = read_outcome(known.folder, known.config)
    ended = (known.folder / RESULT).exists()
    print(f"report: {write_report(known, outcome, ended, args.output)}")
    if (told := unfinished(known)) is not None:
        print(told)
    return 0


def write_report(
    run: "Run", outcome: "SweepOutcome", ended: bool, output: Path | None = None
) -> Path:
    """Write `report.html` and `plots/NAME.png` into the run folder, or the page alone as `output`.

    Raises UserError where they cannot be written.
    """
    from sesttune.report_data import read_report
    from sesttune.reporting.figures import draw_all
    from sesttune.reporting.page import page
    from sesttune.result import NUMBERS, PLOTS
    from sesttune.system.atomic import replacing, write_text
    from sesttune.training.records import REPORT

    data = read_report(run, outcome, ended)
    figures = draw_all(data)
    target, plots = output or run.folder / REPORT, run.folder / PLOTS
    try:
        if output is None:
            plots.mkdir(exist_ok=True)
            for shown in figures:
                path = plots / f"{shown.name}.png"
                if shown.png is None:
                    path.unlink(missing_ok=True)  # of an earlier report
                    continue
                with replacing(path) as draft:
                    draft.write_bytes(shown.png)
        write_text(target, page(data, figures, NUMBERS))
    except OSError as error:
        hint = "" if output else "; give --output FILE.html"
        raise UserError(f"{target}: cannot be written ({error.strerror}){hint}") from None
    return target


def try_report(run: "Run", outcome: "SweepOutcome") -> None:
    """The report of a sweep that has ended; nothing that goes wrong with it may fail the sweep."""
    try:
        write_report(run, outcome, ended=True)
    except Exception as error:
        again = f"{program()} report --sweep {shlex.quote(run.folder.name)}"
        log.warning("no report (%s); %s tries again", first_line(error), again)


if __name__ == "__main__":
    sys.exit(run(main))
