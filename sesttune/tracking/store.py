"""Where MLflow lives: SQLite beside the runs, or the server the user names."""

import logging
import os
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote_plus, urlsplit

from sesttune.config.paths import SQLITE, whole_uri
from sesttune.config.schema import Config
from sesttune.errors import UserError, first_line
from sesttune.tracking.moved import follow_move
from sesttune.tracking.new_store import make_store

DATABASE, ARTIFACTS = "mlflow.db", "mlartifacts"
SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")
"""Of the stores that take runs; MLflow's file store no longer does."""
SECRET_KEYS = ("password", "passwd", "pwd", "sslpassword", "token", "odbc_connect")
"""What a database driver takes in the query of an address, after `?`."""
_ENTRY = re.compile(r"([^:/]*://)([^:/?#]*)(?::(?!\d+[/?#])([^@]*(?:@[^@/?#]*)*))?@")
"""How an address begins that lets somebody in: scheme, user, password. As database drivers take it,
a password may hold `/`, `?` and `#` as they are; a number before one of them is a port."""
TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
FILE_TIMEOUT_S = 300
"""MLflow's server answers when its own store has the file: 0.6 GB at 2 MB/s."""


def tracking_uri(config: Config, before: str | None = None) -> str:
    """`tracking.uri`, else $MLFLOW_TRACKING_URI, else SQLite in `output_dir`.

    `before`: where a run was delivered so far, which counts before SQLite if it is a server.
    """
    named = config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
    if named:
        return whole_uri(named)
    if before is not None and not before.startswith("sqlite:"):
        return before
    folder = Path(config.output_dir).expanduser().absolute()
    return f"{SQLITE}{folder / DATABASE}"


def check_store(config: Config) -> None:
    """Raise UserError for a store that takes no runs, and for a password or token in settings."""
    if config.tracking.uri is not None and _secrets(config.tracking.uri):
        raise UserError(
            "tracking.uri holds a password or token, and settings are printed, saved and logged: "
            "set the environment variable MLFLOW_TRACKING_URI instead, or MLFLOW_TRACKING_USERNAME "
            "and MLFLOW_TRACKING_PASSWORD (a token: MLFLOW_TRACKING_TOKEN)"
        )
    uri = tracking_uri(config)
    if _scheme(uri).partition("+")[0] not in SCHEMES:
        where = "tracking.uri" if config.tracking.uri else "MLFLOW_TRACKING_URI"
        raise UserError(
            f"{where}={without_secrets(uri)} is no store that MLflow keeps runs in: write "
            "http(s)://HOST, sqlite:///FILE or postgresql+psycopg2://HOST/NAME"
        )
    if not _is_database(uri):
        try:
            _ = urlsplit(uri).port
        except ValueError as error:  # a bracket or a port that is none
            raise UserError(_no_address(uri, error)) from None
    _require_driver(uri)


def _no_address(uri: str, error: Exception) -> str:
    return f"the store {without_secrets(uri)} is no address ({problem(error, uri)})"


def _require_driver(uri: str) -> None:
    """Raise UserError where the Python package that speaks to the database at `uri` is missing."""
    if not _is_database(uri):
        return
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        address = make_url(uri)
    except (ArgumentError, ValueError) as error:  # the latter: a port that is no number
        raise UserError(_no_address(uri, error)) from None
    try:
        address.get_dialect().import_dbapi()
    except (ImportError, ArgumentError) as error:
        raise UserError(
            f"the store {without_secrets(uri)} cannot be spoken to ({error}): install the package, "
            "or name one that is installed: DATABASE+PACKAGE://, such as postgresql+psycopg2://"
        ) from None


def _scheme(uri: str) -> str:
    return uri.partition("://")[0].lower()


def _is_database(uri: str) -> bool:
    return _scheme(uri) not in ("http", "https", "databricks")


def artifact_location(uri: str) -> str | None:
    """Artifacts lie beside an SQLite file; a server decides for itself (None)."""
    if not uri.startswith(SQLITE):
        return None
    return (Path(uri.removeprefix(SQLITE)).parent / ARTIFACTS).as_uri()


def without_secrets(uri: str) -> str:
    """`uri` without user name, password and token, fit to be shown or logged."""
    entry = _ENTRY.match(uri)
    here, asked, query = (entry[1] + uri[entry.end() :] if entry else uri).partition("?")
    query = "&".join(item for item in query.split("&") if not _is_secret(item))
    return f"{here}{asked if query else ''}{query}"


def _secrets(uri: str) -> list[str]:
    """What of `uri` lets others in, as written and as it is meant."""
    entry = _ENTRY.match(uri)
    query = uri[entry.end() if entry else 0 :].partition("?")[2]
    found = [item.partition("=")[2] for item in query.split("&") if _is_secret(item)]
    if entry and entry[3]:
        found.append(entry[3])
    elif entry and _scheme(uri) in ("http", "https"):  # a token is sent as the user
        found.append(entry[2])
    return [text for value in found if value for text in (value, unquote_plus(value))]


