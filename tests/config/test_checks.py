"""Every bound and choice of the settings."""

import pytest

from sesttune.config.load import load_config
from sesttune.errors import UserError


@pytest.mark.parametrize(
    "override",
    [
        "sweep.extend_to=[]",
        "sweep.gpus_per_trial=1",
        "model.kwargs.se_min_matched=0",
        "model.kwargs.se_min_matched=1",
        "model.kwargs.dropout=0",
        "training.lr_decay_frac=1",
        "training.lr_final_frac=0",
        "training.lr_final_frac=1",
        f"sweep.seed={2**31 - 1}",
        f"name={'a' * 200}",
    ],
)
def test_the_ends_of_what_is_allowed_are_allowed(override: str) -> None:
    load_config([override])


LEAST = {
    "training.max_steps": 1,
    "training.batch_size": 1,
    "training.val_check_interval": 1,
    "training.patience": 1,
    "training.min_delta": 0,
    "training.weight_decay": 0,
    "training.ckpt_every_n_steps": 1,
    "training.warmup_steps": 0,
    "training.log_every_n_steps": 1,
    "training.accumulate_grad_batches": 1,
    "data.kwargs.num_workers": 0,
    "model.kwargs.hidden_dim": 1,
    "model.kwargs.n_layers": 1,
    "model.kwargs.n_heads": 1,
    "model.kwargs.st_cell_set_len": 1,
    "model.kwargs.input_dim": 1,
    "model.kwargs.output_dim": 1,
    "model.kwargs.pert_dim": 1,
    "sweep.num_trials": 1,
    "sweep.max_concurrent": 1,
    "sweep.grace_period": 1,
    "sweep.reduction_factor": 2,
    "sweep.finalists": 1,
    "sweep.seeds": 1,
    "training.train_seed": 0,
    "training.replicate": 0,
    "sweep.seed": 0,
}


def test_numbers_are_taken_down_to_their_least_and_refused_below() -> None:
    load_config([f"{key}={least}" for key, least in LEAST.items()])
    for key, least in LEAST.items():
        with pytest.raises(UserError, match=rf"^{key}=-?\d"):
            load_config([f"{key}={least - 1}"])


@pytest.mark.parametrize(
    "key",
    [
        "training.gradient_clip_val",
        "training.checkpoint_budget_gb",
        "data.kwargs.target_sum",
        "sweep.gpus_per_trial",
        "sweep.cpus_per_trial",
        "sweep.gpu_hours",
    ],
)
def test_amounts_are_numbers_above_zero(key: str) -> None:
    for none in ("0", ".inf"):
        with pytest.raises(UserError, match=f"^{key}=.* must be a number above 0"):
            load_config([f"{key}={none}"])


@pytest.mark.parametrize(
    ("key", "choices"),
    [
        ("data.kwargs.counts", "auto raw log1p"),
        ("data.kwargs.missing_features", "refuse drop"),
        ("data.kwargs.store_location", "auto device host"),
        ("model.kwargs.loss", "energy sinkhorn mse"),
        ("model.kwargs.se_precision", "auto fp32 bf16"),
        ("training.precision", "auto 32 bf16"),
        ("training.compile", "auto none default reduce-overhead"),
        ("training.lr_schedule", "constant cosine wsd"),
        ("training.device", "auto cpu cuda"),
        ("sweep.searcher", "null gp tpe qmc random grid"),
    ],
)
def test_a_choice_is_one_of_those_that_are_documented(key: str, choices: str) -> None:
    for choice in choices.split():
        load_config([f"{key}={choice}"])
    with pytest.raises(UserError, match=f"^{key}=other is not one of"):
        load_config([f"{key}=other"])
