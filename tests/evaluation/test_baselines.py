from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiny_data import MeanEncoder, write_tiny

from sesttune.config.load import load_config
from sesttune.data.sampling import fixed_sets
from sesttune.data.trial_data import TrialData, prepare
from sesttune.evaluation.baselines import baselines
from sesttune.model.losses import energy_distance


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TrialData:
    config = load_config(base=write_tiny(tmp_path_factory.mktemp("tiny")).settings())
    return TrialData(prepare(config, MeanEncoder))


def cells(data: TrialData, cell_type: str, pert: str) -> np.ndarray:
    names = data.store.names
    here = data.store.cell_type == names["cell_type"].index(cell_type)
    return data.store.dense(np.flatnonzero(here & (data.store.pert == names["pert"].index(pert))))


def test_baselines_are_measured_on_the_validation_sets(data: TrialData, tmp_path: Path) -> None:
    found = baselines(load_config(base=write_tiny(tmp_path).settings()), data)
    assert set(found) == {"controls", "mean_of_controls", "perturbation_mean"}
    # The tiny cells have no perturbation effect: real controls are the better prediction.
    assert 0 < found["controls"] < found["mean_of_controls"]
    # Validation is P0 and P1 of beta; of these, training has those of alpha alone.
    sets, losses = fixed_sets(data, "val", 8, 42), []
    for rows, code in zip(sets.pert_rows, sets.pert_codes, strict=True):
        name = data.store.names["pert"][code]
        assert name in ("P0", "P1")
        change = cells(data, "alpha", name).mean(0) - cells(data, "alpha", "non-targeting").mean(0)
        predicted = torch.from_numpy(cells(data, "beta", "non-targeting").mean(0) + change)
        target = torch.from_numpy(data.store.dense(rows))[None]
        losses.append(float(energy_distance(predicted[None, None].expand_as(target), target)))
    assert found["perturbation_mean"] == pytest.approx(np.mean(losses), rel=1e-4)
