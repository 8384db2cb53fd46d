"""The LightningModule: the head, its loss and its optimizer. No metric leaves the device here."""

import copy

import lightning
import torch
from torch import Tensor

from sesttune.config.schema import Config
from sesttune.data.readers import Batch
from sesttune.model.losses import loss_function
from sesttune.model.st_head import STHead
from sesttune.training.compiled import predictor


class TrialModule(lightning.LightningModule):
    """One optimizer step on a batch of cell sets; sums its losses on the device.

    `predict` is the head as training calls it, `accumulate` times a step.
    `average` is None, or a second head that holds the average of the weights over steps
    (Polyak and Juditsky, 1992, exponentially weighted).
    """

    loss_sum: Tensor
    grad_norm: Tensor

    def __init__(self, config: Config, head: STHead, accumulate: int = 1) -> None:
        super().__init__()
        self.head = head
        self.predict = predictor(head, config.training.compile, accumulate)
        self._settings = config.training
        self._loss = loss_function(config.model.kwargs.loss)
        self.register_buffer("loss_sum", torch.zeros(()), persistent=False)
        self.register_buffer("grad_norm", torch.full((), torch.nan), persistent=False)
        self.loss_count = 0
        self.measure_grad_norm = False
        self.average: STHead | None = None
        if config.training.ema_decay is not None:
            self.average = copy.deepcopy(head).requires_grad_(False)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        predicted = self.predict(batch["control_emb"], batch["pert_emb"])
        loss = self._loss(predicted, batch["target"]).mean()
        self.loss_sum += loss.detach()
        self.loss_count += 1
        return loss

    def set_losses(self, batch: Batch) -> Tensor:
        """Loss of each set, [sets], of the model that is kept: the average where there is one."""
        head = self.head if self.average is None else self.average
        return self._loss(head(batch["control_emb"], batch["pert_emb"]), batch["target"])

    def update_average(self, step: int) -> None:
        """Take in the weights after optimizer step `step`.

        The decay rises to `ema_decay`, so that the random first weights are soon forgotten.
        """
        if self.average is not None and self._settings.ema_decay is not None:
            decay = min(self._settings.ema_decay, (1 + step) / (10 + step))
            with torch.no_grad():
                torch._foreach_lerp_(
                    list(self.average.parameters()), list(self.head.parameters()), 1 - decay
                )

    def optimizer_zero_grad(self, *_: object) -> None:
        """Nothing: `TrialCallback` has dropped the gradients before the first pass of the step."""

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.measure_grad_norm:
            grads = [p.grad for p in self.head.parameters() if p.grad is not None]
            self.grad_norm = torch.nn.utils.get_total_norm(grads).detach()

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        # Lightning refuses to clip for a fused optimizer under any autocast, for the sake of the
        # float16 scaler; bfloat16 has none.
        if gradient_clip_val is not None:
            torch.nn.utils.clip_grad_norm_(self.head.parameters(), gradient_clip_val)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        # With weight_decay 0 this is Adam; with more, the decay is decoupled (AdamW).
        return torch.optim.AdamW(
            self.head.parameters(),
            lr=self._settings.lr,
            weight_decay=self._settings.weight_decay,
            fused=True,
        )
