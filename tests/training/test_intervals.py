"""What a report line says of its interval does not depend on how long that is."""

import time
from pathlib import Path

import pytest
import torch
from helpers.tiny_data import MeanEncoder, write_tiny

from sesttune.config.load import load_config
from sesttune.data.trial_data import prepare
from sesttune.training.module import TrialModule
from sesttune.training.records import read_metrics
from sesttune.training.trial import run_trial
from sesttune.training.validation import Validation


def test_the_norm_is_of_the_last_step_and_the_speed_without_the_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny, found = write_tiny(tmp_path), {}
    loss, pauses = Validation.loss, [0.0, 0.5, 0.0]  # at steps 8, 4 and 0

    def slow(self: Validation, module: TrialModule) -> float:
        time.sleep(pauses.pop())
        return loss(self, module)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for every in (1, 4):
        more = {"training.val_check_interval": every, "training.max_steps": 8}
        config = load_config(base=tiny.settings(**more))
        run_trial(config, prepare(config, MeanEncoder), tmp_path / str(every))
        found[every] = {line["step"]: line for line in read_metrics(tmp_path / str(every))}
        monkeypatch.setattr(Validation, "loss", slow)
    torch.set_num_threads(threads)
    for step in (4, 8):
        norms = [lines[step]["grad_norm"] for lines in found.values()]
        assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    last = found[4][8]
    assert last["steps_per_s"] > 8 / 0.5  # all of them, within the validation at step 4
