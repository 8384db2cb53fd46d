"""The demo as a user runs it, a shorter sweep of it, killed once: real Ray, encoder and MLflow."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import anndata
import numpy as np
import pytest
from helpers.wrong_cells import write_wrong_cells
from mlflow import MlflowClient

from sesttune import compare, predict, predicted_file, promote, sweep, train
from sesttune.command import run as run_command
from sesttune.model.se_demo import write_demo_encoder
from sesttune.training.records import list_trials, read_metrics

SHORT_SPACE = """\
searcher: gp
num_trials: 3
parameters:
  training.lr: {type: loguniform, low: 3.0e-3, high: 1.0e-2}
  training.max_steps: {type: choice, values: [160, 200]}
"""


def sesttune(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *arguments]
    environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def output(folder: Path) -> str:
    """What `--resume` prints of a sweep whose driver was killed with trials under way."""
    run = folder / "outputs" / "first"
    (folder / "short.yaml").write_text(SHORT_SPACE)
    command = [sys.executable, "-m", "sesttune.sweep", "name=first", "sweep.space=short.yaml"]
    command += ["sweep.seeds=1", "sweep.extend_to=[]", f"data.cache_dir={folder}/cache"]
    process = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 300
    while len([r for r in list_trials(run) if len(read_metrics(r.folder)) >= 4]) < 2:
        assert process.poll() is None, "the sweep ended before it was killed"
        assert time.monotonic() < deadline, "the sweep did not get there"
        time.sleep(0.1)
    process.kill()
    process.wait()
    assert not (run / "result.json").exists()
    before = {r.id: [r.params, read_metrics(r.folder)] for r in list_trials(run)}
    (folder / "before.json").write_text(json.dumps(before))
    done = sesttune(folder, "sesttune.sweep", "--resume", "first")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def client(folder: Path) -> MlflowClient:
    uri = f"sqlite:///{folder}/outputs/mlflow.db"
    return MlflowClient(uri, uri)  # the registry, too, which another test may have named


def test_a_killed_sweep_is_resumed_where_it_was(folder: Path, output: str) -> None:
    assert "leaderboard of first" in output
    assert "verdict:" in output
    records = list_trials(folder / "outputs" / "first")
    assert len(records) == 3
    assert all(record.finished and record.status != "failed" for record in records)
    before = json.loads((folder / "before.json").read_text())
    for record in records:
        lines = read_metrics(record.folder)
        assert [line["step"] for line in lines] == [40 * i for i in range(len(lines))]
        if record.id in before:
            params, earlier = before[record.id]
            assert record.params == params
            # At most the interval under way was repeated: what was recorded stays.
            assert lines[: len(earlier)] == earlier or lines[: len(earlier) - 1] == earlier[:-1]


def test_mlflow_holds_every_trial_metric_and_checkpoint(folder: Path, output: str) -> None:
    store, run = client(folder), folder / "outputs" / "first"
    experiment = store.get_experiment_by_name("sesttune")
    runs = store.search_runs([experiment.experiment_id])
    (parent,) = (r for r in runs if r.info.run_name == "first")
    children = {r.data.tags["trial"]: r for r in runs if "mlflow.parentRunId" in r.data.tags}
    assert {r.data.tags["mlflow.parentRunId"] for r in children.values()} == {parent.info.run_id}
    assert {r.info.status for r in runs} == {"FINISHED"}
    assert len(runs) == 1 + len(list_trials(run)), "no trial has two runs"
    kept = {artifact.path for artifact in store.list_artifacts(parent.info.run_id)}
    assert {"leaderboard.csv", "report.html", "plots"} <= kept
    plots = {Path(kept.path).name for kept in store.list_artifacts(parent.info.run_id, "plots")}
    assert plots == {path.name for path in (run / "plots").iterdir()} != set()
    assert f"report:    {run}/report.html" in output
    assert "demo-encoder (random weights)" in parent.data.tags["mlflow.note.content"]
    for record in list_trials(run):
        child = children[record.id]
        history = store.get_metric_history(child.info.run_id, "val_loss")
        lines = read_metrics(record.folder)
        assert [(m.step, m.value) for m in history] == [
            (line["step"], line["val_loss"]) for line in lines
        ]
        assert float(child.data.params["training.lr"]) == record.params["training.lr"]
        assert child.data.tags["stop_reason"] == record.stop_reason
        assert len(child.data.tags["encoder_sha256"]) == 64
        # One that shares a training has none of its own, and says whose it is.
        trained = children[child.data.tags.get("shares", record.id)]
        names = {a.path for a in store.list_artifacts(trained.info.run_id)}
        assert {"best.ckpt", "config.yaml"} <= names


def test_promote_and_predict(folder: Path, output: str) -> None:
    done = sesttune(folder, "sesttune.promote", "--sweep", "first")
    assert done.returncode == 0, done.stderr
    assert "registered se-st version 1 as 'champion'" in done.stdout
    version = client(folder).get_model_version_by_alias("se-st", "champion")
    assert version.tags["sweep"] == "first"
    source = next((folder / "cache").glob("demo-*/")) / "gamma.h5ad"
    done = sesttune(
        folder,
        *("sesttune.predict", "--model", "models:/se-st@champion"),
        *("--adata", str(source), "--output", "predicted.h5ad"),
    )
    assert done.returncode == 0, done.stderr
    real, predicted = anndata.read_h5ad(source), anndata.read_h5ad(folder / "predicted.h5ad")
    assert predicted.obs.equals(real.obs)
    assert predicted.var_names.equals(real.var_names)
    logged = real.X.toarray()
    logged = np.log1p(logged / logged.sum(1, keepdims=True) * 1e4)
    control = (real.obs["target_gene"] == "non-targeting").to_numpy()
    assert np.abs(predicted.X[control] - logged[control]).max() < 1e-4
    # Predicted changes follow the real ones in a cell type that was never trained on.
    base = logged[control].mean(0)
    correlations = []
    for name in real.obs["target_gene"].cat.categories.drop("non-targeting"):
        rows = (real.obs["target_gene"] == name).to_numpy()
        change, found = logged[rows].mean(0) - base, predicted.X[rows].mean(0) - base
        correlations.append(np.corrcoef(change, found)[0, 1])
    assert np.median(correlations) > 0.4


def test_a_challenge_entry_holds_the_same_predictions(
    folder: Path,
    output: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(predicted_file, "VCC_LOG1P", 100.0)  # of a head that is hardly trained
    source = next((folder / "cache").glob("demo-*/")) / "gamma.h5ad"
    arguments = ["--model", "models:/se-st@champion", "--adata", str(source), "--vcc"]
    assert run_command(predict.main, [*arguments, "--output", "entry.h5ad"]) == 0
    assert "cell-eval prep -i entry.h5ad -g entry.genes.csv" in capsys.readouterr().out
    plain, entry = (anndata.read_h5ad(folder / f"{n}.h5ad") for n in ("predicted", "entry"))
    assert np.array_equal(entry.X.toarray(), plain.X)
    assert entry.obs.equals(plain.obs)


def test_train_takes_the_settings_of_a_trial_and_leaves_a_finished_run(
    folder: Path,
    output: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    settings = folder / "outputs" / "first" / "trials" / "001" / "config.yaml"
    more = ("name=single", "training.max_steps=80")
    assert run_command(train.main, ["--config", str(settings), *more]) == 0
    shown = capsys.readouterr().out
    assert "leaderboard of single" in shown
    steps = [line.split()[1] for line in shown.splitlines() if line.startswith("step ")]
    assert steps == ["0", "40", "80"]
    [parent] = client(folder).search_runs(["1"], "attributes.run_name = 'single'")
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["verdict"] == "healthy"


def test_compare_shows_winners_and_says_whether_they_differ(
    folder: Path, output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs = folder / "outputs"
    shutil.copytree(outputs / "first", outputs / "again", dirs_exist_ok=True)
    arguments = ["first", "again", "--output-dir", str(outputs)]
    assert run_command(compare.main, arguments) == 0
    shown = capsys.readouterr().out
    rows = [line.split() for line in shown.splitlines()]
    (trained,) = [row[-2:] for row in rows if row[:2] == ["steps", "trained"]]
    assert trained[0] == trained[1] != "0"
    assert any(row[:1] == ["winner"] for row in rows)
    assert "first/" in shown.splitlines()[-1]
    assert "differ by noise only" in shown or "a single training may be luck" in shown
    about = json.loads((outputs / "again" / "data.json").read_text())
    (outputs / "again" / "data.json").write_text(json.dumps(about | {"fingerprint": "other"}))
    assert run_command(compare.main, arguments) == 2
    assert "first and again were run on other data" in capsys.readouterr().err
    assert run_command(compare.main, ["first", "frist", "--output-dir", str(outputs)]) == 2
    assert "no run 'frist'" in capsys.readouterr().err
    shutil.rmtree(outputs / "again")


@pytest.mark.parametrize(
    ("command", "change", "message"),
    [
        ("promote", {"--sweep": "frist"}, "no run 'frist' in"),
        ("promote", {"--alias": "bad alias!"}, "MLflow takes letters, digits, _ and -"),
        ("promote", {"--trial": "099"}, "no trial '099' in first; there are: 001, 002"),
        (
            "predict",
            {"--model": "models:/se-st@nobody"},
            "not to be had from the MLflow registry (Registered model alias nobody not found",
        ),
        ("predict", {"--model": "."}, "neither models:/NAME@ALIAS nor a folder with head.json"),
        (
            "predict",
            {"--adata": "none.h5ad"},
            "none.h5ad does not exist",
        ),
        ("predict", {"--adata": "fewer.h5ad"}, "fewer.h5ad lacks 3 of the"),
        ("predict", {"--adata": "unknown.h5ad"}, "no feature vector for 1 perturbations (NEW)"),
        ("predict", {"--adata": "free.h5ad"}, "is the control 'non-targeting'"),
        ("predict", {"--adata": "controls.h5ad"}, "holds control cells alone"),
        ("predict", {"--model-folder": "other"}, "not the encoder this model was trained with"),
        ("predict", {"--output": "out.csv"}, "must end in .h5ad"),
        ("predict", {"--adata": "fewer.h5ad", "--output": "fewer.h5ad"}, "is the input itself"),
        ("predict", {"--output-dir": "nowhere"}, "nothing is tracked in"),
    ],
)
def test_promote_and_predict_refuse_in_one_line(
    folder: Path,
    output: str,
    command: str,
    change: dict[str, str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    whole = next((folder / "cache").glob("demo-*/")) / "gamma.h5ad"
    options = {
        "promote": {"--sweep": "first"},
        "predict": {
            "--model": "models:/se-st@champion",
            "--adata": str(whole),
            "--output": "refused.h5ad",
        },
    }
    if change.get("--adata", "none.h5ad") != "none.h5ad":
        write_wrong_cells(whole, folder / change["--adata"])
    if "--model-folder" in change:
        write_demo_encoder(folder / "other", ["A", "B"], seed=9)
    arguments = [text for pair in {**options[command], **change}.items() for text in pair]
    main = {"promote": promote.main, "predict": predict.main}[command]
    assert run_command(main, arguments) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (folder / "refused.h5ad").exists()
    assert not (folder / "nowhere").exists()


def test_a_name_that_exists_is_refused_and_nothing_changes(
    folder: Path,
    output: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    before = (folder / "outputs" / "first" / "result.json").read_bytes()
    assert run_command(sweep.main, ["name=first", f"data.cache_dir={folder}/cache"]) == 2
    assert "exists: choose another name=" in capsys.readouterr().err
    assert (folder / "outputs" / "first" / "result.json").read_bytes() == before
