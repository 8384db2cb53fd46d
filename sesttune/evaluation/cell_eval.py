"""The metrics of cell-eval, the Virtual Cell Challenge's own program, through its API.

It knows perturbations but no contexts, so each (dataset, cell type) is evaluated by itself: all
held-out cells and all controls, predicted and real. Its files stay in a folder a context.
"""

import importlib.util
from pathlib import Path

import anndata
import numpy as np
import pandas as pd

from sesttune.config.schema import Config
from sesttune.data.trial_data import Condition, TrialData
from sesttune.errors import UserError
from sesttune.evaluation.every_cell import predict_every_cell
from sesttune.evaluation.predictors import Predictor


def require_cell_eval() -> None:
    """Raises UserError where cell-eval is not installed."""
    if importlib.util.find_spec("cell_eval") is None:
        raise UserError("--cell-eval needs the package cell-eval: pip install 'sesttune[eval]'")


def run_cell_eval(
    data: TrialData, split: str, predict: Predictor, config: Config, folder: Path
) -> dict[str, dict[str, float]]:
    """Means over perturbations of each metric that cell-eval computes, by context."""
    from cell_eval import MetricsEvaluator

    store, found = data.store, {}
    contexts: dict[tuple[int, int], list[Condition]] = {}
    for condition in data.conditions(split):
        contexts.setdefault((condition.dataset, condition.cell_type), []).append(condition)
    for (dataset, cell_type), conditions in contexts.items():
        name = f"{store.names['dataset'][dataset]}.{store.names['cell_type'][cell_type]}"
        here = (store.dataset == dataset) & (store.cell_type == cell_type)
        controls = np.flatnonzero(here & store.is_control)
        rows = np.sort(np.concatenate([controls, *(c.rows for c in conditions)]))
        real = store.dense(rows)
        predicted = real.copy()
        length, seed = config.model.kwargs.st_cell_set_len, config.training.train_seed
        for cells, values in predict_every_cell(store, conditions, predict, length, seed):
            predicted[np.searchsorted(rows, cells)] = values
        evaluator = MetricsEvaluator(
            adata_pred=_cells(data, rows, predicted),
            adata_real=_cells(data, rows, real),
            control_pert=store.control_pert,
            pert_col="perturbation",
            outdir=str(folder / folder_name(name)),
        )
        scores, _ = evaluator.compute()
        table = scores.drop("perturbation").to_pandas()
        found[name] = {str(k): float(v) for k, v in table.mean(numeric_only=True).items()}
    return found


def folder_name(context: str) -> str:
    """A folder's name for a context, another for each: labels may hold `/`, and `..` before it."""
    name = context.replace("%", "%25").replace("/", "%2F")
    return f"%2E{name[1:]}" if name.startswith(".") else name


def _cells(data: TrialData, rows: np.ndarray, expression: np.ndarray) -> anndata.AnnData:
    names = np.array(data.store.names["pert"])[data.store.pert[rows]]
    obs = pd.DataFrame({"perturbation": pd.Categorical(names)}, index=rows.astype(str))
    return anndata.AnnData(expression, obs=obs, var=pd.DataFrame(index=data.store.genes))
