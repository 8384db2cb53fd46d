"""The runs of an experiment: looked for by an id of their own before they are made.

An answer that is lost, or comes after the client has given up, so makes no second run that stays.
"""

from collections.abc import Collection

from mlflow import MlflowClient
from mlflow.entities import LifecycleStage, Run
from mlflow.exceptions import MlflowException

from sesttune.tracking.store import artifact_location

SOURCE_TAG = "sesttune.source"
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""Runs and charts; without it MLflow's pages guess, at first that these are traces of prompts."""
PAGE = 1_000
"""Runs in an answer."""


class Experiment:
    """The experiment `name` of the store at `uri`. Raises what MLflow raises."""

    def __init__(self, client: MlflowClient, uri: str, name: str) -> None:
        self._client, self._uri, self._name = client, uri, name

    def id(self) -> str:
        """Made where there is none."""
        found = self._client.get_experiment_by_name(self._name)
        if found is not None:
            return str(found.experiment_id)
        try:
            where = artifact_location(self._uri)
            return str(self._client.create_experiment(self._name, where, tags=EXPERIMENT_TAGS))
        except MlflowException:  # another process made it a moment ago
            found = self._client.get_experiment_by_name(self._name)
            if found is None:
                raise
            return str(found.experiment_id)

    def has(self, run: str) -> bool:
        """Whether the store, in any experiment, has the run with this MLflow id."""
        return self._get(run) is not None

    def deleted(self, run: str) -> bool:
        """Whether somebody deleted this run, which may be restored: until then it takes nothing."""
        found = self._get(run)
        return found is None or found.info.lifecycle_stage == LifecycleStage.DELETED

    def _get(self, run: str) -> Run | None:
        try:
            return self._client.get_run(run)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None

    def find_or_create(
        self, source: str, name: str, tags: dict[str, str], began: float | None
    ) -> str:
        """The run of `source`; a new one began then (seconds since the epoch; None: now)."""
        experiment = self.id()
        found = self._client.search_runs([experiment], f"tags.`{SOURCE_TAG}` = '{source}'")
        if found:
            return str(found[0].info.run_id)
        tags = {**tags, SOURCE_TAG: source}
        run = self._client.create_run(experiment, in_ms(began), tags, name)
        return str(run.info.run_id)

    def drop_doubles(self, source: str, known: Collection[str]) -> None:
        """Delete runs of `source` that a slow server made after their request was given up."""
        ours, found, token = f"tags.`{SOURCE_TAG}` LIKE '{source}%'", list[str](), None
        while True:
            page = self._client.search_runs([self.id()], ours, max_results=PAGE, page_token=token)
            found += [run.info.run_id for run in page]
            if not (token := page.token):
                break
        for run in found:  # only now: a page begins after so many runs as are there still
            if run not in known:
                self._client.delete_run(run)


def in_ms(seconds: float | None) -> int | None:
    return None if seconds is None else round(1000 * seconds)
