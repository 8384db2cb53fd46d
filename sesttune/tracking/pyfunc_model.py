"""The registered model as MLflow runs it (models from code).

Input: a DataFrame with the columns `perturbation` (name) and `control_embedding` (list of
floats); the rows of one perturbation form one cell set. Output: predicted log1p
expression, float32 [rows, genes]. `sesttune predict` does the same from an h5ad file.
"""

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import torch
from mlflow.pyfunc import PythonModel, PythonModelContext


class STModel(PythonModel):  # type: ignore[misc]
    """The ST head behind MLflow's interface."""

    def load_context(self, context: PythonModelContext) -> None:
        # Not above: MLflow runs this file once as it logs it, before its package can be found.
        from sesttune.model.head_checkpoint import import_head, read_vectors

        folder = Path(context.artifacts["head"])
        self._head, _ = import_head(folder)
        self._features = read_vectors(folder)

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> np.ndarray:
        out = np.empty((len(model_input), self._head.config.output_dim), np.float32)
        names = model_input["perturbation"].to_numpy()
        for name in pd.unique(names):
            rows = np.flatnonzero(names == name)
            cells = np.stack(model_input["control_embedding"].iloc[rows].to_list())
            embedding = torch.from_numpy(cells.astype(np.float32))[None]  # [1, cells, embed_dim]
            feature = torch.from_numpy(self._features[name])[None]
            with torch.inference_mode():
                out[rows] = self._head(embedding, feature)[0].numpy()
        return out


mlflow.models.set_model(STModel())
