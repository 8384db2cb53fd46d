import gzip
import json
from pathlib import Path

import pytest
from helpers.tiny_data import MeanEncoder, write_tiny

from sesttune.config.load import load_config
from sesttune.data.trial_data import prepare
from sesttune.training.profiling import PARTS, STEPS
from sesttune.training.records import read_trial
from sesttune.training.trial import run_trial


def test_a_profile_is_left_on_request(tmp_path: Path) -> None:
    tiny = write_tiny(tmp_path)
    config = load_config(base=tiny.settings(**{"training.profile": True}))
    folder = tmp_path / "trial"
    run_trial(config, prepare(config, MeanEncoder), folder)
    breakdown = json.loads((folder / "profile" / "breakdown.json").read_text())
    assert breakdown["passes"] == STEPS
    parts = [breakdown[f"{part}_ms"] for part in PARTS]
    assert all(part > 0 for part in parts)
    assert sum(parts) == pytest.approx(breakdown["total_ms"])
    trace = json.loads(gzip.decompress((folder / "profile" / "trace.json.gz").read_bytes()))
    called = {event.get("name") for event in trace["traceEvents"]}
    assert "aten::linear" in called
    record = read_trial(folder)
    assert record is not None
    assert record.facts["step_time"].endswith("%")


def test_no_profile_without_a_request(tmp_path: Path) -> None:
    tiny = write_tiny(tmp_path)
    config = load_config(base=tiny.settings())
    run_trial(config, prepare(config, MeanEncoder), tmp_path / "trial")
    assert not (tmp_path / "trial" / "profile").exists()
