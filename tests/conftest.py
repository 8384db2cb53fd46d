import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files backwards: the long ones come early, so no worker ends alone with one of them."""
    items.sort(key=lambda item: item.path, reverse=True)


@pytest.fixture(autouse=True)
def _few_threads() -> None:
    import torch

    torch.set_num_threads(2)


@pytest.fixture(autouse=True, scope="module")
def _no_tracking_server_of_ones_own() -> None:
    """Neither the developer's, nor one that a test's own `mlflow.set_tracking_uri` left behind.

    Before a module's own fixtures, some of which run commands.
    """
    os.environ.pop("MLFLOW_TRACKING_URI", None)


@pytest.fixture(autouse=True)
def no_tracking_server_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor one of the test before."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
