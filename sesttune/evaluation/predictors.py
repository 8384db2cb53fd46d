"""What is evaluated: anything that predicts the perturbed cells of cell sets.

A model and the means it must beat take the same sets, controls included, so every
difference between two predictors is a paired one.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from sesttune.data.embeddings import ControlEmbeddings
from sesttune.data.sampling import CellSets
from sesttune.model.st_head import STHead

Predictor = Callable[[CellSets], Tensor]
"""Predicted log1p expression of some cell sets, float32 [sets, cells, genes], on the host."""

SETS_AT_ONCE = 8
"""Bounds memory: 8 sets of 128 cells and 18,080 genes are 74 MB a predictor."""


def head_predictor(head: STHead, controls: ControlEmbeddings, features: np.ndarray) -> Predictor:
    """The prediction of `head`, on the GPU where there is one.

    `features` is float32 [perturbations, pert_dim], by the store's codes of perturbations.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    head = head.to(device).eval()

    def predict(sets: CellSets) -> Tensor:
        cells = controls.matrix[controls.row_of_cell[sets.control_rows]]
        embedding = torch.from_numpy(cells).to(device)  # [sets, cells, embed_dim]
        feature = torch.from_numpy(features[sets.pert_codes]).to(device)  # [sets, pert_dim]
        with torch.inference_mode():
            predicted: Tensor = head(embedding, feature).float().cpu()
        return predicted

    return predict


def parts(sets: CellSets) -> Iterator[CellSets]:
    """`sets`, some at a time."""
    for start in range(0, len(sets), SETS_AT_ONCE):
        yield sets.part(start, start + SETS_AT_ONCE)