def _is_secret(item: str) -> bool:
    return item.partition("=")[0].lower() in SECRET_KEYS


def problem(error: BaseException, uri: str) -> str:
    """What went wrong with the store at `uri`: the root of `error` in a line, without secrets."""
    while root := error.__cause__ or (None if error.__suppress_context__ else error.__context__):
        error = root
    line = first_line(error).replace(uri, without_secrets(uri))
    for secret in _secrets(uri):
        line = line.replace(secret, "***")
    return _remedy(line, uri) or line[:200]


def _remedy(line: str, uri: str) -> str | None:
    """What to do about a store that is there and does not let us in; None: nothing is known."""
    if "error code 401" in line:
        return (
            "it does not know this user and password: set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD (a token: MLFLOW_TRACKING_TOKEN)"
        )
    if "mlflow/logged-models failed with error code 404" in line:
        return (
            "its server is older than MLflow 3, which registering a model takes (delivering runs "
            "does not): upgrade the server"
        )
    if "out-of-date database schema" in line:
        return (
            "its tables are of another version of MLflow: back it up and run `mlflow db upgrade "
            f"{shlex.quote(without_secrets(uri))}`, or install that version"
        )
    if line.startswith("No such artifact"):
        return "it is registered, but its files are gone: put them back, or promote it again"
    return None


def unreachable(uri: str) -> str | None:
    """Why the store at `uri` does not take runs, in a line; None where it does."""
    from mlflow import MlflowClient

    try:
        delivering_client(uri)
        MlflowClient(uri).search_experiments(max_results=1)
    except Exception as error:
        return problem(error, uri)
    return None


@contextmanager
def mlflow_store(uri: str) -> Iterator[None]:
    """MLflow's own functions use the store at `uri` inside; errors of the store become a UserError.

    MLflow puts the address into the environment, where it would send the rest of the process, and
    whatever it starts, to this store: it is taken out again.
    """
    import mlflow
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    quick_client(uri)
    names = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
    before = {name: os.environ.get(name) for name in names}
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    try:
        yield
    except (MlflowException, SQLAlchemyError) as error:
        raise UserError(f"MLflow at {without_secrets(uri)}: {problem(error, uri)}") from None
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def require_store(uri: str) -> None:
    """Raises UserError where `uri` names an SQLite file that is not there.

    MLflow would make an empty one and report a missing model or experiment.
    """
    if is_gone(uri):
        raise UserError(
            f"nothing is tracked in {uri.removeprefix(SQLITE)}: run a sweep first, "
            "name the folder of an earlier one (output_dir=, --output-dir), or set "
            "MLFLOW_TRACKING_URI to the store it was tracked in"
        )


def is_gone(uri: str) -> bool:
    """Whether `uri` names an SQLite file that is not there."""
    return uri.startswith(SQLITE) and not Path(uri.removeprefix(SQLITE)).is_file()


def quick_client(uri: str) -> None:
    """MLflow's client of `uri` with short timeouts, no chatter and no retries of its own.

    By default a server or database that is away holds a caller for minutes, and every run that ends
    prints links into the live table. A request that made a run and whose answer was lost must not
    be sent again before somebody has looked: MLflow would make the run twice. Raises UserError
    where the package that speaks to a database is missing.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault(TIMEOUT, "10")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # What goes wrong is raised too; MLflow's own log of it is a page of SQL.
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if _is_database(uri):
        from mlflow.store.db import utils

        _require_driver(uri)
        if uri.startswith(SQLITE):
            database = Path(uri.removeprefix(SQLITE))
            follow_move(database, database.parent / ARTIFACTS)
        utils.MAX_RETRY_COUNT = 1  # MLflow has no setting for it, and tries for 100 s


def delivering_client(uri: str) -> None:
    """`quick_client` for what brings runs: a new SQLite store is made for them.

    Not for who only looks: `track status` would take an empty store for one that has all.
    """
    quick_client(uri)
    if uri.startswith(SQLITE) and "?" not in uri:  # options, which are no part of the name
        make_store(Path(uri.removeprefix(SQLITE)))


@contextmanager
def patient_client() -> Iterator[None]:
    """Requests of a `quick_client` inside may take as long as a large file does.

    MLflow's timeout is the process's: it holds for requests of other threads, too.
    """
    before = os.environ[TIMEOUT]
    os.environ[TIMEOUT] = str(max(FILE_TIMEOUT_S, int(before)))
    try:
        yield
    finally:
        os.environ[TIMEOUT] = before
