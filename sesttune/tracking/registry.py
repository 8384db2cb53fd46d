"""Register a trained head as a version of the model `se-st`, and fetch it again.

The registered model is an MLflow pyfunc (models from code): safetensors weights, the features of
the perturbations it was trained on, a JSON file that says how it was made, and the few modules of
this package that it runs on. The frozen encoder is named by path and sha256, not copied.
"""

import atexit
import shutil
import tempfile
from collections.abc import Mapping
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import LifecycleStage
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, DataType, Schema, TensorSpec
from mlflow.types.schema import Array
from safetensors import safe_open
from safetensors.numpy import save_file

from sesttune.data.trial_data import TrialData
from sesttune.errors import UserError
from sesttune.model.head_checkpoint import ABOUT_FILE, FEATURES_FILE, export_head
from sesttune.model.st_head import STHead
from sesttune.tracking.aliases import MODEL_NAME
from sesttune.tracking.model_code import write_code
from sesttune.tracking.store import (
    artifact_location,
    mlflow_store,
    patient_client,
    problem,
    require_store,
)

HEAD_ARTIFACT = "head"
PINNED = ("mlflow", "numpy", "pandas", "safetensors", "torch")


def register(
    run_id: str,
    folder: Path,
    about: Mapping[str, Any],
    tags: Mapping[str, str],
    uri: str,
) -> str:
    """Register the model files in `folder` (`write_model`); returns the version's number.

    `run_id` is the trial's MLflow run, `about` as written there. No alias is touched. Raises
    UserError where MLflow is away.
    """
    with mlflow_store(uri), patient_client(), tempfile.TemporaryDirectory() as code:
        model, package = write_code(Path(code))
        client = MlflowClient(uri, uri)
        run = client.get_run(run_id)
        made = client.create_logged_model(
            run.info.experiment_id, MODEL_NAME, run_id, params=run.data.params
        )
        # Not `pyfunc.log_model`: it needs an active run, and the trial's would end anew, now.
        info = Model.log(
            None,
            mlflow.pyfunc,
            run_id=run_id,
            model_id=made.model_id,
            python_model=str(model),
            artifacts={HEAD_ARTIFACT: str(folder)},
            code_paths=[str(package)],
            pip_requirements=[f"{name}=={_public_version(name)}" for name in PINNED],
            signature=_signature(len(about["genes"])),
            input_example=_example(folder, about["head"]["embed_dim"]),
        )
        described = {
            "step": str(about["step"]),
            "val_loss": "-" if about["val_loss"] is None else f"{about['val_loss']:.6g}",
            "encoder": about["encoder"]["label"],
            "encoder_sha256": about["encoder"]["sha256"],
            "data_fingerprint": about["data_fingerprint"],
            **tags,
        }
        # At once with its tags: a kill leaves no version that does not say what it is.
        return str(mlflow.register_model(info.model_uri, MODEL_NAME, tags=described).version)


def require_run(run_id: str, uri: str) -> None:
    """Raise UserError where somebody deleted the run, which takes neither metrics nor a model."""
    if MlflowClient(uri).get_run(run_id).info.lifecycle_stage == LifecycleStage.DELETED:
        raise UserError(f"the trial's run {run_id} was deleted in MLflow: restore it there")


def log_held_out(run_id: str, metrics: Mapping[str, float], step: int, uri: str) -> None:
    """Add held-out metrics to the trial's run, beside its validation losses."""
    client = MlflowClient(uri)
    for name, value in metrics.items():
        client.log_metric(run_id, name, value, step=step)


def write_model(
    folder: Path, head: STHead, about: Mapping[str, Any], data: TrialData
) -> dict[str, Any]:
    """Write the files of a registered model into `folder`; returns what `head.json` says."""
    described = export_head(folder, head, dict(about))
    names = [n for n in data.store.names["pert"] if n != data.store.control_pert]
    rows = {name: data.features[data.store.names["pert"].index(name)].copy() for name in names}
    save_file({n: row for n, row in rows.items() if row[0] == row[0]}, folder / FEATURES_FILE)
    return described


def _public_version(name: str) -> str:
    """Without a local part: `2.11.0+cu128` is not on PyPI, `2.11.0` is."""
    return installed(name).partition("+")[0]


def _signature(genes: int) -> ModelSignature:
    columns: list[ColSpec | TensorSpec] = [
        ColSpec(DataType.string, "perturbation"),
        ColSpec(Array(DataType.double), "control_embedding"),
    ]
    expression = TensorSpec(np.dtype(np.float32), (-1, genes), "expression")
    return ModelSignature(Schema(columns), Schema([expression]))


def _example(folder: Path, embed_dim: int) -> pd.DataFrame:
    """Two cells of one set."""
    with safe_open(folder / FEATURES_FILE, "np") as file:
        name = min(file.keys())
    cells = [[0.0] * embed_dim, [0.1] * embed_dim]
    return pd.DataFrame({"perturbation": [name] * 2, "control_embedding": cells})


def fetch_model(model: str, uri: str) -> Path:
    """Folder with `head.json` of `models:/NAME@ALIAS`, or of a local folder.

    Beside an SQLite file the model is read where it lies; of a server it is downloaded, 0.2 GB that
    go when this process ends. Raises UserError where there is no such model.
    """
    if not model.startswith("models:/"):
        if not (Path(model) / ABOUT_FILE).is_file():
            raise UserError(
                f"--model {model}: neither models:/NAME@ALIAS nor a folder with head.json"
            )
        return Path(model)
    require_store(uri)
    with mlflow_store(uri), patient_client():
        try:
            place = _until_the_end() if artifact_location(uri) is None else None
            folder = Path(mlflow.artifacts.download_artifacts(model, dst_path=place))
        except Exception as error:  # MLflow's own, and those of each kind of store
            reason = problem(error, uri)
            raise UserError(
                f"--model {model}: not to be had from the MLflow registry ({reason})"
            ) from None
    heads = list(folder.rglob(ABOUT_FILE))
    if len(heads) != 1:
        raise UserError(f"--model {model} is not a model that sesttune registered")
    return heads[0].parent


def _until_the_end() -> str:
    """A new folder that is removed when this process ends, as MLflow's own is not."""
    folder = tempfile.mkdtemp(prefix="sesttune-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
