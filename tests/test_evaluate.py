"""`sesttune evaluate` on trainings of the tiny data."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from helpers.run_folder import report, write_run
from helpers.trained_runs import GOOD, POOR, write_trained

from sesttune import evaluate
from sesttune.command import run as run_command
from sesttune.config.load import load_config
from sesttune.errors import UserError
from sesttune.evaluation.cell_eval import folder_name
from sesttune.held_out import chosen_trial, trial_model
from sesttune.run_setup import open_run
from sesttune.tracking.registry import write_model
from sesttune.training.records import list_trials, read_metrics


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_trained(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def poor(outputs: Path) -> Path:
    """The poor head as a folder."""
    from sesttune.data.trial_data import TrialData

    run = open_run(str(outputs), POOR)
    data = TrialData(run.manifest)
    model = trial_model(run, list_trials(run.folder)[0], None, data)
    folder = outputs / "exported"
    folder.mkdir()
    write_model(folder, model.head, model.about, data)
    return folder


def call(outputs: Path, *arguments: str) -> int:
    return run_command(evaluate.main, [*arguments, "--output-dir", str(outputs)])


def row(shown: str, name: str) -> list[str]:
    """The cells of the first table row that begins with `name`."""
    return next(line.split() for line in shown.splitlines() if line.split()[:1] == [name])


def test_a_trial_is_shown_beside_the_baselines_and_against_another(
    outputs: Path, poor: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = outputs / "scores.csv"
    more = ("--against", str(poor), "--output", str(file))
    assert call(outputs, "--sweep", GOOD, *more) == 0
    shown = capsys.readouterr().out
    assert "good/001 at step 60 on test: 7 conditions, 70 perturbed cells" in shown
    scores = pd.read_csv(file)
    assert set(scores["predictor"]) == {
        "model",
        "against",
        "controls",
        "mean_of_controls",
        "perturbation_mean",
    }
    loss = scores[scores["predictor"] == "model"]["loss"].mean()
    assert float(row(shown, "model")[1]) == pytest.approx(loss, rel=1e-3)
    assert len(row(shown, "beta")) == 7, "a table by cell type"
    assert "6 of 6 perturbations (e.g. 'P0') bear the name of none of the genes" in shown
    assert f"against {poor}: better beyond noise (loss" in shown
    assert "another split" not in shown
    assert "against perturbation_mean: worse beyond noise" in shown


def test_the_validation_split_gives_the_trials_own_loss_and_says_that_it_flatters(
    outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(outputs, "--sweep", GOOD, "--split", "val") == 0
    shown = capsys.readouterr().out
    reported = read_metrics(outputs / GOOD / "trials" / "001")[-1]["best_val_loss"]
    assert float(row(shown, "model")[1]) == pytest.approx(reported, rel=1e-3)
    assert "flatter" in shown


def test_a_folder_is_evaluated_on_its_own_data_or_on_others(
    outputs: Path, poor: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(outputs, "--model", str(poor)) == 0
    assert capsys.readouterr().out.startswith(f"{poor} on test: 7 conditions")
    config = load_config(file=poor.parent.parent / "settings.yaml")
    whole = Path(config.data.kwargs.toml_config_path or "")
    other = whole.with_name("other.toml")
    other.write_text(whole.read_text().replace('test = ["P2"]', 'test = ["P2", "P3"]'))
    there = f"data.kwargs.toml_config_path={other}"
    assert call(outputs, "--model", str(poor), there) == 0
    shown = capsys.readouterr().out
    assert f"{poor} on test: 8 conditions" in shown
    assert "it may have been trained on some of these" in shown
    assert call(outputs, "--sweep", POOR, there, "--against", str(poor)) == 0
    shown = capsys.readouterr().out
    assert "1 of these 8 conditions were in its training" in shown
    assert f"{poor} was trained on other data or another split" in shown
    other.write_text(whole.read_text().partition("[zeroshot]")[0])
    assert call(outputs, "--sweep", POOR, there) == 0
    shown = capsys.readouterr().out
    assert "no validation split in other.toml: held out 1 of 6 training perturbations (P" in shown
    assert "on val: 3 conditions" in shown


def test_other_data_may_have_more_genes_and_in_another_order(
    outputs: Path, poor: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = outputs.parent
    for name in ("alpha", "beta", "gamma"):
        cells = anndata.read_h5ad(whole / f"{name}.h5ad")
        extra = anndata.AnnData(cells.X[:, :1] * 0, cells.obs, pd.DataFrame(index=["odd"]))
        more = anndata.concat([extra, cells[:, ::-1]], axis=1, merge="first")
        more.obsm = cells.obsm
        more.write_h5ad(tmp_path / f"{name}.h5ad")
    (tmp_path / "split.toml").write_text((whole / "split.toml").read_text())
    there = f"data.kwargs.toml_config_path={tmp_path / 'split.toml'}"
    shown = []
    for more_arguments in ((), (there,)):
        assert call(outputs, "--model", str(poor), *more_arguments) == 0
        told = capsys.readouterr().out
        assert "another scale" not in told
        shown.append(row(told, "model"))
    assert shown[0] == shown[1]
    cells = anndata.read_h5ad(tmp_path / "beta.h5ad")
    x = cells.X.toarray()
    cells.X = np.log1p(x / x.sum(1, keepdims=True) * 2_500)
    cells.write_h5ad(tmp_path / "beta.h5ad")
    assert call(outputs, "--model", str(poor), there) == 0
    told = "2,500 counts a cell, where the model was trained on 10,000"
    assert f"warning: {poor}: these cells are on another scale: {told}" in capsys.readouterr().out
    cells[:, 1:40].copy().write_h5ad(tmp_path / "beta.h5ad")
    assert call(outputs, "--model", str(poor), there) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "beta.h5ad lacks 21 of the 60 genes that are asked for" in line


def test_a_model_is_shown_the_vectors_that_it_was_trained_with(
    outputs: Path, poor: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    features = outputs.parent / "features.pt"
    shutil.copy(features, moved := tmp_path / "moved.pt")
    there = f"data.kwargs.perturbation_features_file={moved}"
    vectors = torch.load(features)
    try:
        torch.save({**vectors, "P1": vectors["P1"] + 1}, features)
        assert call(outputs, "--model", str(poor)) == 2
        [line] = capsys.readouterr().err.splitlines()
        told = f"trained with other vectors of 1 perturbations (e.g. 'P1') than {features} holds"
        assert told in line
        features.unlink()
        assert call(outputs, "--model", str(poor)) == 2
        assert "features.pt does not exist" in capsys.readouterr().err
        assert call(outputs, "--model", str(poor), there) == 0
        assert f"{poor} on test: 7 conditions" in capsys.readouterr().out
    finally:
        shutil.copy(moved, features)


def test_a_folder_is_not_shown_other_embeddings_of_the_same_cells(
    outputs: Path, poor: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(poor, moved := tmp_path / "moved")
    assert call(outputs, "--model", str(moved)) == 0
    about = json.loads((moved / "head.json").read_text())
    about["encoder"]["values"] = "f" * 64
    (moved / "head.json").write_text(json.dumps(about))
    assert call(outputs, "--model", str(moved)) == 2
    assert "but these hold other embeddings" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name what to evaluate: --model M, or --sweep NAME"),
        (["--sweep", GOOD, "--model", "x"], "name what to evaluate"),
        (["--model", "x", "--step", "3"], "go with --sweep"),
        (["--model", "x"], "neither models:/NAME@ALIAS nor a folder with head.json"),
        (["--sweep", GOOD, "--output", "scores.txt"], "must end in .csv"),
        (["--sweep", GOOD, "--output", "gone/scores.csv"], "gone is not a folder"),
        (["--sweep", GOOD, "training.lr=1"], "only data.* settings can be changed"),
        (["--sweep", GOOD, "data.kwargs.gene_list=genes.txt"], "predicts other genes"),
        (["--sweep", GOOD, "data.kwargs.target_sum=1e6"], "target_sum=10000.0, these data are"),
    ],
)
def test_mistakes_are_one_line(
    outputs: Path,
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "genes.txt").write_text("\n".join(f"G{number}" for number in range(50)))
    assert call(outputs, *arguments) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1


@pytest.mark.slow
def test_cell_eval_scores_each_cell_type_or_is_asked_for(
    outputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--sweep", GOOD, "--cell-eval", str(tmp_path / "scores"))
    if importlib.util.find_spec("cell_eval") is None:
        assert call(outputs, *arguments) == 2
        told = capsys.readouterr()
        assert "pip install 'sesttune[eval]'" in told.err
        assert told.out == "", "before anything is scored"
        return
    command = [sys.executable, "-m", "sesttune.evaluate", *arguments]
    command += ["--output-dir", str(outputs)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert len(row(done.stdout, "pearson_delta")) == 3  # beta and gamma
    assert "it/s" not in done.stderr, "a bar a metric"
    assert (tmp_path / "scores" / "tiny.gamma" / "results.csv").is_file()


def test_each_context_has_a_folder_of_its_own_in_the_one_asked_for() -> None:
    contexts = ("d.CD4+/CD8+", "d.CD4+%2FCD8+", "d./../../x", "../x", "..", "d.T cell")
    names = [folder_name(context) for context in contexts]
    assert len(set(names)) == len(contexts)
    assert all((Path("/out") / name).resolve().parent == Path("/out") for name in names)
    assert names[-1] == contexts[-1]


def test_a_metric_that_a_context_lacks_is_shown_for_the_others() -> None:
    found = {"d.beta": {"overlap": 0.5}, "d.gamma": {"overlap": 0.25, "clustering": 1.0}}
    table = evaluate.cell_eval_table(found, Path("scores"))
    columns = [list(column.cells) for column in table.columns]
    assert columns == [["overlap", "clustering"], ["0.5", "-"], ["0.25", "1"]]


def test_a_trial_whose_checkpoint_is_with_one_that_is_gone_is_to_be_trained_again(
    tmp_path: Path,
) -> None:
    folder = write_run(tmp_path / "night", trials=2)
    report(folder, "001", range(3))
    (folder / "trials/001/schedule.json").write_text(json.dumps({"shares": "002"}))
    run = open_run(str(tmp_path), "night")
    with pytest.raises(UserError, match="which has the checkpoint: --trial 002"):
        chosen_trial(run, "001")
    shutil.rmtree(folder / "trials/002")
    with pytest.raises(UserError, match="is gone: sesttune sweep --resume night trains it again"):
        chosen_trial(run, "001")
