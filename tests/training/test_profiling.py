import gzip
import json
import time
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


@pytest.mark.slow
def test_what_a_trial_does_between_two_steps_is_no_part_of_a_step(tmp_path: Path) -> None:
    tiny = write_tiny(tmp_path)
    short = {"training.profile": True, "training.val_check_interval": 1, "training.max_steps": 10}
    config = load_config(base=tiny.settings(**short))
    reported: list[float] = []

    def report(line: dict[str, float]) -> None:
        reported.append(line["step"])
        time.sleep(1)

    run_trial(config, prepare(config, MeanEncoder), tmp_path / "trial", report)
    breakdown = json.loads((tmp_path / "trial" / "profile" / "breakdown.json").read_text())
    assert reported == list(range(11))
    assert breakdown["optimizer_ms"] > 0
    assert breakdown["total_ms"] < 800, "1,000 and more with a report in each"


def test_no_profile_without_a_request(tmp_path: Path) -> None:
    tiny = write_tiny(tmp_path)
    config = load_config(base=tiny.settings())
    run_trial(config, prepare(config, MeanEncoder), tmp_path / "trial")
    assert not (tmp_path / "trial" / "profile").exists()
