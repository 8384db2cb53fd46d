"""The stores that every behaviour is tried on; each starts once."""

from collections.abc import Iterator

import pytest
from helpers.mlflow_server import MlflowServer
from helpers.postgres import open_postgres


@pytest.fixture(scope="session")
def sqlite(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('sqlite')}/mlflow.db"


@pytest.fixture(scope="session")
def sqlite_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    running = MlflowServer(tmp_path_factory.mktemp("server"))
    running.start()
    yield running
    running.kill()


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    with open_postgres() as database:
        running = MlflowServer(tmp_path_factory.mktemp("postgres"), database)
        running.start()
        yield running
        running.kill()


@pytest.fixture(params=["sqlite", "sqlite_server", "postgres_server"])
def uri(request: pytest.FixtureRequest) -> str:
    """Of every kind of store."""
    store = request.getfixturevalue(request.param)
    return store if isinstance(store, str) else str(store.uri)


@pytest.fixture(params=["sqlite_server", "postgres_server"])
def server(request: pytest.FixtureRequest) -> MlflowServer:
    """Each of the servers; a test that kills it starts it again."""
    found = request.getfixturevalue(request.param)
    assert isinstance(found, MlflowServer)
    return found
