"""Validation: the mean loss over fixed cell sets, the same for every trial of a seed."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from sesttune.config.schema import Config
from sesttune.data.loader import Batch
from sesttune.data.sampling import fixed_sets, read_batch
from sesttune.data.trial_data import TrialData
from sesttune.model.losses import loss_function

SETS_PER_BATCH = 8


def validation_batches(config: Config, data: TrialData, split: str = "val") -> Iterator[Batch]:
    """Batches of one fixed set per condition of `split`."""
    sets = fixed_sets(data, split, config.model.kwargs.st_cell_set_len, config.training.train_seed)
    for start in range(0, len(sets), SETS_PER_BATCH):
        yield read_batch(data, sets.part(start, start + SETS_PER_BATCH))


def mean_loss(set_losses: Callable[[Batch], Tensor], batches: Iterator[Batch]) -> float:
    """Mean of `set_losses` over all sets; one transfer from the device at the end."""
    with torch.inference_mode():
        losses = [set_losses(batch) for batch in batches]
        return float(torch.cat(losses).mean())


def baselines(config: Config, data: TrialData) -> dict[str, float]:
    """Validation loss of predictions that learn nothing of the perturbation.

    `controls`: the paired control cells as they are; `mean_of_controls`: their mean, for
    every cell of a set. A model is worth something where it is below both.
    """
    loss = loss_function(config.model.kwargs.loss)
    length = config.model.kwargs.st_cell_set_len
    sets = fixed_sets(data, "val", length, config.training.train_seed)
    found: dict[str, list[Tensor]] = {"controls": [], "mean_of_controls": []}
    for number in range(len(sets)):
        rows = sets.part(number, number + 1)
        target = read_batch(data, rows)["target"]
        controls = torch.from_numpy(data.store.dense(rows.control_rows.ravel()))[None]
        found["controls"].append(loss(controls, target))
        mean = controls.mean(1, keepdim=True).expand_as(controls)
        found["mean_of_controls"].append(loss(mean, target))
    return {name: float(torch.cat(losses).mean()) for name, losses in found.items()}
