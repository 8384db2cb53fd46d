"""Addresses of MLflow's pages, opened on what a sweep is about.

MLflow 3 opens an experiment on its page for prompts and traces, where a sweep looks empty, and
shows no metric column until one is chosen. A shared view, a tag of the experiment that an address
names, chooses columns and order; it cannot unfold the trials (MLflow keeps that in the browser),
but sorting by a metric does.
"""

import json
from collections.abc import Iterable

from sesttune.errors import UserError
from sesttune.tracking.store import mlflow_store, require_store, without_secrets

PARENT_TAG = "mlflow.parentRunId"
VIEW_TAG = "mlflow.sharedViewState."
BEST_FIRST = {"orderByKey": "metrics.`best_val_loss`", "orderByAsc": True}
COLUMNS = {
    "metrics.`best_val_loss`": 120,
    "metrics.`best_step`": 90,
    "tags.`verdict`": 90,
    "tags.`stop_reason`": 130,
}
"""Column and its width in pixels; the searched settings come after them."""
PARAM_WIDTH, NAME_WIDTH = 120, 300
LATEST = 1_000
"""Runs that are looked at for the latest sweep and for the searched settings."""

WORKFLOW = "workflowType=machine_learning"


def run_page(experiment: str, run: str) -> str:
    """The page of a run, relative to the server; the same address works in a description."""
    return f"#/experiments/{experiment}/runs/{run}?{WORKFLOW}"


def pages(uri: str, experiment: str, server: str) -> dict[str, str]:
    """Addresses on the MLflow server at `server`: `latest` describes the latest sweep or training,
    `runs` has the trials folded under their sweeps, `ranked` all trials best first, `curves` their
    charts.

    Leaves the views in the store. Raises UserError where nothing has been tracked yet.
    """
    from mlflow import MlflowClient

    require_store(uri)
    with mlflow_store(uri):
        client = MlflowClient(uri)
        found = client.get_experiment_by_name(experiment)
        if found is None:
            where = without_secrets(uri)
            raise UserError(f"{where} has no experiment '{experiment}': run a sweep first")
        latest = client.search_runs([found.experiment_id], max_results=LATEST)
        params = {key for run in latest for key in run.data.params}
        for name, state in _views(params).items():
            client.set_experiment_tag(found.experiment_id, VIEW_TAG + name, json.dumps(state))
    runs = f"{server}/#/experiments/{found.experiment_id}/runs?{WORKFLOW}"
    of_their_own = [run.info.run_id for run in latest if PARENT_TAG not in run.data.tags]
    # A sweep of as many trials, each younger than itself, is not among them.
    parents = of_their_own or [run.data.tags[PARENT_TAG] for run in latest]
    first = {"latest": f"{server}/{run_page(found.experiment_id, parents[0])}"} if parents else {}
    return {
        **first,
        "runs": f"{runs}&viewStateShareKey=runs",
        "ranked": f"{runs}&viewStateShareKey=ranked",
        "curves": f"{runs}&compareRunsMode=CHART&viewStateShareKey=curves",
    }


def _views(params: Iterable[str]) -> dict[str, dict[str, object]]:
    widths = COLUMNS | {f"params.`{key}`": PARAM_WIDTH for key in sorted(params)}
    widths_of_all = {"attributes.`Run Name`": NAME_WIDTH, **widths}
    view: dict[str, object] = {
        "selectedColumns": list(widths),
        "columnOrder": list(widths_of_all),
        "columnWidths": widths_of_all,
    }
    ranked = view | BEST_FIRST
    return {"runs": view, "ranked": ranked, "curves": ranked | _one_large_chart("val_loss")}


def _one_large_chart(metric: str) -> dict[str, object]:
    """The curves of every run in one chart as wide as the page, logarithmic.

    MLflow would draw the first ten runs, and a small chart for each of twenty metrics. Those are
    still there: clearing the search box brings them back.
    """
    section: dict[str, object] = {
        "uuid": metric,
        "name": "Model metrics",
        "display": True,
        "isReordered": False,
        "deleted": False,
        "isGenerated": True,
        "columns": 1,
        "cardHeight": 560,
    }
    chart: dict[str, object] = {
        "uuid": metric,
        "type": "LINE",
        "metricSectionId": metric,
        "metricKey": metric,
        "selectedMetricKeys": [metric],
        "deleted": False,
        "isGenerated": True,
        "scaleType": "log",
        "xAxisKey": "step",
        "xAxisScaleType": "linear",
        "lineSmoothness": 0,
        "useGlobalLineSmoothing": True,
        "useGlobalXaxisKey": True,
    }
    return {
        "runsHiddenMode": "SHOW_ALL",
        "chartsSearchFilter": f"^{metric}$",
        "compareRunSections": [section],
        "compareRunCharts": [chart],
    }
