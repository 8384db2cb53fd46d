"""What an MLflow store holds of a run folder, and that it is all of it."""

import math
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run

from sesttune.tracking.sync import NOT_METRICS
from sesttune.training.records import list_trials


def runs(uri: str, experiment: str) -> dict[str, Run]:
    """The runs of an experiment by name, no two of one name."""
    client = MlflowClient(uri)
    found = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    named = {run.info.run_name: run for run in found}
    assert len(named) == len(found), sorted(run.info.run_name for run in found)
    return named


def history(uri: str, run: Run, key: str = "val_loss") -> list[tuple[int, float]]:
    """(step, value) of a metric, in the order in which MLflow hands them out."""
    return [(m.step, m.value) for m in MlflowClient(uri).get_metric_history(run.info.run_id, key)]


def assert_whole(uri: str, folder: Path, experiment: str) -> None:
    """One run a trial, and of every metric every finite point once, in order of the steps."""
    found = runs(uri, experiment)
    mine = {run.data.tags.get("trial"): run for run in found.values()}
    records = list_trials(folder)
    assert set(mine) == {None, *(record.id for record in records)}
    for record in records:
        lines = record.metrics()
        keys = {key for line in lines for key in line} - set(NOT_METRICS)
        for key in keys:
            points = [(line["step"], line[key]) for line in lines if math.isfinite(line[key])]
            assert history(uri, mine[record.id], key) == points, (record.id, key)
