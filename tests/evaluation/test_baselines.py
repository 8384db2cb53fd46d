import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiny_data import FEATURE_DIM, MeanEncoder, write_cells, write_tiny

from sesttune.config.load import load_config
from sesttune.data.sampling import fixed_sets
from sesttune.data.trial_data import TrialData, prepare
from sesttune.evaluation.baselines import baseline_predictors, baselines
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


def test_means_of_many_perturbations_are_not_all_kept(tmp_path: Path) -> None:
    names, genes = [f"P{i}" for i in range(400)], [f"G{i}" for i in range(1_000)]
    labels = ["non-targeting"] * 8 + names
    write_cells(tmp_path / "a.h5ad", np.random.default_rng(0), labels, "alpha", genes)
    split = '[datasets]\na = "a.h5ad"\n[training]\na = "train"\n[fewshot."a.alpha"]\nval = ["P7"]\n'
    settings = write_tiny(tmp_path, split=split).settings()
    settings |= {"model.kwargs.input_dim": None, "model.kwargs.output_dim": None}
    torch.save({name: torch.ones(FEATURE_DIM) for name in names}, tmp_path / "features.pt")
    data = TrialData(prepare(load_config(base=settings), MeanEncoder))
    told: list[tuple[str, int, int]] = []
    tracemalloc.start()
    predict = baseline_predictors(data, 42, lambda *step: told.append(step))["perturbation_mean"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.5 * 4 * len(names) * len(genes)
    assert told[-1] == ("means of conditions", 399, 399)
    # Of a perturbation that training lacks: the controls and the mean change of all it has.
    controls = cells(data, "alpha", "non-targeting").mean(0)
    changes = [cells(data, "alpha", name)[0] - controls for name in names if name != "P7"]
    sets = fixed_sets(data, "val", 8, 42)
    assert np.allclose(predict(sets)[0, 0], controls + np.mean(changes, 0), atol=1e-5)
