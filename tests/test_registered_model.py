"""The registered model as others meet it: through MLflow alone, without this package."""

import os
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from helpers.mlflow_server import MlflowServer
from helpers.trained_runs import POOR, run_training, write_settings

import sesttune
from sesttune import promote

CHAMPION = "models:/se-st@champion"


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a server that holds one registered model."""
    folder = tmp_path_factory.mktemp("trained")
    server = MlflowServer(folder)
    server.start()
    settings = write_settings(folder)
    short = ["training.max_steps=1", "training.val_check_interval=1"]
    run_training(settings, POOR, [*short, f"tracking.uri={server.uri}"])
    assert promote.main(["--sweep", POOR, "--output-dir", f"{folder}/outputs"]) == 0
    yield server.uri
    server.kill()


LOAD = """
import sys
# This checkout must not help: only what the model brings along.
sys.meta_path = [f for f in sys.meta_path if "editable" not in type(f).__module__ + repr(f)]
sys.path = [p for p in sys.path if p and "__editable__" not in p]
try:
    import sesttune
except ImportError:
    pass
else:
    raise SystemExit("sesttune is still there")
import mlflow
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/se-st@champion")
print(model.predict(model.input_example).shape)
"""


def test_the_registered_model_runs_without_sesttune(uri: str, tmp_path: Path) -> None:
    script = [sys.executable, "-c", LOAD, uri]
    done = subprocess.run(script, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "(2, 60)"


LOAD_BESIDE_SESTTUNE = """
import sys
import mlflow
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/se-st@champion")
assert model.predict(model.input_example).shape == (2, 60)
assert "sesttune" not in sys.modules
import sesttune.model.losses
import multiprocessing
with multiprocessing.get_context("spawn").Pool(1) as pool:
    child = pool.apply(eval, ("__import__('sesttune.model.losses').__file__",))
import os
import tempfile
from sesttune.tracking.registry import fetch_model
before = set(os.listdir(tempfile.gettempdir()))
assert (fetch_model("models:/se-st@champion", sys.argv[1]) / "head.json").is_file()
downloaded = set(os.listdir(tempfile.gettempdir())) - before
print(sesttune.__file__, child, *downloaded)
"""


def test_a_loaded_model_does_not_hide_the_installed_package(uri: str, tmp_path: Path) -> None:
    script = [sys.executable, "-c", LOAD_BESIDE_SESTTUNE, uri]
    place = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(script, capture_output=True, text=True, cwd=tmp_path, env=place)
    assert done.returncode == 0, done.stderr[-2000:]
    *packages, downloaded = done.stdout.splitlines()[-1].split()
    assert packages == [sesttune.__file__] * 2
    assert not (tmp_path / downloaded).exists()  # what sesttune itself fetches goes with it


def test_the_model_names_its_requirements_and_takes_the_declared_input(uri: str) -> None:
    mlflow.set_tracking_uri(uri)
    info = mlflow.models.get_model_info("models:/se-st@champion")
    inputs = {column.name: str(column.type) for column in info.signature.inputs}
    assert inputs == {"perturbation": "DataType.string", "control_embedding": "Array(double)"}
    needs = Path(mlflow.pyfunc.get_model_dependencies("models:/se-st@champion")).read_text()
    names = {line.partition("==")[0] for line in needs.split()}
    assert {"mlflow", "torch", "numpy", "safetensors", "pandas"} <= names
    assert all("==" in line for line in needs.split())
    model = mlflow.pyfunc.load_model("models:/se-st@champion")
    frame = pd.DataFrame({"perturbation": ["P0", "P1", "P0"], "control_embedding": [[0.1] * 6] * 3})
    predicted = np.asarray(model.predict(frame))
    assert predicted.shape == (3, 60)
    # Cells of one set that are alike: some CPUs take the rows of a product in different orders.
    assert np.allclose(predicted[0], predicted[2], rtol=1e-5, atol=1e-6)
    assert not np.allclose(predicted[0], predicted[1], rtol=1e-2, atol=1e-3)


LOAD_IN_A_CLEAN_ENVIRONMENT = """
import sys
import mlflow
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/se-st@champion")
print(float(model.predict(model.input_example).sum()))
"""


@pytest.mark.slow
def test_its_requirements_are_all_it_needs(uri: str, tmp_path: Path) -> None:
    mlflow.set_tracking_uri(uri)
    needs = Path(mlflow.pyfunc.get_model_dependencies(CHAMPION))
    venv.create(tmp_path / "clean", with_pip=True)
    python = tmp_path / "clean" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", needs], check=True)
    absent = subprocess.run([python, "-c", "import sesttune"], cwd=tmp_path, capture_output=True)
    assert absent.returncode != 0
    script = [python, "-c", LOAD_IN_A_CLEAN_ENVIRONMENT, uri]
    done = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    model = mlflow.pyfunc.load_model(CHAMPION)
    here = float(np.asarray(model.predict(model.input_example)).sum())
    assert float(done.stdout.split()[-1]) == pytest.approx(here, rel=1e-5)
