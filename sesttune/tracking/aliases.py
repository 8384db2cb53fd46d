"""Which registered version serves: the alias, the one before it, and the way back.

MLflow moves an alias in one transaction. The former version is marked first, so a kill between the
two leaves the alias where it was.
"""

from dataclasses import dataclass
from typing import Any

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode

from sesttune.errors import UserError
from sesttune.tracking.store import quick_client, require_store

MODEL_NAME = "se-st"
PREVIOUS = "previous"


@dataclass(frozen=True)
class Version:
    """A registered model version, by what it is called and what is known of it."""

    version: str
    aliases: tuple[str, ...]
    created_ms: int
    tags: dict[str, str]


def registry(uri: str) -> MlflowClient:
    """A client of the registry at `uri`. Raises UserError where there is no such store."""
    require_store(uri)
    quick_client(uri)
    return MlflowClient(uri, uri)


def versions(uri: str) -> list[Version]:
    """Every version of the model, the newest first."""
    client = registry(uri)
    try:
        known = client.get_registered_model(MODEL_NAME)
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
            raise
        return []
    aliases: dict[str, list[str]] = {}
    for alias, version in known.aliases.items():
        aliases.setdefault(str(version), []).append(alias)
    found = client.search_model_versions(f"name = '{MODEL_NAME}'")
    listed = [_version(item, aliases) for item in found]
    return sorted(listed, key=lambda item: -int(item.version))


def serving(uri: str, alias: str) -> Version | None:
    """The version that `alias` points at, where there is one."""
    return next((item for item in versions(uri) if alias in item.aliases), None)


def refuse_overtaken(uri: str, alias: str, over: Version | None) -> None:
    """Raise UserError where `alias` is no longer at `over`, which a candidate was compared with."""
    now = serving(uri, alias)
    if now is not None and (over is None or now.version != over.version):
        raise UserError(
            f"{MODEL_NAME} version {now.version} became '{alias}' meanwhile: promote again to "
            "compare with it"
        )


def move_alias(uri: str, alias: str, version: str) -> str | None:
    """Point `alias` at `version`; returns the version before it, which is kept as `previous`."""
    client, now = registry(uri), serving(uri, alias)
    if now is not None and now.version != version:
        client.set_registered_model_alias(MODEL_NAME, previous_of(alias), now.version)
    client.set_registered_model_alias(MODEL_NAME, alias, version)
    return None if now is None else now.version


def roll_back(uri: str, alias: str) -> tuple[str, str]:
    """Exchange `alias` and its `previous`; returns the versions left and returned to.

    Raises UserError where there is no former version.
    """
    now, before = serving(uri, alias), serving(uri, previous_of(alias))
    if now is None:
        raise UserError(f"no version of {MODEL_NAME} is called '{alias}': nothing to roll back")
    if before is None or before.version == now.version:
        raise UserError(
            f"{MODEL_NAME} version {now.version} is the first '{alias}': nothing to roll back to"
        )
    move_alias(uri, alias, before.version)
    return now.version, before.version


def previous_of(alias: str) -> str:
    """The alias of the former `alias`: `previous` of the champion, else `previous-ALIAS`."""
    return PREVIOUS if alias == "champion" else f"{PREVIOUS}-{alias}"


def _version(item: Any, aliases: dict[str, list[str]]) -> Version:
    number = str(item.version)
    tags = {str(key): str(value) for key, value in item.tags.items()}
    return Version(number, tuple(sorted(aliases.get(number, ()))), item.creation_timestamp, tags)
