"""Copy what is new in a run folder to MLflow.

The run folder is the spool: trials write only there, and `sync` delivers what lies
past the place it remembers in `tracking.json`. It may be killed or fail at any
point and be called again: runs are found by a tag before they are made, and a metric
line carries its recorded time, so that sending it twice stores it once.
"""

import json
import math
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from sesttune import __version__
from sesttune.atomic import write_text
from sesttune.tracking.describe import describe_run, leaderboard_csv, trial_name
from sesttune.tracking.store import artifact_location, quick_client
from sesttune.training.records import BEST, PROFILE, TrialRecord, list_trials

CURSOR = "tracking.json"
SOURCE_TAG = "sesttune.source"
PARENT_TAG, NAME_TAG, NOTE_TAG = "mlflow.parentRunId", "mlflow.runName", "mlflow.note.content"
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""Runs and charts; without it MLflow's pages guess, at first that these are traces of prompts."""
NOT_METRICS = ("step", "time", "max_steps")
BATCH = 1_000
"""Metrics MLflow takes in one call."""


class RunTracker:
    """Delivers one run folder to one MLflow store."""

    def __init__(self, folder: Path, uri: str, experiment: str) -> None:
        quick_client()
        self.folder, self._uri, self._experiment = folder, uri, experiment
        self._client = MlflowClient(uri)
        self._about: dict[str, Any] = json.loads((folder / "data.json").read_text())
        self._cursor = _read_json(folder / CURSOR) or {}
        self._cursor.setdefault("trials", {})

    def sync(self) -> None:
        """Deliver everything that is on disk and not yet in MLflow.

        Raises whatever MLflow raises; what was delivered until then is remembered.
        """
        parent = self._parent()
        for record in list_trials(self.folder):
            self._sync_trial(record, parent)
        result = _read_json(self.folder / "result.json")
        if result is not None and self._cursor.get("result") != result:
            self._finish(parent, result)

    def trial_run(self, trial_id: str) -> str | None:
        """The MLflow run id of a trial, where it has one."""
        trial = self._cursor["trials"].get(trial_id)
        return trial["run"] if trial else None

    def _parent(self) -> str:
        if "parent" not in self._cursor:
            about = self._about
            run = self._find_or_create(about["id"], self.folder.name, self._common_tags())
            self._client.set_tag(run, NOTE_TAG, describe_run(self.folder, about, None))
            metrics = {f"baseline_{name}": loss for name, loss in about["baselines"].items()}
            self._send_metrics(run, [{"step": 0, "time": 0.0, **metrics}])
            self._cursor["parent"] = run
            self._save()
        return str(self._cursor["parent"])

    def _sync_trial(self, record: TrialRecord, parent: str) -> None:
        state = self._cursor["trials"].get(record.id)
        if state is None:
            tags = {**self._common_tags(), PARENT_TAG: parent, "trial": record.id}
            source = f"{self._about['id']}/{record.id}"
            run = self._find_or_create(source, trial_name(record), tags)
            params = [Param(key, str(value)) for key, value in record.params.items()]
            self._client.log_batch(run, params=params)
            state = self._cursor["trials"][record.id] = {"run": run, "lines": 0, "ended": None}
            self._save()
        lines = record.metrics()
        if len(lines) > state["lines"]:
            self._send_metrics(state["run"], lines[state["lines"] :])
            state["lines"] = len(lines)
            self._save()
        if record.facts != state.get("facts", {}):
            facts = [RunTag(name, str(value)) for name, value in record.facts.items()]
            self._client.log_batch(state["run"], tags=facts)
            state["facts"] = record.facts
            self._save()
        ended = [record.status, record.stop_reason] if record.finished else None
        if ended != state["ended"]:
            self._close_trial(record, state["run"])
            state["ended"] = ended
            self._save()

    def _close_trial(self, record: TrialRecord, run: str) -> None:
        if not record.finished:  # it had failed and is tried again
            self._client.update_run(run, "RUNNING")
            return
        for file in (record.checkpoints / BEST, record.folder / "config.yaml"):
            if file.is_file():
                self._client.log_artifact(run, str(file))
        if (record.folder / PROFILE).is_dir():
            self._client.log_artifacts(run, str(record.folder / PROFILE), PROFILE)
        tags = [
            RunTag("stop_reason", record.stop_reason or ""),
            RunTag("trial_status", record.status),
        ]
        self._client.log_batch(run, tags=tags)
        self._client.set_terminated(run, "FAILED" if record.status == "failed" else "FINISHED")

    def _finish(self, parent: str, result: dict[str, Any]) -> None:
        self._client.set_tag(parent, NOTE_TAG, describe_run(self.folder, self._about, result))
        self._client.set_tag(parent, "verdict", result.get("verdict") or "no result")
        board = result["leaderboard"]
        self._client.log_text(parent, leaderboard_csv(board), "leaderboard.csv")
        for name in ("sweep.yaml", "packing.json", "report.html"):
            if (self.folder / name).is_file():
                self._client.log_artifact(parent, str(self.folder / name))
        if (self.folder / "plots").is_dir():
            self._client.log_artifacts(parent, str(self.folder / "plots"), "plots")
        if board and board[0]["best_val_loss"] is not None:
            top = board[0]
            best = {"step": top["best_step"], "time": 0.0, "best_val_loss": top["best_val_loss"]}
            self._send_metrics(parent, [best])
        self._client.set_terminated(parent)
        self._cursor["result"] = result
        self._save()

    def _find_or_create(self, source: str, name: str, tags: dict[str, str]) -> str:
        experiment = self._experiment_id()
        found = self._client.search_runs([experiment], f"tags.`{SOURCE_TAG}` = '{source}'")
        if found:
            return str(found[0].info.run_id)
        run = self._client.create_run(experiment, tags={**tags, SOURCE_TAG: source}, run_name=name)
        return str(run.info.run_id)

    def _experiment_id(self) -> str:
        found = self._client.get_experiment_by_name(self._experiment)
        if found is not None:
            return str(found.experiment_id)
        try:
            return str(
                self._client.create_experiment(
                    self._experiment, artifact_location(self._uri), tags=EXPERIMENT_TAGS
                )
            )
        except MlflowException:  # another process made it a moment ago
            found = self._client.get_experiment_by_name(self._experiment)
            if found is None:
                raise
            return str(found.experiment_id)

    def _send_metrics(self, run: str, lines: list[dict[str, float]]) -> None:
        metrics = [
            Metric(key, float(value), int(line["time"] * 1000), int(line["step"]))
            for line in lines
            for key, value in line.items()
            if key not in NOT_METRICS and math.isfinite(value)
        ]
        for start in range(0, len(metrics), BATCH):
            self._client.log_batch(run, metrics=metrics[start : start + BATCH])

    def _common_tags(self) -> dict[str, str]:
        about = self._about
        return {
            "data_fingerprint": about["fingerprint"],
            "encoder": about["encoder"]["label"],
            "encoder_sha256": about["encoder"]["sha256"],
            "sesttune_version": __version__,
        }

    def _save(self) -> None:
        write_text(self.folder / CURSOR, json.dumps(self._cursor))


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(path.read_text()))
    except FileNotFoundError:
        return None
