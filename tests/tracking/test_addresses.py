"""Where MLflow lives, what is refused, and that nobody is shown how to get in."""

from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from mlflow.store.db import utils

from sesttune.config.load import load_config
from sesttune.errors import UserError
from sesttune.tracking.store import (
    artifact_location,
    check_store,
    problem,
    quick_client,
    tracking_uri,
    unreachable,
    without_secrets,
)


def test_where_the_store_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config([f"output_dir={tmp_path}/out"])
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri(config) == f"sqlite:///{tmp_path}/out/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert tracking_uri(config) == "http://server:5000"
    assert tracking_uri(config, "http://before") == "http://server:5000"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert tracking_uri(config, "http://before") == "http://before"
    assert tracking_uri(config, "sqlite:////moved/mlflow.db") == tracking_uri(config)
    named = load_config(["tracking.uri=http://other"])
    assert tracking_uri(named) == "http://other"
    monkeypatch.chdir(tmp_path)  # as a run is delivered to later, from elsewhere
    here = load_config(["tracking.uri=sqlite:///own.db"])
    assert tracking_uri(here) == f"sqlite:///{tmp_path}/own.db"
    assert artifact_location(tracking_uri(here)) == f"file://{tmp_path}/mlartifacts"


def test_a_store_that_takes_no_runs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("psycopg2")
    for uri in ("http://h", "sqlite:///x.db", "postgresql+psycopg2://h/x"):
        check_store(load_config([f"tracking.uri={uri}"]))
    for uri in ("foo", "./mlruns", "nonsense://x", "file:///mlruns"):
        with pytest.raises(UserError, match=f"tracking.uri={uri} is no store"):
            check_store(load_config([f"tracking.uri={uri}"]))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "mlruns")
    with pytest.raises(UserError, match="MLFLOW_TRACKING_URI=mlruns is no store"):
        check_store(load_config())


def test_a_database_whose_package_is_missing_is_refused_in_one_line() -> None:
    for kind, told in (
        ("postgresql+asyncpgx", "postgresql.asyncpgx"),
        ("mssql+pymssql", "pymssql"),
    ):
        uri = f"{kind}://me:secret@h/x"
        with pytest.raises(UserError, match=f"cannot be spoken to .*{told}") as found:
            quick_client(uri)
        assert "secret" not in str(found.value)
        assert told in str(unreachable(uri))
        with pytest.raises(UserError, match="cannot be spoken to"):
            check_store(load_config([f"tracking.uri={kind}://h/x"]))


@pytest.mark.parametrize("uri", ["http://[::1:5000", "http://h:port", "sqlite+pysqlite://h:port/x"])
def test_what_is_no_address_is_refused_in_one_line(uri: str) -> None:
    with pytest.raises(UserError, match=r"the store .* is no address \(\w"):
        check_store(load_config([f"tracking.uri={uri}"]))


def test_secrets_are_not_shown() -> None:
    assert without_secrets("http://me:secret@host:5000/x") == "http://host:5000/x"
    assert without_secrets("postgresql://u:p@db/mlflow") == "postgresql://db/mlflow"
    for plain in ("sqlite:////a@b/c.db", "postgresql:///mlflow?host=/run", "http://h/?"):
        assert without_secrets(plain) == plain.removesuffix("?")
    assert without_secrets("postgresql:///mlflow?password=p") == "postgresql:///mlflow"
    assert without_secrets("https://TOKEN@[::1]:5000") == "https://[::1]:5000"
    database = "postgresql://db/mlflow?user=me&{}=a%40b&sslmode=require"
    for key in ("password", "PASSWORD", "passwd", "sslpassword", "token"):
        uri = database.format(key)
        assert without_secrets(uri) == "postgresql://db/mlflow?user=me&sslmode=require"
        assert problem(ValueError("no: a@b, a%40b"), uri) == "no: ***, ***"
    for typed in ("p/w", "p?w", "p#w", "p@w", "p:w", "p?a=b"):  # as drivers take them
        uri = f"postgresql+psycopg2://me@corp:{typed}@db:5432/mlflow?options=a@b"
        assert without_secrets(uri) == "postgresql+psycopg2://db:5432/mlflow?options=a@b"
        assert problem(ValueError(f"no: {typed}"), uri) == "no: ***"
        with pytest.raises(UserError, match="password or token") as found:
            check_store(load_config([f"tracking.uri={uri}"]))
        assert typed not in str(found.value)
    assert without_secrets("http://h:5000/a@b") == "http://h:5000/a@b"
    told = problem(ValueError("API request to http://me:secret@h/api: no"), "http://me:secret@h")
    assert told == "API request to http://h/api: no"
    assert problem(ValueError("TOKEN is unknown"), "https://TOKEN@h") == "*** is unknown"


def test_secrets_are_refused_as_settings() -> None:
    pytest.importorskip("psycopg2")
    check_store(load_config(["tracking.uri=postgresql+psycopg2://me@db/mlflow?sslmode=require"]))
    for uri in (
        "http://me:secret@h",
        "https://key@h",
        "postgresql://db/mlflow?user=me&password=secret",
        "mysql://db/mlflow?passwd=secret",
    ):
        with pytest.raises(UserError, match="tracking.uri holds a password or token") as told:
            check_store(load_config([f"tracking.uri={uri}"]))
        assert "secret" not in str(told.value)
        assert "key" not in str(told.value)


def test_a_database_that_is_away_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(utils, "MAX_RETRY_COUNT", utils.MAX_RETRY_COUNT)  # as it is afterwards
    monkeypatch.setattr(utils.time, "sleep", lambda _: pytest.fail("it is tried again"))
    pytest.importorskip("psycopg2")
    told = unreachable("postgresql+psycopg2://me:secret@127.0.0.1:1/mlflow")
    assert told is not None
    assert "refused" in told


def test_a_server_older_than_mlflow_3_is_named_as_what_has_no_models() -> None:
    """The words are those of MLflow's client at servers of 2.16 and 2.22."""
    request = "API request to endpoint /api/2.0/mlflow/logged-models failed with error code 404"
    told = problem(ValueError(f"{request} != 200. Response body: '<!doctype html>"), "http://h")
    assert told.startswith("its server is older than MLflow 3, ")


def test_a_model_whose_files_are_gone_is_not_called_unregistered() -> None:
    lost = MlflowException("No such artifact: ''")
    told = problem(lost, "sqlite:///mlflow.db")
    assert told == "it is registered, but its files are gone: put them back, or promote it again"
