"""The optimizer: which settings reach it, and which stay when a training goes on."""

import torch

from sesttune.config.schema import Config, TrainingConfig
from sesttune.model.st_head import HeadConfig, STHead
from sesttune.training.module import TrialModule
from sesttune.training.saving import restore_optimizer


def optimizer(**settings: float) -> torch.optim.Optimizer:
    """After one step, so that it has moments."""
    module = TrialModule(
        Config(training=TrainingConfig(**settings)),  # type: ignore[arg-type]
        STHead(HeadConfig(6, 8, 10, 16, 1, 2)),
    )
    made = module.configure_optimizers()
    for parameter in module.head.parameters():
        parameter.grad = torch.ones_like(parameter)
    made.step()
    return made


def test_learning_rate_and_decay_are_those_of_the_settings() -> None:
    [group] = optimizer(lr=3e-4, weight_decay=0.02).param_groups
    assert (group["lr"], group["weight_decay"]) == (3e-4, 0.02)
    assert optimizer().param_groups[0]["weight_decay"] == 0  # Adam, where torch would decay


def test_what_goes_on_has_the_moments_of_then_and_the_settings_of_now() -> None:
    then, now = optimizer(weight_decay=0.02), optimizer(lr=1e-5, weight_decay=0.1)
    rng = torch.get_rng_state()
    for moments in (state := then.state_dict())["state"].values():
        moments["exp_avg"].fill_(7)
    torch.rand(3)
    restore_optimizer(now, {"optimizer": state, "rng": {"cpu": rng, "cuda": None}})
    [group] = now.param_groups
    assert (group["lr"], group["weight_decay"]) == (1e-5, 0.1)
    assert all((now.state[p]["exp_avg"] == 7).all() for p in group["params"])
    assert torch.equal(torch.get_rng_state(), rng)
