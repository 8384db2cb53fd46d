"""Copy what is new in a run folder to MLflow.

The run folder is the spool: trials write only there, and `sync` delivers what lies
past the place it remembers in `tracking.json`. It may be killed or fail at any
point and be called again: runs are found by a tag before they are made, and a metric
line carries its recorded time, so that sending it twice stores it once.
"""

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from sesttune import __version__
from sesttune.errors import UserError
from sesttune.system.atomic import write_text
from sesttune.tracking.describe import describe_run, leaderboard_csv, trial_name, trial_tags
from sesttune.tracking.experiment import Experiment, in_ms
from sesttune.tracking.spool import (
    CURSOR,
    KeptFile,
    ending,
    file_key,
    files_left,
    new_cursor,
    read_cursor,
    read_result,
    sole_writer,
)
from sesttune.tracking.store import (
    delivering_client,
    is_gone,
    patient_client,
    problem,
    without_secrets,
)
from sesttune.tracking.views import PARENT_TAG, run_page
from sesttune.training.records import (
    DATA,
    RESULT,
    TrialRecord,
    list_trials,
    metrics_bytes,
    read_data,
)

NOTE_TAG = "mlflow.note.content"
NOT_METRICS = ("step", "time", "max_steps")
REFUSED = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST")
"""What MLflow answers to whatever is sent to a deleted run."""
BATCH = 1_000
"""Metrics MLflow takes in one call."""
SLOW_S = 60.0
"""A file that fails only after so long tells of its store: the others would wait as long."""


