"""What a registered version says of its making, so that it can be made again.

All of it lies in the run folder; `sesttune reproduce` reads it back from `head.json`.
"""

import json
from typing import Any

from omegaconf import OmegaConf

from sesttune.training.records import TrialRecord

_ENVIRONMENT = ("device", "threads", "micro_batch", "earlier_versions")


def provenance(record: TrialRecord) -> dict[str, Any]:
    """Sweep, trial, parameters, versions and the command of the sweep; plain values.

    `continues` is the trial (`ID`, or `SWEEP/ID`) whose training this one took over, or None;
    `last_step` is the last validation; `environment` is where the trial ran.
    """
    run = record.folder.parent.parent
    settings: Any = OmegaConf.to_container(OmegaConf.load(run / "sweep.yaml"))
    schedule = record.folder / "schedule.json"  # of trials that a schedule ran
    placed = json.loads(schedule.read_text()) if schedule.exists() else {}
    lines = record.metrics()
    return {
        "sweep": run.name,
        "trial": record.id,
        "params": record.params,
        "command": settings["command"],
        "continues": placed.get("continues"),
        "last_step": int(lines[-1]["step"]) if lines else None,
        "versions": record.facts.get("versions", {}),
        "environment": {k: record.facts[k] for k in _ENVIRONMENT if k in record.facts},
    }
