"""Register a trial's best head as a version of the model `se-st`.

The registered model is an MLflow pyfunc (models from code): safetensors weights, the
features of the perturbations it was trained on, and a JSON file that says how it
was made. The frozen encoder is named by path and sha256, not copied.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from safetensors.numpy import save_file

from sesttune import __version__
from sesttune.config.load import from_dict
from sesttune.data.trial_data import TrialData
from sesttune.errors import UserError
from sesttune.model.head_checkpoint import export_head, load_state, read_checkpoint
from sesttune.model.st_head import STHead
from sesttune.tracking.store import quick_client, require_store
from sesttune.training.module import head_config
from sesttune.training.records import BEST, TrialRecord

MODEL_NAME = "se-st"
FEATURES_FILE = "features.safetensors"
HEAD_ARTIFACT = "head"
PYFUNC = Path(__file__).with_name("pyfunc_model.py")


@dataclass(frozen=True)
class Version:
    """A registered model version."""

    name: str
    version: str
    alias: str

    @property
    def uri(self) -> str:
        return f"models:/{self.name}@{self.alias}"


def promote(
    record: TrialRecord, run_id: str, manifest: Path, uri: str, alias: str, tags: dict[str, str]
) -> Version:
    """Register the best checkpoint of `record` and point `alias` at it.

    `run_id` is the trial's MLflow run. Raises UserError where the trial has no best checkpoint.
    """
    quick_client()
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    with tempfile.TemporaryDirectory() as folder:
        about = export_model(Path(folder), record, TrialData.open(manifest))
        with mlflow.start_run(run_id=run_id):
            info = mlflow.pyfunc.log_model(
                name=MODEL_NAME,
                python_model=str(PYFUNC),
                artifacts={HEAD_ARTIFACT: folder},
                pip_requirements=[f"sesttune=={__version__}"],
                registered_model_name=MODEL_NAME,
            )
    version = str(info.registered_model_version)
    client = MlflowClient(uri, uri)
    described = {
        "trial": record.id,
        "best_val_loss": f"{about['val_loss']:.6g}",
        "best_step": str(about["step"]),
        "encoder": about["encoder"]["label"],
        "encoder_sha256": about["encoder"]["sha256"],
        "data_fingerprint": about["data_fingerprint"],
        **tags,
    }
    for key, value in described.items():
        client.set_model_version_tag(MODEL_NAME, version, key, value)
    client.set_registered_model_alias(MODEL_NAME, alias, version)
    return Version(MODEL_NAME, version, alias)


def export_model(folder: Path, record: TrialRecord, data: TrialData) -> dict[str, Any]:
    """Write the files of a registered model into `folder`; returns what `head.json` says."""
    path = record.checkpoints / BEST
    if not path.is_file():
        raise UserError(f"trial {record.id} has no best checkpoint ({path}): nothing to promote")
    content = read_checkpoint(path)
    config = from_dict(content["config"])
    head = STHead(head_config(config, data))
    load_state(head, content["model"], path)
    about = {
        "step": int(content["step"]),
        "val_loss": float(content["val_loss"]),
        "config": content["config"],
        "encoder": dict(content["encoder"]),
        "data_fingerprint": data.fingerprint,
        "genes": data.store.genes,
    }
    export_head(folder, head, about)
    names = [n for n in data.store.names["pert"] if n != data.store.control_pert]
    rows = {name: data.features[data.store.names["pert"].index(name)].copy() for name in names}
    save_file({n: row for n, row in rows.items() if row[0] == row[0]}, folder / FEATURES_FILE)
    return about


def fetch_model(model: str, uri: str) -> Path:
    """Folder with `head.json` of `models:/NAME@ALIAS` (downloaded), or of a local folder.

    Raises UserError where there is no such model.
    """
    if not model.startswith("models:/"):
        if not (Path(model) / "head.json").is_file():
            raise UserError(
                f"--model {model}: neither models:/NAME@ALIAS nor a folder with head.json"
            )
        return Path(model)
    require_store(uri)
    quick_client()
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    try:
        folder = Path(mlflow.artifacts.download_artifacts(model))
    except Exception as error:
        reason = str(error).splitlines()[0][:200]
        raise UserError(f"--model {model}: not in the MLflow registry ({reason})") from None
    heads = list(folder.rglob("head.json"))
    if len(heads) != 1:
        raise UserError(f"--model {model} is not a model that sesttune registered")
    return heads[0].parent
