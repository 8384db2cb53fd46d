"""Validation: the mean loss over fixed cell sets, the same for every trial of a seed."""

import torch
from torch import Tensor

from sesttune.config.schema import Config
from sesttune.data.readers import Reader
from sesttune.data.sampling import fixed_sets
from sesttune.data.trial_data import TrialData
from sesttune.training.module import TrialModule

SETS_PER_BATCH = 8


class Validation:
    """One fixed set per validation condition, read anew each time: kept dense they would fill
    10 MB a set."""

    def __init__(self, config: Config, data: TrialData, reader: Reader, at_once: int) -> None:
        self.data, self._reader = data, reader
        self._at_once = min(at_once, SETS_PER_BATCH)
        length = config.model.kwargs.st_cell_set_len
        self._sets = fixed_sets(data, "val", length, config.training.train_seed)

    def loss(self, module: TrialModule) -> float:
        """Mean loss over all sets, dropout off; one transfer from the device at the end."""
        losses: list[Tensor] = []
        module.eval()
        with torch.inference_mode():
            for start in range(0, len(self._sets), self._at_once):
                sets = self._sets.part(start, start + self._at_once)
                losses.append(module.set_losses(self._reader.finish(self._reader.prepare(sets))))
            mean = float(torch.cat(losses).mean())
        module.train()
        return mean
