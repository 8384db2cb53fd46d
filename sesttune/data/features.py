"""Perturbation features: a `.pt` file holding a dict of name -> vector (ESM2: 5,120 floats)."""

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import torch

from sesttune.data.labels import loosely
from sesttune.errors import UserError, check_file


def read_features(path: Path) -> dict[str, np.ndarray]:
    """name -> float32 [width], all of one width and finite. Never unpickles objects.

    Raises UserError naming the file, and the perturbation where one is at fault.
    """
    key = "data.kwargs.perturbation_features_file"
    check_file(path, f"{key}: ")
    wanted = "it must hold a dict of perturbation name -> tensor, written by torch.save"
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{key}: {path} cannot be read: {error}") from None
    except Exception:  # of any kind: the reader takes each byte of a foreign file for a command
        raise UserError(f"{key}: {path} is not a readable tensor file: {wanted}") from None
    if not isinstance(content, dict) or not content:
        raise UserError(f"{key}: {path}: {wanted}")
    features: dict[str, np.ndarray] = {}
    width: int | None = None
    for name, vector in content.items():
        if not isinstance(vector, torch.Tensor) or vector.ndim != 1:
            raise UserError(f"{key}: {path}: '{name}' is not a one-dimensional tensor")
        width = len(vector) if width is None else width
        if len(vector) != width:
            raise UserError(f"{key}: {path}: '{name}' has {len(vector)} values, others {width}")
        features[str(name)] = vector.detach().to_dense().float().numpy()
    for name, array in features.items():
        if not np.isfinite(array).all():
            raise UserError(f"{key}: {path}: '{name}' holds NaN or infinity")
    return features


def missing_features(features: dict[str, np.ndarray], names: Sequence[str]) -> list[str]:
    """The perturbations of `names` that have no vector, sorted."""
    return sorted(set(names) - set(features))


def named_otherwise(features: Collection[str], lacking: Sequence[str]) -> str:
    """How many of `lacking` are there but for spaces or upper and lower case, or ''."""
    there = {loosely(name): name for name in features}
    found = [name for name in lacking if loosely(name) in there]
    if not found:
        return ""
    other = there[loosely(found[0])]
    return f"it names {len(found)} of them otherwise (e.g. '{other}' for '{found[0]}')"


def feature_matrix(features: dict[str, np.ndarray], names: Sequence[str]) -> np.ndarray:
    """float32 [len(names), width]; NaN rows where a name has no vector, so a leak shows."""
    width = len(next(iter(features.values())))
    matrix = np.full((len(names), width), np.nan, np.float32)
    for row, name in enumerate(names):
        if name in features:
            matrix[row] = features[name]
    return matrix
