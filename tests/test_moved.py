"""A run whose inputs have been moved: it is told once where they lie. The tests run in order."""

import shutil
from pathlib import Path

import pytest
import torch
from helpers.tiny_data import N_GENES, write_tiny
from omegaconf import OmegaConf
from rich.console import Console

from sesttune import evaluate, sweep, train
from sesttune.command import Main, run
from sesttune.config.load import load_config
from sesttune.config.paths import INPUTS, MOVABLE
from sesttune.evaluation.scores import losses_of
from sesttune.held_out import evaluate_models, trial_model
from sesttune.model.se_demo import write_demo_encoder
from sesttune.run_setup import open_run, prepare_run, run_data
from sesttune.system.run_lock import only_driver
from sesttune.training.records import TrialRecord, list_trials, trial_folder, write_trial
from sesttune.training.trial import run_trial

PROTEINS = "protein_embeddings.pt"
SPACE = {
    "searcher": "grid",
    "num_trials": 1,
    "parameters": {"training.lr": {"type": "choice", "values": [1e-3]}},
}
BOTH = pytest.mark.parametrize(
    ("main", "kind", "name"), [(train.main, "train", "first"), (sweep.main, "sweep", "second")]
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`outputs` with `first`, a training on what lies in `new` now, and `second`, it as a sweep."""
    folder = tmp_path_factory.mktemp("moved")
    (folder / "old").mkdir()
    tiny, genes = write_tiny(folder / "old"), [f"G{i}" for i in range(N_GENES)]
    more = {"output_dir": str(folder / "outputs"), "sweep.seeds": 1, "sweep.extend_to": []}
    more["tracking.uri"] = "http://127.0.0.1:1"  # none answers: a store takes seconds to make
    more["model.kwargs.se_model_path"] = write_demo_encoder(folder / "old" / "se", genes).parent
    more |= {"model.kwargs.se_checkpoint_path": None, "training.max_steps": 5}
    first = prepare_run(load_config(base=tiny.settings(name="first", **more)), None, Console())
    where = trial_folder(first.folder, train.TRIAL_ID)
    write_trial(TrialRecord(train.TRIAL_ID, where, {"training.lr": 1e-3}))
    run_trial(first.config, first.manifest, where)
    second = Path(shutil.copytree(first.folder, first.folder.with_name("second")))
    kept = OmegaConf.load(second / "sweep.yaml")
    OmegaConf.update(kept, "space", SPACE)
    (second / "sweep.yaml").write_text(OmegaConf.to_yaml(kept))
    (folder / "old").rename(folder / "new")
    (folder / "new" / "cache").rename(folder / "kept")
    return folder


def words(folder: Path, name: str, *given: str) -> list[str]:
    return ["--resume", name, f"output_dir={folder / 'outputs'}", *given]


def refused(main: Main, words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert run(main, words) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    return line


@BOTH
def test_what_is_not_there_any_more_is_named_with_the_way(
    folder: Path, capsys: pytest.CaptureFixture[str], main: Main, kind: str, name: str
) -> None:
    way = f"{kind} {' '.join(words(folder, name))} KEY=PATH (KEY: {', '.join(MOVABLE)})"
    outputs = str(folder / "outputs")
    for line in (
        refused(main, words(folder, name), capsys),
        refused(evaluate.main, ["--sweep", name, "--output-dir", outputs], capsys),
    ):
        assert f"data.kwargs.toml_config_path: {folder}/old/split.toml does not exist. " in line
        assert line.endswith(way)


def test_a_run_takes_the_new_places_of_the_same_inputs_and_keeps_them(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder / "new")
    settings = folder / "outputs" / "second" / "sweep.yaml"
    before = settings.read_text()
    features = "data.kwargs.perturbation_features_file="
    vectors = torch.load("features.pt", weights_only=True)
    torch.save({key: vector + 1 for key, vector in vectors.items()}, "other.pt")
    other = Path(shutil.copytree("se", "other"))
    rows = torch.load(other / PROTEINS, weights_only=True)
    torch.save({gene: row + 1 for gene, row in rows.items()}, other / PROTEINS)
    places = ["data.kwargs.toml_config_path=split.toml", "data.cache_dir=../kept"]
    shards = set(Path("../kept").glob("shards/*/"))
    for encoder, file, told in (
        ("se", "other.pt", "the vectors of the perturbations have changed"),
        ("other", "features.pt", "the embeddings of the controls (or their encoder) have changed"),
    ):
        given = [f"model.kwargs.se_model_path={encoder}", f"{features}{file}"]
        assert told in refused(sweep.main, words(folder, "second", *places, *given), capsys)
    assert set(Path("../kept").glob("shards/*/")) == shards, "nothing is encoded by another"
    places += ["model.kwargs.se_model_path=se", f"{features}features.pt"]
    moved = words(folder, "second", *places)
    with only_driver(settings.parent):
        assert "by another process" in refused(sweep.main, moved, capsys)
    assert settings.read_text() == before
    assert run(sweep.main, moved) == 0
    wanted = OmegaConf.create(before)
    for key, path in (word.split("=") for word in places):
        OmegaConf.update(wanted, f"config.{key}", str(folder / "new" / path))
    assert OmegaConf.load(settings) == wanted


def test_who_uses_its_heads_finds_the_inputs_then(folder: Path) -> None:
    outputs = str(folder / "outputs")
    assert run(evaluate.main, ["--sweep", "second", "--output-dir", outputs]) == 0
    known = open_run(outputs, "second")
    data = run_data(known, Console())
    model = trial_model(known, *list_trials(known.folder), None, data)
    assert model.config.data == known.config.data, "as it is promoted"
    rival = model.found_at(dict.fromkeys(INPUTS[1:3], str(folder / "old")))  # promoted before
    both = {"model": model, "rival": rival}
    scores = evaluate_models(both, data, model.config, "val", Console(quiet=True))
    assert list(losses_of(scores, "rival")) == list(losses_of(scores, "model"))


@BOTH
def test_a_starting_point_which_nothing_tells_from_another_stays(
    folder: Path, capsys: pytest.CaptureFixture[str], main: Main, kind: str, name: str
) -> None:
    line = refused(main, words(folder, name, "model.checkpoint=last.ckpt"), capsys)
    assert "may go with it" in line
