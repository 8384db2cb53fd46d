"""Write and restore a trial's checkpoints: best (weights), last and periodic (training state)."""

from pathlib import Path
from typing import Any

import torch

from sesttune.config.load import to_dict
from sesttune.config.schema import Config
from sesttune.data.trial_data import TrialData
from sesttune.errors import UserError
from sesttune.model.head_checkpoint import load_state, read_checkpoint, save_checkpoint
from sesttune.training.module import TrialModule
from sesttune.training.progress import Progress
from sesttune.training.records import BEST, LAST


class Saver:
    """The checkpoint folder of one trial.

    The training state is a dict of plain values and tensors: step, sets drawn, weights,
    optimizer, RNG, patience, the running loss and the last report line.
    """

    def __init__(
        self, folder: Path, config: Config, data: TrialData, module: TrialModule, progress: Progress
    ) -> None:
        self.folder = folder
        self._keep = config.training.keep_checkpoints
        self._about = {"config": to_dict(config), "encoder": dict(data.encoder)}
        self._module, self._progress = module, progress
        folder.mkdir(parents=True, exist_ok=True)

    def save_best(self, step: int, val_loss: float) -> None:
        """Weights alone, what is promoted."""
        content = {"step": step, "val_loss": val_loss, "model": self._weights(), **self._about}
        save_checkpoint(self.folder / BEST, content)

    def save_last(self, state: dict[str, Any]) -> None:
        save_checkpoint(self.folder / LAST, state)

    def save_periodic(self, state: dict[str, Any]) -> None:
        """`step=N.ckpt`, of which only the newest `keep_checkpoints` stay."""
        if self._keep == 0:
            return
        save_checkpoint(self.folder / f"step={state['step']}.ckpt", state)
        saved = sorted(self.folder.glob("step=*.ckpt"), key=lambda p: int(p.stem[5:]))
        for old in saved[: -self._keep]:
            old.unlink()

    def training_state(
        self, step: int, sets_drawn: int, optimizer: torch.optim.Optimizer, report: dict[str, float]
    ) -> dict[str, Any]:
        cuda = torch.cuda.get_rng_state() if self._module.device.type == "cuda" else None
        return {
            "step": step,
            "sets_drawn": sets_drawn,
            "model": self._weights(),
            "optimizer": optimizer.state_dict(),
            "rng": {"cpu": torch.get_rng_state(), "cuda": cuda},
            "progress": self._progress.state_dict(),
            "loss": [float(self._module.loss_sum), self._module.loss_count],
            "report": report,
            **self._about,
        }

    def _weights(self) -> dict[str, torch.Tensor]:
        return self._module.head.state_dict()


def read_training_state(path: Path) -> dict[str, Any]:
    """A checkpoint a training can continue from; raises UserError where it cannot."""
    state = read_checkpoint(path)
    if "optimizer" not in state:
        raise UserError(
            f"model.checkpoint: {path} holds weights alone; continue from last.ckpt or "
            "step=N.ckpt of the same folder"
        )
    return state


def restore_weights(module: TrialModule, state: dict[str, Any], path: Path) -> None:
    """Weights and running loss; the optimizer comes later, when Lightning has made it."""
    load_state(module.head, state["model"], path)
    module.loss_sum.fill_(state["loss"][0])
    module.loss_count = int(state["loss"][1])


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Moments from the checkpoint; learning rate and decay stay those of this run's settings."""
    wanted = [{key: g[key] for key in ("lr", "weight_decay")} for g in optimizer.param_groups]
    optimizer.load_state_dict(state["optimizer"])
    for group, settings in zip(optimizer.param_groups, wanted, strict=True):
        group.update(settings)
    torch.set_rng_state(state["rng"]["cpu"])
    if state["rng"]["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["rng"]["cuda"])
