"""What a worker that is used again keeps of a trial: nothing."""

import gc
from pathlib import Path

import pytest
from helpers.tiny_data import MeanEncoder, TinyData, write_tiny

from sesttune.config.load import load_config, to_dict
from sesttune.data.trial_data import prepare
from sesttune.search.worker import work
from sesttune.training.module import TrialModule
from sesttune.training.records import TrialRecord, read_trial, write_trial


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyData:
    return write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize("kind", [SystemExit, RuntimeError])
def test_a_trial_that_is_stopped_leaves_no_tensor(
    tiny: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[BaseException]
) -> None:
    """Ray stops one by a SystemExit where it reports; nobody looks for garbage after `work`."""

    def report(line: dict[str, float]) -> None:
        if line["step"] == 10:
            raise kind(0)

    monkeypatch.setattr("ray.tune.report", report)
    config = load_config(base=tiny.settings())
    folder = tmp_path / "001"
    write_trial(TrialRecord("001", folder))
    settings = {
        "folder": str(folder),
        "manifest": str(prepare(config, MeanEncoder)),
        "config": to_dict(config),
        "max_steps": 20,
        "threads": 1,
        "handed_out": 0.0,
    }
    if kind is SystemExit:
        with pytest.raises(SystemExit) as ended:
            work(settings)
        assert ended.value.code == 0
    else:
        work(settings)
        record = read_trial(folder)
        assert record is not None
        assert record.status == "failed"
    assert not [x for x in gc.get_objects() if type(x) is TrialModule]
