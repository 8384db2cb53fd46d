from pathlib import Path

import pytest

from sesttune.errors import UserError
from sesttune.training.records import (
    TrialRecord,
    append_metrics,
    cut_metrics,
    list_trials,
    read_metrics,
    read_trial,
    trial_folder,
    update_trial,
    write_trial,
)


def test_records_go_out_and_in(tmp_path: Path) -> None:
    for name in ("007", "002", "005", "001", "003", "006", "004"):
        write_trial(TrialRecord(name, trial_folder(tmp_path, name), {"training.lr": 1e-4}))
    first, second, *others = list_trials(tmp_path)
    assert [record.id for record in others] == ["003", "004", "005", "006", "007"]
    assert (first.id, second.id, first.params) == ("001", "002", {"training.lr": 1e-4})
    update_trial(first.folder, "stopped", "patience")
    changed = read_trial(first.folder)
    assert changed is not None
    assert (changed.status, changed.stop_reason, changed.params) == (
        "stopped",
        "patience",
        {"training.lr": 1e-4},
    )
    assert changed.finished
    assert not second.finished
    assert read_trial(tmp_path / "none") is None


def test_trials_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for name in ("1000", "999", "100", "101"):
        write_trial(TrialRecord(name, trial_folder(tmp_path, name)))
    assert [record.id for record in list_trials(tmp_path)] == ["100", "101", "999", "1000"]


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    for step in (0, 5, 10):
        append_metrics(tmp_path, {"step": step, "val_loss": float("nan")})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 15, "val')
    assert [line["step"] for line in read_metrics(tmp_path)] == [0, 5, 10]
    assert [line["step"] for line in cut_metrics(tmp_path, 5)] == [0, 5]
    append_metrics(tmp_path, {"step": 10})
    assert [line["step"] for line in read_metrics(tmp_path)] == [0, 5, 10]


@pytest.mark.parametrize("content", ["", "[1]", '{"id": "001", "colour": 3}'])
def test_a_damaged_record_is_named(tmp_path: Path, content: str) -> None:
    write_trial(TrialRecord("001", tmp_path))
    (tmp_path / "trial.json").write_text(content)
    with pytest.raises(UserError, match=f"{tmp_path}/trial.json is"):
        read_trial(tmp_path)


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    for step in (0, 5):
        append_metrics(tmp_path, {"step": step})
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    for damaged in (b"\0\xff\0", b"3"):
        (tmp_path / "metrics.jsonl").write_bytes(whole + damaged + b"\n" + whole)
        with pytest.raises(UserError, match=r"metrics.jsonl: line 3 is damaged"):
            read_metrics(tmp_path)
