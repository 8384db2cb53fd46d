from pathlib import Path

import pytest
import torch
from helpers.promoted import FEATURES, promoted

from sesttune import export
from sesttune.command import run


def test_a_model_becomes_a_folder_and_the_command_that_runs_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    promoted(tmp_path / "head", **{"data.kwargs.pert_col": "gene"})
    call = ["--model", str(tmp_path / "head"), "--state", str(tmp_path / "new" / "state")]
    assert run(export.main, call) == 0
    shown = capsys.readouterr().out
    assert "its input is the embedding of tiny encoder" in shown
    assert f"state tx infer --model-dir {tmp_path}/new/state" in shown
    assert "--embed-key X_state --pert-col gene" in shown
    vectors = torch.load(tmp_path / "new" / "state" / "pert_onehot_map.pt", weights_only=True)
    assert set(vectors) == {*FEATURES, "non-targeting"}
    assert run(export.main, call) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "state exists already: name a folder that does not" in line
