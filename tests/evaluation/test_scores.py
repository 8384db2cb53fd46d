"""Scores of a really trained tiny head, against the trial's own reports and by hand."""

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from helpers.tiny_data import MeanEncoder, write_tiny

from sesttune.config.load import load_config
from sesttune.config.schema import Config
from sesttune.data.sampling import CellSets, fixed_sets
from sesttune.data.trial_data import TrialData, prepare
from sesttune.errors import UserError
from sesttune.evaluation import scores
from sesttune.evaluation.baselines import baseline_predictors, baselines, dense_sets
from sesttune.evaluation.every_cell import predict_every_cell
from sesttune.evaluation.predictors import Predictor, head_predictor
from sesttune.evaluation.scores import METRICS, genes_not_left_out, losses_of, score, summary
from sesttune.model.losses import loss_function
from sesttune.training.records import TrialRecord, read_metrics, read_trial
from sesttune.training.trained_head import trained_head
from sesttune.training.trial import run_trial


class Trained:
    def __init__(self, folder: Path) -> None:
        tiny = write_tiny(folder)
        settings = tiny.settings(**{"training.ckpt_every_n_steps": 7, "training.ema_decay": 0.9})
        self.config: Config = load_config(base=settings)
        manifest = prepare(self.config, MeanEncoder)
        self.data = TrialData(manifest)
        run_trial(self.config, manifest, folder / "trial")
        record = read_trial(folder / "trial")
        assert record is not None
        self.record: TrialRecord = record

    def predictor(self, step: int | None = None) -> Predictor:
        head, _ = trained_head(self.record, self.data, step)
        return head_predictor(head, self.data.controls, self.data.features)

    def scores(self, split: str, step: int | None = None) -> pd.DataFrame:
        seed = self.config.training.train_seed
        sets = fixed_sets(self.data, split, 8, seed)
        predictors = {"model": self.predictor(step), **baseline_predictors(self.data, seed)}
        return score(self.data, split, sets, predictors, loss_function("energy"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("trained"))


def test_the_validation_loss_is_the_one_that_the_trial_reported(trained: Trained) -> None:
    last = read_metrics(trained.record.folder)[-1]
    assert losses_of(trained.scores("val"), "model").mean() == pytest.approx(
        last["best_val_loss"], rel=1e-5
    )


def test_an_earlier_checkpoint_is_the_model_of_its_step(trained: Trained) -> None:
    reported = {line["step"]: line["val_loss"] for line in read_metrics(trained.record.folder)}
    losses = {step: losses_of(trained.scores("val", step), "model").mean() for step in (7, 14, 20)}
    assert losses[20] == pytest.approx(reported[20], rel=1e-5)
    assert losses[7] > losses[14] > losses[20]
    about = {step: trained_head(trained.record, trained.data, step)[1] for step in (7, 20)}
    assert [found["step"] for found in about.values()] == [7, 20]
    assert about[20]["val_loss"] == reported[20]
    assert about[7]["val_loss"] is None  # no validation was due there


def test_a_step_that_is_not_kept_is_refused_with_those_that_are(trained: Trained) -> None:
    with pytest.raises(UserError, match="kept checkpoints of steps 7, 14, 20"):
        trained_head(trained.record, trained.data, 9)


def test_baselines_score_as_they_are_logged_beside_a_sweep(trained: Trained) -> None:
    means = summary(trained.scores("val"))["loss"]
    for name, loss in baselines(trained.config, trained.data).items():
        assert means[name] == pytest.approx(loss, rel=1e-5)


def test_every_held_out_condition_has_every_metric(trained: Trained) -> None:
    scores = trained.scores("test")
    own = scores[scores["predictor"] == "model"]
    assert sorted(zip(own["cell_type"], own["perturbation"], strict=True)) == sorted(
        [("beta", "P2"), *(("gamma", f"P{i}") for i in range(6))]
    )
    assert own["cells"].tolist() == [10] * 7
    assert (scores.groupby("predictor").size() == 7).all()
    assert own[["loss", "mae", "pearson_delta"]].notna().all().all()
    # Alone in its cell type, P2 of beta has nothing to be told from.
    assert own["discrimination"].isna().tolist() == [True, *[False] * 6]
    assert set(METRICS) <= set(scores.columns)


@pytest.mark.parametrize("symbols", ["index", "column", "nowhere"])
def test_a_perturbed_gene_is_left_out_by_its_name_or_its_symbol_or_that_is_said(
    tmp_path: Path, symbols: str
) -> None:
    tiny, targets = write_tiny(tmp_path), {"P5": 0, "P3": 1, "P0": 2}
    called = [*targets, *(f"G{i}" for i in range(56)), "P0"]
    for path in tiny.files.values():
        cells = anndata.read_h5ad(path)
        x = cells.X.toarray()
        for pert, gene in targets.items():
            x[:, gene] = np.where(cells.obs["target_gene"] == pert, 0, 50)
        ids = [f"ENSG{i}" for i in range(60)]
        var = pd.DataFrame({"kind": "coding", "symbol": called}, index=ids)
        if symbols == "nowhere":
            del var["symbol"]
        elif symbols == "index":
            var.index = pd.Index([*called[:-1], "G59"])
        anndata.AnnData(x, cells.obs, var).write_h5ad(path)
    data = TrialData(prepare(load_config(base=tiny.settings()), MeanEncoder))
    assert data.store.target_genes == ({} if symbols == "nowhere" else targets)
    unknown, example = (6, "P0") if symbols == "nowhere" else (3, "P1")
    told = genes_not_left_out(data, "test")
    assert told is not None
    assert told.startswith(f"{unknown} of 6 perturbations (e.g. '{example}') bear the name of no")

    def knocked_down(sets: CellSets) -> torch.Tensor:
        """Controls without the perturbed gene, which is all that tells whose they are."""
        cells = dense_sets(data.store, sets.control_rows)
        for pert, gene in targets.items():
            cells[sets.pert_codes == data.store.names["pert"].index(pert), :, gene] = 0
        return torch.from_numpy(cells)

    sets = fixed_sets(data, "test", 8, 0)
    scores = score(data, "test", sets, {"model": knocked_down}, loss_function("energy"))
    of_targets = scores[(scores["cell_type"] == "gamma") & scores["perturbation"].isin(targets)]
    assert (of_targets["discrimination"] == 1).all() == (symbols == "nowhere")
    assert (of_targets["top_overlap"] > 0).all()  # the perturbed gene, and what its loss scales up


def test_metrics_of_a_condition_by_hand(trained: Trained) -> None:
    data, scores = trained.data, trained.scores("test")
    row = scores[(scores["predictor"] == "perturbation_mean") & (scores["perturbation"] == "P3")]
    store, names = data.store, data.store.names
    of_type = {
        name: store.cell_type == names["cell_type"].index(name) for name in names["cell_type"]
    }
    pert = store.pert == names["pert"].index("P3")

    def mean(cell_type: str, which: np.ndarray) -> np.ndarray:
        return store.dense(np.flatnonzero(of_type[cell_type] & which)).mean(0)

    # Trained on in alpha and beta; their mean change, on top of gamma's own controls.
    changes = [mean(t, pert) - mean(t, store.is_control) for t in ("alpha", "beta")]
    predicted = mean("gamma", store.is_control) + np.mean(changes, axis=0)
    real = mean("gamma", pert)
    assert row["mae"].item() == pytest.approx(np.abs(predicted - real).mean(), rel=1e-4)
    effect = real - mean("gamma", store.is_control)
    expected = np.corrcoef(np.mean(changes, axis=0), effect)[0, 1]
    assert row["pearson_delta"].item() == pytest.approx(expected, abs=1e-4)


def test_a_mean_of_many_cells_is_of_some_from_first_to_last(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scores, "CELLS_OF_MEAN", 3)
    rows = np.arange(40, 49)
    found = scores._moments(trained.data, rows)
    assert found.cells == 3
    assert found.mean == pytest.approx(trained.data.store.dense(rows[[0, 4, 8]]).mean(0), rel=1e-5)


def test_a_short_set_is_filled_with_cells_of_its_own_condition(trained: Trained) -> None:
    conditions, store = trained.data.conditions("test"), trained.data.store
    own = {(c.pert, c.dataset, c.cell_type): set(c.rows.tolist()) for c in conditions}

    def predict(sets: CellSets) -> torch.Tensor:
        for pert, rows in zip(sets.pert_codes, sets.pert_rows, strict=True):
            assert set(rows) <= own[int(pert), store.dataset[rows[0]], store.cell_type[rows[0]]]
        return torch.zeros(*sets.pert_rows.shape, store.n_genes)

    assert len(list(predict_every_cell(store, conditions, predict, 8, seed=1))) == 14


def test_every_cell_is_predicted_once(trained: Trained) -> None:
    conditions, store = trained.data.conditions("test"), trained.data.store
    found = list(predict_every_cell(store, conditions, trained.predictor(), 8, seed=1))
    rows = np.concatenate([rows for rows, _ in found])
    assert sorted(rows) == sorted(np.concatenate([c.rows for c in conditions]))
    assert all(values.shape == (len(rows), store.n_genes) for rows, values in found)
    assert list(predict_every_cell(store, [], trained.predictor(), 8, seed=1)) == []
    again = list(predict_every_cell(store, conditions, trained.predictor(), 8, seed=1))
    assert all((a[1] == b[1]).all() for a, b in zip(found, again, strict=True))
