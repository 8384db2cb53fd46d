"""`sesttune promote`: register a run's best model in MLflow under an alias."""

import argparse
import json
import sys
from collections.abc import Sequence

from sesttune.command import program, run
from sesttune.errors import UserError


def main(argv: Sequence[str]) -> int:
    """Register the best trial of a sweep (or one you name) as a version of the model se-st."""
    parser = argparse.ArgumentParser("sesttune promote", description=main.__doc__)
    parser.add_argument("--sweep", required=True, metavar="NAME", help="the sweep or training")
    parser.add_argument("--trial", metavar="ID", help="default: the best trial")
    parser.add_argument("--alias", default="champion", help="default: %(default)s")
    parser.add_argument("--output-dir", default="outputs", help="default: %(default)s")
    args = parser.parse_args(argv)
    from sesttune.run_setup import open_run
    from sesttune.search.outcome import read_outcome
    from sesttune.search.recorded import read_schedule
    from sesttune.tracking.registry import promote
    from sesttune.tracking.store import tracking_uri
    from sesttune.tracking.sync import RunTracker
    from sesttune.training.records import list_trials

    known = open_run(args.output_dir, args.sweep)
    records = {record.id: record for record in list_trials(known.folder)}
    if not records:
        raise UserError(f"{known.folder} holds no trial: nothing to promote")
    if args.trial is not None and args.trial not in records:
        raise UserError(f"no trial '{args.trial}' in {args.sweep}; there are: {', '.join(records)}")
    chosen = args.trial
    if chosen is None:
        best = read_outcome(known.folder, known.config).best
        if best is None:
            raise UserError(f"no trial of {args.sweep} has a result: nothing to promote")
        chosen = best.id
    record = records[chosen]
    trunk = read_schedule(record.folder).get("shares")
    if trunk is not None:
        raise UserError(
            f"trial {chosen} is the beginning of the training of trial {trunk}, which has the "
            f"checkpoint: --trial {trunk}"
        )
    uri = tracking_uri(known.config)
    tracker = RunTracker(known.folder, uri, known.config.tracking.experiment)
    tracker.sync()
    run_id = tracker.trial_run(record.id)
    assert run_id is not None
    tags = {"sweep": known.folder.name, "params": json.dumps(record.params)}
    version = promote(record, run_id, known.manifest, uri, args.alias, tags)
    print(
        f"registered {version.name} version {version.version} as '{version.alias}' "
        f"(trial {record.id} of {known.folder.name})\n"
        f"use it: {program()} predict --model {version.uri} --adata IN.h5ad --output OUT.h5ad"
    )
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
