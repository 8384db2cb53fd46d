"""Checkpoints of the ST head: a training state, or weights alone.

Neither ever holds the frozen encoder; they name it (path, sha256). At 48.9M
parameters a training state takes 0.6 GB (weights and Adam's two moments), weights
alone 0.2 GB. Promoted weights are safetensors. Everything is read with
`weights_only=True`.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sesttune.errors import UserError, check_file
from sesttune.model.st_head import HeadConfig, STHead
from sesttune.system.atomic import replacing

FORMAT = "sesttune-head-1"
WEIGHTS_FILE, ABOUT_FILE = "head.safetensors", "head.json"
FEATURES_FILE = "features.safetensors"
"""Beside them in a registered model: the vectors of the perturbations it was trained on."""
SAID = ("head", "config", "encoder", "genes", "step", "val_loss", "data_fingerprint")
"""What every `head.json` says."""


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and plain values to `path`, whole or not at all.

    Raises UserError where the disk is full; the file that was there stays.
    """
    # By a file of Python's, which says why a write failed; torch's own does not.
    with replacing(path) as draft, draft.open("wb") as file:
        torch.save({"format": FORMAT, **content}, file)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content `save_checkpoint` was given; raises UserError for any other file."""
    check_file(path, "checkpoint ")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # of any kind: the reader takes each byte of a foreign file for a command
        raise UserError(f"checkpoint {path} is truncated, or not one that sesttune wrote") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"checkpoint {path} is not a sesttune head checkpoint ({FORMAT})")
    return content


def load_state(head: STHead, state: dict[str, torch.Tensor], path: Path) -> None:
    """Put weights into `head`; raises UserError naming the first that does not fit."""
    check_shapes(head, state, path)
    head.load_state_dict(state)


def check_shapes(head: STHead, state: dict[str, torch.Tensor], path: Path) -> None:
    """Raise UserError, naming the first tensor that does not fit, unless `state` is of `head`."""
    expected = head.state_dict()
    more = sorted(state.keys() - expected.keys())
    if more:
        raise UserError(f"checkpoint {path} has {more[0]} too: it is of another model")
    for name, tensor in expected.items():
        if name not in state:
            raise UserError(f"checkpoint {path} lacks {name}: it is of another model")
        if state[name].shape != tensor.shape:
            raise UserError(
                f"checkpoint {path}: {name} has shape {tuple(state[name].shape)}, this "
                f"configuration needs {tuple(tensor.shape)}"
            )


def export_head(folder: Path, head: STHead, about: dict[str, Any]) -> dict[str, Any]:
    """Write `head.safetensors` and `head.json` into `folder`; returns what the latter says.

    That is the format, the sizes of the head, and `about`.
    """
    save_file({k: v.contiguous() for k, v in head.state_dict().items()}, folder / WEIGHTS_FILE)
    described = {"format": FORMAT, "head": asdict(head.config), **about}
    (folder / ABOUT_FILE).write_text(json.dumps(described, indent=2))
    return described


def import_head(folder: Path) -> tuple[STHead, dict[str, Any]]:
    """The head that `export_head` wrote, in eval mode, and what was said about it.

    Raises UserError where `folder` holds none, or a damaged one.
    """
    about = read_about(folder)
    try:
        head = STHead(HeadConfig(**about["head"]))
        load_state(head, load_file(folder / WEIGHTS_FILE), folder / WEIGHTS_FILE)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(f"{folder} does not hold a promoted head: {error}") from None
    return head.eval(), about


def read_about(folder: Path) -> dict[str, Any]:
    """What `head.json` says of the head in `folder`. Raises UserError where it lacks some of it."""
    path = folder / ABOUT_FILE
    try:
        about = dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} is missing or damaged ({error}): promote it again") from None
    lacking = [key for key in SAID if key not in about]
    if lacking:
        raise UserError(f"{path} does not say its {', '.join(lacking)}: promote it again")
    return about


def read_vectors(folder: Path) -> dict[str, np.ndarray]:
    """name -> float32 [pert_dim] of the model in `folder`. Raises UserError where damaged."""
    path = folder / FEATURES_FILE
    try:
        return dict(safetensors.numpy.load_file(path))
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{path} is missing or damaged ({error}): promote it again") from None
