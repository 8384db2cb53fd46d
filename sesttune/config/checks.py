"""Refuse impossible values, one line each, before anything is read or started."""

import math
import os

from sesttune.config.duration import seconds
from sesttune.config.schema import Config
from sesttune.errors import UserError

SEARCHERS = ("gp", "tpe", "qmc", "random", "grid")
"""What can propose points (`search/searcher.py`)."""
OWN_NAMES = ("mlflow.db", "mlartifacts")
"""What lies beside the runs in `output_dir` (`tracking/store.py`)."""
_NAME_BYTES = 200
"""A file name may have 255, and those made from it are longer."""


def check_values(config: Config) -> None:
    """Raise UserError naming the first key whose value cannot work, and what would."""
    data, model, training, sweep = (
        config.data.kwargs,
        config.model.kwargs,
        config.training,
        config.sweep,
    )
    at_least = {
        "training.max_steps": (training.max_steps, 1),
        "training.batch_size": (training.batch_size, 1),
        "training.val_check_interval": (training.val_check_interval, 1),
        "training.patience": (training.patience, 1),
        "training.min_delta": (training.min_delta, 0),
        "training.weight_decay": (training.weight_decay, 0),
        "training.ckpt_every_n_steps": (training.ckpt_every_n_steps, 1),
        "training.warmup_steps": (training.warmup_steps, 0),
        "training.log_every_n_steps": (training.log_every_n_steps, 1),
        "training.accumulate_grad_batches": (training.accumulate_grad_batches, 1),
        "data.kwargs.num_workers": (data.num_workers, 0),
        "model.kwargs.hidden_dim": (model.hidden_dim, 1),
        "model.kwargs.n_layers": (model.n_layers, 1),
        "model.kwargs.n_heads": (model.n_heads, 1),
        "model.kwargs.st_cell_set_len": (model.st_cell_set_len, 1),
        "model.kwargs.input_dim": (model.input_dim, 1),
        "model.kwargs.output_dim": (model.output_dim, 1),
        "model.kwargs.pert_dim": (model.pert_dim, 1),
        "sweep.num_trials": (sweep.num_trials, 1),
        "sweep.max_concurrent": (sweep.max_concurrent, 1),
        "sweep.grace_period": (sweep.grace_period, 1),
        "sweep.reduction_factor": (sweep.reduction_factor, 2),
        "sweep.finalists": (sweep.finalists, 1),
        "sweep.seeds": (sweep.seeds, 1),
    }
    for key, (number, least) in at_least.items():
        if number is not None and not least <= number < math.inf:
            raise UserError(f"{key}={number} must be at least {least}, and finite")
    bits = {  # what torch and Optuna take as seeds, and room for what is added to them
        "training.train_seed": (training.train_seed, 63),
        "training.replicate": (training.replicate, 32),
        "sweep.seed": (sweep.seed, 31),
    }
    for key, (number, width) in bits.items():
        if not 0 <= number < 2**width:
            raise UserError(f"{key}={number} must be in [0, 2^{width})")
    above_zero = {
        "training.lr": training.lr,
        "training.gradient_clip_val": training.gradient_clip_val,
        "training.checkpoint_budget_gb": training.checkpoint_budget_gb,
        "data.kwargs.target_sum": data.target_sum,
        "sweep.gpus_per_trial": sweep.gpu_share,
        "sweep.cpus_per_trial": sweep.cpus_per_trial,
        "sweep.gpu_hours": sweep.gpu_hours,
    }
    for key, value in above_zero.items():
        if value is not None and not 0 < value < math.inf:
            hint = "; write null for no clipping" if key == "training.gradient_clip_val" else ""
            raise UserError(f"{key}={value} must be a number above 0{hint}")
    one_of = {
        "data.kwargs.counts": (data.counts, ("auto", "raw", "log1p")),
        "data.kwargs.missing_features": (data.missing_features, ("refuse", "drop")),
        "data.kwargs.store_location": (data.store_location, ("auto", "device", "host")),
        "model.kwargs.loss": (model.loss, ("energy", "sinkhorn", "mse")),
        "model.kwargs.se_precision": (model.se_precision, ("auto", "fp32", "bf16")),
        "training.precision": (training.precision, ("auto", "32", "bf16")),
        "training.compile": (
            training.compile,
            ("auto", "none", "default", "reduce-overhead"),
        ),
        "training.lr_schedule": (training.lr_schedule, ("constant", "cosine", "wsd")),
        "training.device": (training.device, ("auto", "cpu", "cuda")),
        "sweep.searcher": (sweep.searcher, (None, *SEARCHERS)),
    }
    for key, (choice, allowed) in one_of.items():
        if choice not in allowed:
            names = ", ".join(str(name) for name in allowed if name is not None)
            raise UserError(f"{key}={choice} is not one of {names}")
    if isinstance(sweep.gpus_per_trial, str) and sweep.gpus_per_trial != "auto":
        raise UserError(f"sweep.gpus_per_trial={sweep.gpus_per_trial} must be a number, or auto")
    if sweep.gpu_share > 1:
        raise UserError(
            f"sweep.gpus_per_trial={sweep.gpus_per_trial}: a trial computes on one GPU, write 1 "
            "at most"
        )
    for key, steps in {"sweep.rungs": sweep.rungs, "sweep.extend_to": sweep.extend_to}.items():
        if steps is not None and (steps != sorted(set(steps)) or min(steps, default=1) < 1):
            raise UserError(f"{key}={steps} must be whole numbers above 0, each above the last")
    if sweep.rungs == []:
        raise UserError("sweep.rungs=[] has none: write null for the usual, or sweep.asha=false")
    if sweep.target_val_loss is not None and not math.isfinite(sweep.target_val_loss):
        raise UserError(f"sweep.target_val_loss={sweep.target_val_loss} must be a finite number")
    if sweep.time_budget is not None:
        seconds(sweep.time_budget, "sweep.time_budget")
    if not 0 < data.val_fraction < 1:
        raise UserError(f"data.kwargs.val_fraction={data.val_fraction} must be between 0 and 1")
    if not 0 <= model.se_min_matched <= 1:
        raise UserError(f"model.kwargs.se_min_matched={model.se_min_matched} must be in [0, 1]")
    if not 0 <= model.dropout < 1:
        raise UserError(f"model.kwargs.dropout={model.dropout} must be in [0, 1)")
    if training.ema_decay is not None and not 0 < training.ema_decay < 1:
        raise UserError(
            f"training.ema_decay={training.ema_decay} must be in (0, 1); write null for no average"
        )
    if not 0 < training.lr_decay_frac <= 1:
        raise UserError(f"training.lr_decay_frac={training.lr_decay_frac} must be in (0, 1]")
    if not 0 <= training.lr_final_frac <= 1:
        raise UserError(f"training.lr_final_frac={training.lr_final_frac} must be in [0, 1]")
    if model.hidden_dim % model.n_heads:
        raise UserError(
            f"model.kwargs.hidden_dim={model.hidden_dim} must be a multiple of "
            f"model.kwargs.n_heads={model.n_heads}"
        )
    if model.input_dim != model.output_dim and None not in (model.input_dim, model.output_dim):
        raise UserError(
            f"model.kwargs.input_dim={model.input_dim} and output_dim={model.output_dim} differ: "
            "the head predicts the genes it reads, set both to the number of genes"
        )
    if config.name in OWN_NAMES:
        raise UserError(f"name={config.name} is where MLflow's own files lie: choose another name")
    if config.name is not None and (
        not 0 < len(os.fsencode(config.name)) <= _NAME_BYTES
        or config.name.startswith((".", "-"))  # the latter would be a flag after --resume
        or not set("/\\").isdisjoint(config.name)
        or not config.name.isprintable()
    ):
        raise UserError(
            f"name={config.name!r} must be a plain folder name of at most {_NAME_BYTES} bytes"
        )
