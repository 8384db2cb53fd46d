import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def _few_threads() -> None:
    import torch

    torch.set_num_threads(2)


@pytest.fixture(autouse=True)
def no_tracking_server_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the developer's server nor one that `mlflow.set_tracking_uri` left behind."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
