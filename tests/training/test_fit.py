"""What a trial is made of by its settings: the draws of its seed, its device, its head."""

from pathlib import Path

import pytest
import torch
from helpers.tiny_data import MeanEncoder, TinyData, write_tiny

from sesttune.config.load import load_config
from sesttune.config.schema import TrainingConfig
from sesttune.data.readers import Batch, HostReader
from sesttune.data.sampling import CellSets
from sesttune.data.trial_data import TrialData, prepare
from sesttune.errors import UserError
from sesttune.model.st_head import HeadConfig
from sesttune.training.head_size import head_config
from sesttune.training.records import read_metrics
from sesttune.training.trainer import pick_device
from sesttune.training.trial import run_trial


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyData:
    return write_tiny(tmp_path_factory.mktemp("tiny"))


def test_a_replicate_has_other_weights_and_cell_sets_and_the_same_validation(
    tiny: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the finalists' repeats would be one training, and no noise would ever be seen."""
    prepared, seen = HostReader.prepare, list[list[int]]()

    def watched(self: HostReader, sets: CellSets) -> Batch:
        seen.append(sets.pert_rows.ravel().tolist())
        return prepared(self, sets)

    monkeypatch.setattr(HostReader, "prepare", watched)
    losses, validated, trained = [], [], []
    for seed, replicate in ((1, 0), (1, 1), (2, 0)):
        more = {"training.train_seed": seed, "training.replicate": replicate}
        more |= {"training.max_steps": 1, "training.batch_size": 1}
        config = load_config(base=tiny.settings(**more))
        folder = tmp_path / f"{seed}-{replicate}"
        run_trial(config, prepare(config, MeanEncoder), folder)
        losses.append(read_metrics(folder)[0]["val_loss"])
        # The first batch is read ahead of the validation, which takes a set a pass, too.
        trained.append(seen[0])
        validated.append(seen[1:3])
        assert seen[-2:] == seen[1:3]
        seen.clear()
    assert len(set(losses)) == 3
    assert len({tuple(rows) for rows in trained}) == 3
    assert validated[0] == validated[1] != validated[2]


def test_a_gpu_that_is_asked_for_and_not_there_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device(TrainingConfig()) == torch.device("cpu")
    with pytest.raises(UserError, match="training.device=cuda, but there is no CUDA device; set"):
        pick_device(TrainingConfig(device="cuda"))


def test_the_head_has_the_sizes_of_the_settings_and_the_data(tiny: TinyData) -> None:
    sizes = {"hidden_dim": 24, "n_layers": 3, "n_heads": 6, "dropout": 0.25}
    settings = {f"model.kwargs.{name}": value for name, value in sizes.items()}
    config = load_config(base=tiny.settings(**settings))
    data = TrialData(prepare(config, MeanEncoder))
    assert head_config(config, data) == HeadConfig(6, 8, 60, 24, 3, 6, 0.25)
