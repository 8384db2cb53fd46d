"""Where MLflow lives: SQLite beside the runs, or the server the user names."""

import logging
import os
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from sesttune.config.schema import Config

DATABASE, ARTIFACTS = "mlflow.db", "mlartifacts"


def tracking_uri(config: Config) -> str:
    """`tracking.uri`, else $MLFLOW_TRACKING_URI, else SQLite in `output_dir`."""
    named = config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
    if named:
        return named
    folder = Path(config.output_dir).expanduser().absolute()
    folder.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{folder / DATABASE}"


def artifact_location(uri: str) -> str | None:
    """Artifacts lie beside an SQLite file; a server decides for itself (None)."""
    if not uri.startswith("sqlite:///"):
        return None
    return (Path(uri.removeprefix("sqlite:///")).parent / ARTIFACTS).as_uri()


def without_secrets(uri: str) -> str:
    """`uri` without user name and password, fit to be shown or logged."""
    parts = urlsplit(uri)
    if parts.password is None and parts.username is None:
        return uri
    host = parts.hostname or ""
    return urlunsplit(parts._replace(netloc=f"{host}:{parts.port}" if parts.port else host))


def quick_client() -> None:
    """MLflow's client with short timeouts and no chatter.

    By default a server that is away holds a caller for minutes, and every run that ends
    prints links into the live table.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
