"""A training, promoted into a real SQLite MLflow, is described and made again."""

import json
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anndata
import pytest
import torch
from helpers.trained_runs import EMBED_KEY, write_embedded

from sesttune import promote, reproduce, train
from sesttune.command import run
from sesttune.config.load import from_dict, load_config
from sesttune.errors import UserError
from sesttune.recipe import describe, reasons, settings_of, training_command
from sesttune.run_setup import open_run
from sesttune.system.cached_folder import no_progress
from sesttune.tracking.registry import fetch_model
from sesttune.training.environment import note_environment, versions
from sesttune.training.records import note_facts, read_metrics, read_trial

MODEL = "models:/se-st@champion"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A promoted training of two threads, in `outputs`."""
    folder = tmp_path_factory.mktemp("reproduce")
    tiny = write_embedded(folder)
    more = {"data.kwargs.embed_key": EMBED_KEY, "training.train_seed": 7, "name": "first"}
    more["training.ckpt_every_n_steps"] = 7
    settings = tiny.settings(**more, output_dir=str(folder / "outputs"))
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    assert run(train.main, [f"{key}={value}" for key, value in settings.items()]) == 0
    torch.set_num_threads(threads)
    arguments = ["--sweep", "first", "--output-dir", str(folder / "outputs")]
    assert run(promote.main, arguments) == 0
    return folder


def call(folder: Path, *more: str) -> list[str]:
    return [MODEL, "--output-dir", str(folder / "outputs"), *more]


def field(shown: str, name: str) -> str:
    [line] = [line for line in shown.splitlines() if line.startswith(f"{name}:")]
    return line.partition(":")[2].strip()


def test_a_dry_run_prints_all_that_made_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(reproduce.main, call(folder, "--dry-run")) == 0
    shown = capsys.readouterr().out
    first = open_run(str(folder / "outputs"), "first")
    words = shlex.split(field(shown, "training"))
    assert words[:3] == ["OMP_NUM_THREADS=2", "sesttune", "train"]
    again = load_config(words[3:])
    assert again.name == "reproduced-first-001"
    assert (again.data, again.model) == (first.config.data, first.config.model)
    assert again.training == first.config.training
    assert {"training.max_steps=20", "training.train_seed=7"} <= set(words)
    assert "training.replicate=0" in words
    about = json.loads((first.folder / "data.json").read_text())
    assert field(shown, "data") == f"fingerprint {about['fingerprint']}"
    assert field(shown, "made by") == "trial 001 of first"
    assert f"obsm['{EMBED_KEY}']" in field(shown, "encoder")
    assert f"torch {versions()['torch']}," in field(shown, "versions")
    assert "now" not in field(shown, "versions") + field(shown, "device")
    assert "at step 20" in field(shown, "result")
    assert not (folder / "outputs" / "reproduced-first-001").exists()


def test_it_is_made_again_to_the_last_bit(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # it takes as many as then
    assert run(reproduce.main, call(folder)) == 0
    assert torch.get_num_threads() == 2
    torch.set_num_threads(threads)
    assert "reproduced: val_loss" in capsys.readouterr().out.splitlines()[-1]
    trials = [folder / "outputs" / n / "trials" / "001" for n in ("first", "reproduced-first-001")]
    then, now = ([line["val_loss"] for line in read_metrics(trial)] for trial in trials)
    assert then == now
    assert len(then) == 5


def test_a_head_of_a_step_without_a_validation_is_known_by_its_weights(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--output-dir", str(folder / "outputs")]
    assert run(promote.main, ["--sweep", "first", "--step", "7", "--alias", "early", *where]) == 0
    capsys.readouterr()
    threads = torch.get_num_threads()
    assert run(reproduce.main, ["models:/se-st@early", "name=early", *where]) == 0
    torch.set_num_threads(threads)
    shown = capsys.readouterr().out
    assert field(shown, "note") == "it is of step 7 of 20: trained until there"
    assert field(shown, "reproduced") == "the weights of step 7, the same to the last bit"
    registered = fetch_model("models:/se-st@early", f"sqlite:///{folder}/outputs/mlflow.db")
    training, about = open_run(str(folder / "outputs"), "early"), recorded(step=5, val_loss=None)
    told = reproduce._compare_weights(training, about, registered, [])[1]
    assert told.startswith("not compared: --step 5: trial 001 kept checkpoints of steps")
    first, about = open_run(str(folder / "outputs"), "first"), recorded(step=14, val_loss=None)
    same, told = reproduce._compare_weights(first, about, registered, ["torch 3, then 2"])
    assert not same
    assert told.startswith("not the same bits: the weights of step 14 are up to ")
    assert told.endswith(" apart: torch 3, then 2")


@pytest.fixture
def changed(folder: Path, tmp_path: Path) -> Path:
    """A copy of the data, to be given as the place where they lie now."""
    for name in ("split.toml", "features.pt", *(p.name for p in folder.glob("*.h5ad"))):
        shutil.copy(folder / name, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("cells", "the data are not those it was trained on: fingerprint"),
        ("features", "the vector of 'P3' is not that of then"),
        ("embeddings", "of the files does not hold the values of then"),
    ],
)
def test_other_data_are_refused_in_one_line_and_nothing_is_left(
    folder: Path, changed: Path, capsys: pytest.CaptureFixture[str], change: str, message: str
) -> None:
    if change == "cells":
        cells = anndata.read_h5ad(changed / "alpha.h5ad")
        cells.X[50, 0] += 1
        cells.write_h5ad(changed / "alpha.h5ad")
    elif change == "embeddings":
        cells = anndata.read_h5ad(changed / "alpha.h5ad")
        cells.obsm[EMBED_KEY] = cells.obsm[EMBED_KEY] * 2
        cells.write_h5ad(changed / "alpha.h5ad")
    else:
        vectors = torch.load(changed / "features.pt", weights_only=True)
        vectors["P3"][0] += 1
        torch.save(vectors, changed / "features.pt")
    places = [f"data.kwargs.toml_config_path={changed}/split.toml", f"data.cache_dir={changed}/c"]
    places += [f"data.kwargs.perturbation_features_file={changed}/features.pt", "name=other"]
    assert run(reproduce.main, call(folder, *places)) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (folder / "outputs" / "other").exists()


def test_another_encoder_is_refused_before_it_encodes() -> None:
    encoder = SimpleNamespace(identity={"path": "new.ckpt", "sha256": "a" * 64})
    encode = reproduce._refuse_other_encoder(recorded())
    with pytest.raises(UserError, match=r"new.ckpt has sha256 aaaaaaaaaaaa, then eeeeeeeeeeee"):
        encode([], encoder, no_progress)
    about = recorded()
    about["encoder"] |= {"sha256": "a" * 64, "proteins": "b" * 64}
    encoder.identity["proteins"] = "c" * 64
    with pytest.raises(UserError, match=r"protein embeddings of new.ckpt are not those of then"):
        reproduce._refuse_other_encoder(about)([], encoder, no_progress)


def test_a_setting_of_the_training_cannot_be_given(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(reproduce.main, call(folder, "training.lr=1e-3", "--dry-run")) == 2
    assert "training.lr would make another model" in capsys.readouterr().err


def test_another_loss_is_named_with_what_differs(folder: Path) -> None:
    run_folder = folder / "outputs" / "first"
    line = read_metrics(run_folder / "trials" / "001")[-1]
    about = {"step": 20, "val_loss": line["val_loss"] * (1 + 1e-6)}
    same, told = reproduce._compare(run_folder, about, ["torch 3, then 2"])
    assert not same
    assert told.startswith("not the same bits: val_loss")
    assert told.endswith("(1e-06 of it apart): torch 3, then 2")
    same, told = reproduce._compare(run_folder, {**about, "step": 19}, [])
    assert (same, told) == (False, "not reproduced: this training has no validation at step 19")


def recorded(**more: Any) -> dict[str, Any]:
    """What `head.json` says of a trial of a sweep."""
    training = {"max_steps": 400, "replicate": 2, "lr": 1e-5, "device": "cpu"}
    return {
        "step": 100,
        "val_loss": 0.5,
        "config": {"training": training, "sweep": {"space": "quick"}, "name": "s"},
        "encoder": {"path": "se.ckpt", "sha256": "e" * 64, "label": "tiny encoder"},
        "data_fingerprint": "f" * 16,
        "sweep": "s",
        "trial": "003",
        "command": "sesttune sweep name=s",
        "continues": None,
        "last_step": 400,
        "versions": {"python": "3.11", "torch": "2.0", "ray": "2.5"},
        "environment": {"device": "cpu x", "threads": 1},
        **more,
    }


def test_a_trial_of_a_sweep_becomes_a_single_training() -> None:
    command = training_command(recorded(), settings_of(recorded(), {}))
    assert command == (
        "OMP_NUM_THREADS=1 sesttune train training.max_steps=400 training.lr=1e-05 "
        "training.train_seed=42 training.replicate=2 training.device=cpu name=reproduced-s-003"
    )


def test_a_stopped_training_is_made_until_there_unless_its_rate_depends_on_the_end() -> None:
    stopped = recorded(last_step=200)
    assert settings_of(stopped, {}).training.max_steps == 200
    stopped["config"]["training"]["lr_schedule"] = "cosine"
    assert settings_of(stopped, {}).training.max_steps == 400


def test_notes_say_what_a_training_grew_from() -> None:
    about = recorded(continues="earlier/001", last_step=200)
    about["config"]["model"] = {"checkpoint": "old/last.ckpt"}
    config = settings_of(about, {})
    lines = describe(about, config, {"python": "3.11", "torch": "2.1"}, "cpu y")
    notes = [line.removeprefix("note:      ") for line in lines if line.startswith("note:")]
    assert notes[0].startswith("it began with old/last.ckpt, which another training made")
    assert notes[1].startswith("it took over the training of trial earlier/001")
    assert notes[2] == "it ended at step 200 of 400: trained until there"
    assert "versions:  python 3.11, torch 2.0 (now 2.1), ray 2.5 (now missing)" in lines
    assert "device:    cpu x (now cpu y)" in lines
    assert describe(recorded(), from_dict(recorded()["config"]), {}, "")[-1].startswith("result:")


def test_reasons_are_what_a_number_can_depend_on() -> None:
    then = recorded()["versions"]
    assert reasons(recorded(), {**then, "ray": "3"}, "cpu x", 1) == []
    assert reasons(recorded(), {**then, "torch": "3"}, "cpu x", 1) == ["torch 3, then 2.0"]
    assert reasons(recorded(), then, "cpu x", 4) == ["4 threads, then 1"]
    assert reasons(recorded(), then, "cpu y", 4) == ["cpu y, then cpu x"]
    gpu = recorded(
        environment={"device": "NVIDIA", "threads": 1, "micro_batch": 2, "earlier_versions": {}}
    )
    assert len(reasons(gpu, then, "NVIDIA", 1)) == 3


def test_a_trial_that_went_on_under_other_versions_says_so(tmp_path: Path) -> None:
    note_environment(tmp_path, torch.device("cpu"))
    first = read_trial(tmp_path)
    assert first is not None
    assert first.facts["versions"] == versions()
    assert "earlier_versions" not in first.facts
    note_facts(tmp_path, versions={"torch": "1.0"})
    note_environment(tmp_path, torch.device("cpu"))
    second = read_trial(tmp_path)
    assert second is not None
    assert second.facts["earlier_versions"] == {"torch": "1.0"}
    assert second.facts["versions"] == versions()
