"""The Lightning trainer of a trial: which device, which precision, and nothing on its own.

Checkpoints, validation and reading ahead are the trial's (`callbacks.py`), so everything
Lightning would do beside the loop is off.
"""

import logging
import warnings
from pathlib import Path

import lightning
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment

from sesttune.config.schema import TrainingConfig
from sesttune.errors import UserError
from sesttune.training.micro_batch import MicroBatch


def pick_device(training: TrainingConfig) -> torch.device:
    """Where the trial computes. Raises UserError where a GPU is asked for and there is none."""
    if training.device == "cpu" or (training.device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError(
            "training.device=cuda, but there is no CUDA device; set training.device=cpu"
        )
    return torch.device("cuda", torch.cuda.current_device())


def make_trainer(
    training: TrainingConfig,
    device: torch.device,
    micro: MicroBatch,
    steps: int,
    callbacks: list[lightning.Callback],
    folder: Path,
) -> lightning.Trainer:
    """A trainer for `steps` optimizer steps of the trial in `folder`."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Reading ahead and validation are done here, so Lightning's advice on them does not apply.
    warnings.filterwarnings("ignore", module="lightning")
    on_gpu = device.type == "cuda"
    has_bf16 = on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    bf16 = training.precision == "bf16" or (training.precision == "auto" and has_bf16)
    return lightning.Trainer(
        accelerator="gpu" if on_gpu else "cpu",
        devices=1,
        precision="bf16-mixed" if bf16 else "32-true",
        max_steps=steps,
        max_epochs=-1,
        min_epochs=0,
        accumulate_grad_batches=micro.accumulate,
        gradient_clip_val=training.gradient_clip_val,
        callbacks=callbacks,
        # Else Lightning, inside a Slurm job, takes its tasks for a world of its own, and goes on
        # from an hpc_ckpt of any other training that lies in the working directory.
        plugins=[LightningEnvironment()],
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
