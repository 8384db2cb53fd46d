"""Promotion through the command, over a real MLflow store: the tests run in their order."""

import json
import os
import shutil
import socket
from pathlib import Path

import pytest
from helpers.trained_runs import GOOD, POOR, run_training, write_trained
from mlflow import MlflowClient

from sesttune import evaluate, promote
from sesttune.command import run as run_command
from sesttune.tracking.aliases import move_alias, serving, versions
from sesttune.tracking.registry import fetch_model
from sesttune.tracking.spool import read_cursor
from sesttune.training.records import read_metrics


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_trained(tmp_path_factory.mktemp("trained"))


@pytest.fixture
def uri(outputs: Path) -> str:
    return f"sqlite:///{outputs}/mlflow.db"


def call(outputs: Path, *arguments: str) -> int:
    return run_command(promote.main, [*arguments, "--output-dir", str(outputs)])


def test_the_first_version_becomes_champion_and_says_how_it_was_made(
    outputs: Path,
    uri: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = "a kill before it would leave a version that does not say what it is"
    monkeypatch.setattr(MlflowClient, "set_model_version_tag", lambda *_: pytest.fail(told))
    assert call(outputs, "--list") == 0
    assert call(outputs, "--sweep", POOR) == 0
    shown = capsys.readouterr().out
    assert "no version of se-st is registered yet" in shown
    assert "poor/001 at step 1 on test: 7 conditions, 70 perturbed cells" in shown
    assert "perturbation_mean" in shown
    assert "registered se-st version 1 as 'champion'" in shown
    assert f"--output OUT.h5ad --output-dir {outputs}\n" in shown
    champion = serving(uri, "champion")
    assert champion is not None
    about = json.loads((outputs / POOR / "data.json").read_text())
    assert champion.tags["sweep"] == "poor"
    assert champion.tags["trial"] == "001"
    assert champion.tags["step"] == "1"
    assert champion.tags["data_fingerprint"] == about["fingerprint"]
    assert champion.tags["held_out"] == "test"
    assert champion.tags["against"] == "no champion before it"
    assert "forced" not in champion.tags
    tracking = json.loads((outputs / POOR / "tracking.json").read_text())
    run = MlflowClient(uri).get_run(tracking["trials"]["001"]["run"])
    assert run.data.metrics["test_loss"] == pytest.approx(float(champion.tags["test_loss"]), 1e-4)
    assert {"test_mae", "test_pearson_delta"} <= set(run.data.metrics)
    last = read_metrics(outputs / POOR / "trials" / "001")[-1]
    assert (run.info.status, run.info.end_time) == ("FINISHED", round(1000 * last["time"]))


def test_a_better_one_takes_over_and_the_former_is_kept(
    outputs: Path, uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(outputs, "--sweep", GOOD) == 0
    shown = capsys.readouterr().out
    assert "against champion (version 1): better beyond noise (loss" in shown
    champion, former = serving(uri, "champion"), serving(uri, "previous")
    assert champion is not None
    assert former is not None
    assert (champion.version, former.version) == ("2", "1")
    assert float(champion.tags["test_loss"]) < float(former.tags["test_loss"])
    assert "better beyond noise" in champion.tags["against"]


def test_one_that_is_not_better_is_refused_with_the_table(
    outputs: Path, uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(outputs, "--sweep", POOR) == 1
    shown = capsys.readouterr().out
    assert [line.split()[0] for line in shown.splitlines() if "candidate" in line] == ["candidate"]
    assert "against champion (version 2): worse beyond noise" in shown
    assert 'not promoted; --force "reason"' in shown
    assert len(versions(uri)) == 2
    assert serving(uri, "champion").version == "2"  # type: ignore[union-attr]


def test_what_serves_already_is_not_registered_again(
    outputs: Path, uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(outputs, "--sweep", GOOD) == 2
    assert "good/001 at step 60 is the champion already (version 2)" in capsys.readouterr().err


def test_force_promotes_and_records_why_and_rollback_undoes_it(
    outputs: Path, uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(outputs, "--sweep", POOR, "--force", "the good one saw the test cells") == 0
    forced = serving(uri, "champion")
    assert forced is not None
    assert forced.version == "3"
    assert forced.tags["forced"] == "the good one saw the test cells"
    assert "worse beyond noise" in forced.tags["against"]
    assert call(outputs, "--rollback") == 0
    assert "version 2 is 'champion' again; version 3 is 'previous'" in capsys.readouterr().out
    aliases = {item.version: item.aliases for item in versions(uri)}
    assert aliases == {"3": ("previous",), "2": ("champion",), "1": ()}


def test_list_shows_every_version(
    outputs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert call(outputs, "--list") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    listed = {row[0]: row[1:] for row in rows if row and row[0].isdigit()}
    assert list(listed) == ["3", "2", "1"]
    assert listed["3"][0] == "previous"
    assert listed["2"][0] == "champion"
    assert listed["2"][2:4] == [f"{GOOD}/001", "60"]
    assert listed["1"][1:3] == [f"{POOR}/001", "1"]  # no alias
    assert listed["1"][4:6] != ["-", "(test)"]


def test_an_earlier_checkpoint_can_be_promoted_under_another_alias(
    outputs: Path, uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--step", "20", "--alias", "early", "--export-state", str(outputs / "state"))
    assert call(outputs, "--sweep", GOOD, *more) == 0
    assert (outputs / "state" / "checkpoints" / "final.ckpt").is_file()
    assert f"state tx infer --model-dir {outputs}/state" in capsys.readouterr().out
    early = serving(uri, "early")
    assert early is not None
    assert early.tags["step"] == "20"
    assert call(outputs, "--sweep", GOOD, "--step", "33") == 2
    assert "kept checkpoints of steps 20, 40, 60" in capsys.readouterr().err
    assert call(outputs, "--rollback", "--alias", "early") == 2
    assert "is the first 'early': nothing to roll back to" in capsys.readouterr().err


def test_one_that_was_compared_with_a_former_champion_does_not_take_over(
    outputs: Path, uri: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    judge, before = promote._judge, len(versions(uri))

    def slowly(*arguments: object) -> object:
        move_alias(uri, "race", "1")  # by another process
        return judge(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(promote, "_judge", slowly)
    assert call(outputs, "--sweep", GOOD, "--alias", "race") == 2
    assert "se-st version 1 became 'race' meanwhile" in capsys.readouterr().err
    serves = serving(uri, "race")
    assert serves is not None
    assert (serves.version, len(versions(uri))) == ("1", before)


def test_a_trial_whose_run_was_deleted_is_refused_before_it_is_scored(
    outputs: Path, uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = read_cursor(outputs / GOOD)["trials"]["001"]["run"]
    MlflowClient(uri).delete_run(run)
    assert call(outputs, "--sweep", GOOD, "--alias", "restored") == 2
    told = capsys.readouterr()
    assert f"the trial's run {run} was deleted in MLflow: restore it there" in told.err
    assert "held-out" not in told.out
    MlflowClient(uri).restore_run(run)
    assert call(outputs, "--sweep", GOOD, "--alias", "restored") == 0


def test_a_store_of_its_own_is_named_where_it_is_needed(
    outputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = f"sqlite:///{tmp_path / 'own.db'}"
    run_training(outputs.parent / "settings.yaml", "apart", [f"tracking.uri={own}"])
    assert f"ui tracking.uri={own}" in capsys.readouterr().out
    assert call(outputs, "--sweep", "apart") == 0
    assert f"use it: MLFLOW_TRACKING_URI={own} " in capsys.readouterr().out
    arguments = ["--sweep", "apart", "--against", "models:/se-st@champion"]
    assert run_command(evaluate.main, [*arguments, "--output-dir", str(outputs)]) == 0


def test_a_server_that_is_away_is_one_line(
    outputs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        away = f"http://user:secret@127.0.0.1:{closed.getsockname()[1]}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", away)
    for arguments in (["--sweep", GOOD], ["--list"], ["--rollback"]):
        assert call(outputs, *arguments) == 2
        error = capsys.readouterr().err.strip()
        assert error.startswith("error: MLflow at http://127.0.0.1:")
        assert "secret" not in error
        assert len(error.splitlines()) == 1
    assert os.environ["MLFLOW_TRACKING_URI"] == away


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sweep", "frist"], "no run 'frist'"),
        (["--sweep", GOOD, "--trial", "099"], "no trial '099' in good; there are: 001"),
        ([], "name one of --sweep NAME, --rollback, --list"),
        (["--sweep", GOOD, "--force", " "], "--force needs a reason"),
        (["--sweep", GOOD, "--export-state", "."], "--export-state . must be new"),
        (["--rollback", "--alias", "nobody"], "is called 'nobody': nothing to roll back"),
    ],
)
def test_mistakes_are_one_line(
    outputs: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(outputs, *arguments) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1


def test_a_champion_that_may_have_seen_the_held_out_conditions_is_told_of(
    outputs: Path, uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = fetch_model("models:/se-st@champion", uri) / "head.json"
    own = file.read_text()
    about = json.loads(own) | {"data_fingerprint": "of another split"}
    file.write_text(json.dumps(about))
    assert call(outputs, "--sweep", POOR) == 1
    told = "models:/se-st/2 was trained on other data or another split: it may have been"
    assert told in capsys.readouterr().out
    file.write_text(own)
    assert call(outputs, "--sweep", POOR) == 1
    assert "another split" not in capsys.readouterr().out


def test_force_does_without_a_rival_whose_files_are_lost(
    outputs: Path, uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(fetch_model("models:/se-st@early", uri))
    asked = ("--sweep", GOOD, "--alias", "early")
    assert call(outputs, *asked) == 2
    assert "error: cannot compare with the early (version 4)" in capsys.readouterr().err
    assert call(outputs, *asked, "--force", "its files are lost") == 0
    early = serving(uri, "early")
    assert early is not None
    assert early.tags["against"].startswith("not compared with the early (version 4): ")


def test_models_and_runs_move_with_their_folder(outputs: Path, uri: str) -> None:
    """The last test: nothing is where the fixtures say after it."""
    champion = fetch_model("models:/se-st@champion", uri)
    assert champion.is_relative_to(outputs)
    moved = outputs.with_name("moved here")
    outputs.rename(moved)
    assert call(moved, "--sweep", GOOD, "--force", "again", "--alias", "other") == 0
    now = f"sqlite:///{moved}/mlflow.db"
    assert fetch_model("models:/se-st@champion", now) == moved / champion.relative_to(outputs)
    assert fetch_model("models:/se-st@other", now).is_relative_to(moved)
    tracking = json.loads((moved / GOOD / "tracking.json").read_text())
    client = MlflowClient(now)
    assert "best.ckpt" in {a.path for a in client.list_artifacts(tracking["trials"]["001"]["run"])}
    assert not outputs.exists(), "written to where it lay before"
