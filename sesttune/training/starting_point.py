"""The training that others go on from (`model.checkpoint`), and whether these settings can.

What the settings tell is asked before the data are prepared, which may take hours of encoding;
what the data tell, before the first trial.
"""

from pathlib import Path
from typing import Any

import torch

from sesttune.config.schema import Config
from sesttune.data.identity import other_embeddings
from sesttune.data.trial_data import TrialData
from sesttune.errors import UserError
from sesttune.model.head_checkpoint import check_shapes
from sesttune.model.st_head import STHead
from sesttune.training.head_size import head_config
from sesttune.training.saving import read_training_state

FIXED = ("hidden_dim", "n_layers", "n_heads")
"""What a head cannot change on the way, of `model.kwargs`."""


def starting_state(config: Config) -> dict[str, Any] | None:
    """The training state in `model.checkpoint`; None where there is none to go on from.

    Raises UserError where the file holds none, or one of another head, or one that has no step
    left to `training.max_steps`.
    """
    if config.model.checkpoint is None:
        return None
    source = Path(config.model.checkpoint).expanduser()
    state = read_training_state(source)
    for name in FIXED:
        then, now = state["config"]["model"]["kwargs"][name], getattr(config.model.kwargs, name)
        if then != now:
            raise UserError(
                f"model.checkpoint: {source} has {name}={then}; set model.kwargs.{name}={then}"
            )
    if state["step"] >= config.training.max_steps:
        raise UserError(
            f"model.checkpoint: {source} is at step {state['step']} already: training.max_steps="
            f"{config.training.max_steps} must be larger"
        )
    return state


def refuse_other_data(state: dict[str, Any], config: Config, data: TrialData) -> None:
    """Raise UserError where the head of `starting_state` was made for other data than these."""
    source = Path(str(config.model.checkpoint)).expanduser()
    then, now = state["encoder"], data.encoder
    if other_embeddings(then, now):
        one, other = (f"{e['label']} ({e['sha256'][:12] or 'no encoder'})" for e in (then, now))
        raise UserError(
            f"model.checkpoint: {source} was trained on embeddings of {one}, these are of {other}"
        )
    if state.get("genes", data.genes_key) != data.genes_key:  # older ones do not say
        raise UserError(
            f"model.checkpoint: {source} was trained on other genes than these "
            f"{data.n_genes:,}, or on these in another order: set data.kwargs.gene_list to those"
        )
    with torch.device("meta"):
        head = STHead(head_config(config, data))
    check_shapes(head, state["model"], source)


def told_of_other_split(state: dict[str, Any], config: Config, data: TrialData) -> str | None:
    """What is to be said where nothing has held the held-out conditions from the starting point."""
    if state.get("data_fingerprint", data.fingerprint) == data.fingerprint:  # older: not known
        return None
    return (
        f"model.checkpoint: {config.model.checkpoint} was trained on other data or another split: "
        "it may know some of the val and test conditions, whose losses are then too good"
    )