class RunTracker:
    """Delivers one run folder to one MLflow store."""

    def __init__(self, folder: Path, uri: str, experiment: str) -> None:
        delivering_client(uri)
        self.folder, self._uri = folder, uri
        self._client = MlflowClient(uri)
        self._experiment = Experiment(self._client, uri, experiment)
        self._about = read_data(folder)
        self._cursor = read_cursor(folder)

    def sync(self, files: bool = True) -> str | None:
        """Deliver everything that is on disk and not yet in MLflow; `files` come last.

        Returns what is wrong with files that MLflow does not take, in a line: nothing else waits
        for them. Raises whatever MLflow raises; what was delivered until then is remembered.
        UserError where the run has been delivered to another store.
        """
        with sole_writer(self.folder):
            self._cursor = read_cursor(self.folder)
            self._check_store()
            parent = self._parent()
            for record in list_trials(self.folder):
                with self._unless_deleted(record.id):
                    self._sync_trial(record, parent)
            result = read_result(self.folder)
            if result is not None and self._cursor.get("result") != result:
                self._judge_trials(result)
                known = [parent, *(t["run"] for t in self._cursor["trials"].values())]
                known += self._cursor["left_out"]
                self._experiment.drop_doubles(self._about["id"], known)
                self._finish(parent, result)
            return self._send_files(parent) if files else None

    def trial_run(self, trial_id: str) -> str | None:
        """The MLflow run id of a trial, where it has one."""
        trial = self._cursor["trials"].get(trial_id)
        return trial["run"] if trial else None

    def check_store(self) -> None:
        """Look for the run where it was sent before; forget that it was, where it is gone.

        Raises UserError where it has been delivered to another store.
        """
        with sole_writer(self.folder):
            self._cursor = read_cursor(self.folder)
            self._check_store()

    def _check_store(self) -> None:
        """A store may move, but the runs must be in it; one that was emptied gets them anew."""
        here, before = without_secrets(self._uri), self._cursor.get("store")
        if "parent" in self._cursor and not self._experiment.has(self._cursor["parent"]):
            if before not in (here, None) and not is_gone(before):
                raise UserError(
                    f"{self.folder.name} has its runs in {before}, not in {here}: set "
                    f"MLFLOW_TRACKING_URI to that store, or remove {self.folder / CURSOR} to "
                    "deliver all of it anew"
                )
            self._cursor = new_cursor()
        for trial in self._cursor["trials"].values():
            if trial.get("deleted") and not self._experiment.deleted(trial["run"]):
                del trial["deleted"]  # restored: it lacks its place among the others, too
                self._cursor.pop("result", None)
        if self._cursor.get("store") != here:
            self._cursor["store"] = here
            self._save()

    @contextmanager
    def _unless_deleted(self, trial_id: str) -> Iterator[None]:
        """A trial whose run somebody deleted in MLflow is wanted no more, and holds up no other."""
        try:
            yield
        except MlflowException as error:
            run = self.trial_run(trial_id)
            if error.error_code not in REFUSED or not run or not self._experiment.deleted(run):
                raise
            self._cursor["trials"][trial_id]["deleted"] = True
            self._save()

    def _parent(self) -> str:
        if "parent" not in self._cursor:
            about = self._about
            tags = self._common_tags()
            run = self._experiment.find_or_create(
                about["id"], self.folder.name, tags, self._began()
            )
            self._client.set_tag(run, NOTE_TAG, describe_run(self.folder, about, None))
            metrics = {f"baseline_{name}": loss for name, loss in about["baselines"].items()}
            self._send_metrics(run, [{"step": 0, "time": 0.0, **metrics}])
            self._cursor["parent"] = run
            self._save()
        return str(self._cursor["parent"])

    def _began(self) -> float:
        """A copied folder's files are younger than what is recorded in them."""
        curves = (record.metrics() for record in list_trials(self.folder))
        made = (self.folder / DATA).stat().st_mtime
        return min([made, *(lines[0]["time"] for lines in curves if lines)])

    def _sync_trial(self, record: TrialRecord, parent: str) -> None:
        state, source = self._cursor["trials"].get(record.id), f"{self._about['id']}/{record.id}"
        if state is not None and state.get("params", record.params) != record.params:
            # That one's folder was taken away, and its number given out again.
            self._cursor["left_out"].append(state["run"])
            state, source = None, f"{source}/{len(self._cursor['left_out'])}"
        if state is None:
            tags = {**self._common_tags(), PARENT_TAG: parent, "trial": record.id}
            lines = record.metrics()
            began = lines[0]["time"] if lines else None
            run = self._experiment.find_or_create(source, trial_name(record), tags, began)
            params = [Param(key, str(value)) for key, value in record.params.items()]
            self._client.log_batch(run, params=params)
            state = {"run": run, "params": record.params, "lines": 0, "ended": None}
            self._cursor["trials"][record.id] = state
            self._save()
        size = metrics_bytes(record.folder)  # before reading: what is added meanwhile is seen next
        if size != state.get("bytes", 0):
            lines = record.metrics()
            self._send_metrics(state["run"], lines[state["lines"] :])
            state["lines"], state["bytes"] = max(len(lines), state["lines"]), size
            self._save()
        if record.facts != state.get("facts", {}):
            facts = [RunTag(name, str(value)) for name, value in record.facts.items()]
            self._client.log_batch(state["run"], tags=facts)
            state["facts"] = record.facts
            self._save()
        if ending(record) != state["ended"]:
            self._close_trial(record, state["run"])
            state["ended"] = ending(record)
            self._save()

    def _close_trial(self, record: TrialRecord, run: str) -> None:
        if not record.finished:  # it had failed and is tried again
            self._client.update_run(run, "RUNNING")
            return
        tags = [
            RunTag("stop_reason", record.stop_reason or ""),
            RunTag("trial_status", record.status),
        ]
        self._client.log_batch(run, tags=tags)
        lines = record.metrics()
        status = "FAILED" if record.status == "failed" else "FINISHED"
        self._end(run, status, lines[-1]["time"] if lines else None)

    def _end(self, run: str, status: str, at: float | None) -> None:
        """Not before it began, which is what a clock says that was set back meanwhile."""
        ended = in_ms(at)
        if ended is not None:
            ended = max(ended, self._client.get_run(run).info.start_time)
        self._client.set_terminated(run, status, ended)

    def _finish(self, parent: str, result: dict[str, Any]) -> None:
        self._client.set_tag(parent, NOTE_TAG, self._description(result))
        self._client.set_tag(parent, "verdict", result.get("verdict") or "no result")
        board = result["leaderboard"]
        if board and board[0]["best_val_loss"] is not None:
            top = board[0]
            best = {key: top[key] for key in ("best_val_loss", "best_step")}
            # MLflow shows the point of the largest step: of two endings the later one must win.
            self._send_metrics(parent, [{"step": 0, "time": result["last_at"], **best}])
        self._end(parent, "FINISHED", result["last_at"] or None)
        self._cursor["result"] = result
        self._save()

    def _send_files(self, parent: str) -> str | None:
        wrong = []
        for kept in files_left(self.folder, self._cursor):
            run = parent if kept.trial is None else self.trial_run(kept.trial)
            if run is None:  # it has ended since this turn began
                continue
            key, mark = file_key(self.folder, kept), kept.mark()
            begun = time.monotonic()
            reason = self._send_file(run, kept)
            if reason is None:
                self._cursor["files"][key] = mark
                self._save()
            else:
                wrong.append(f"{key}: {reason}")
                self._client.get_run(parent)  # raises where it is not the file but the store
                if time.monotonic() - begun > SLOW_S:
                    break
        if not wrong:
            return None
        more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        return f"{wrong[0]}{more}"

    def _send_file(self, run: str, kept: KeptFile) -> str | None:
        """What went wrong, in a line."""
        try:
            with patient_client():
                if kept.path.name == RESULT:
                    board = json.loads(kept.path.read_text())["leaderboard"]
                    self._client.log_text(run, leaderboard_csv(board), "leaderboard.csv")
                else:
                    self._client.log_artifact(run, str(kept.path), kept.place)
        except Exception as error:  # MLflow's own, and those of each kind of artifact store
            return problem(error, self._uri)
        return None

    def _judge_trials(self, result: dict[str, Any]) -> None:
        """Rank, verdict and relations of each trial, which are known only at the end."""
        ranks = {row["trial"]: rank for rank, row in enumerate(result["leaderboard"], 1)}
        at = {"step": 0, "time": result["last_at"]}
        for trial, tags in trial_tags(result).items():
            if (run := self.trial_run(trial)) is None:
                continue
            with self._unless_deleted(trial):
                self._client.log_batch(run, tags=[RunTag(key, tags[key]) for key in tags])
                if trial in ranks:
                    self._send_metrics(run, [{**at, "rank": ranks[trial]}])

    def _description(self, result: dict[str, Any]) -> str:
        experiment, sent = self._experiment.id(), self._cursor["trials"]
        links = {trial: run_page(experiment, state["run"]) for trial, state in sent.items()}
        return describe_run(self.folder, self._about, result, links)

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
