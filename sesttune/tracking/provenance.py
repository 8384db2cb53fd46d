"""What a registered version says of its making, so that it can be made again.

All of it lies in the run folder; `sesttune reproduce` reads it back from `head.json`.
"""

import json
from typing import Any

from sesttune.training.records import SCHEDULE, TrialRecord, read_settings

_ENVIRONMENT = ("device", "threads", "micro_batch", "earlier_versions")


def provenance(record: TrialRecord) -> dict[str, Any]:
    """Sweep, trial, parameters, versions and the command of the sweep; plain values.

    `continues` is the trial (`ID`, or `SWEEP/ID`) whose training this one took over, or None;
    `last_step` is the last validation; `environment` is where the trial ran.
    """
    run = record.folder.parent.parent
    schedule = record.folder / SCHEDULE  # of trials that a schedule ran
    placed = json.loads(schedule.read_text()) if schedule.exists() else {}
    lines = record.metrics()
    return {
        "sweep": run.name,
        "trial": record.id,
        "params": record.params,
        "command": read_settings(run)["command"],
        "continues": placed.get("continues"),
        "last_step": int(lines[-1]["step"]) if lines else None,
        "versions": record.facts.get("versions", {}),
        "environment": {k: record.facts[k] for k in _ENVIRONMENT if k in record.facts},
    }
