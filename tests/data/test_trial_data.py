from pathlib import Path

import anndata
import h5py
import numpy as np
import pytest
import torch
from helpers.tiny_data import CONTROL, SPLIT, MeanEncoder, TinyData, write_tiny

from sesttune.config.load import load_config
from sesttune.data.features import read_features
from sesttune.data.trial_data import TrialData, prepare
from sesttune.errors import UserError


def open_data(tiny: TinyData, encoder: MeanEncoder | None = None, **more: object) -> TrialData:
    config = load_config(base=tiny.settings(**more))
    return TrialData(prepare(config, lambda: encoder or MeanEncoder()))


def labels(data: TrialData, rows: np.ndarray) -> set[tuple[str, str]]:
    names = data.store.names
    types, perts = data.store.cell_type[rows], data.store.pert[rows]
    return {(names["cell_type"][t], names["pert"][p]) for t, p in zip(types, perts, strict=True)}


def test_no_cell_of_a_held_out_condition_is_in_train(tmp_path: Path) -> None:
    data = open_data(write_tiny(tmp_path))
    rows = {
        split: np.concatenate([c.rows for c in data.conditions(split)])
        for split in ("train", "val", "test")
    }
    assert labels(data, rows["val"]) == {("beta", "P0"), ("beta", "P1")}
    assert labels(data, rows["test"]) == {("gamma", f"P{i}") for i in range(6)} | {("beta", "P2")}
    assert labels(data, rows["train"]) == (
        {("alpha", f"P{i}") for i in range(6)} | {("beta", f"P{i}") for i in (3, 4, 5)}
    )
    # Every cell is a control or in exactly one split.
    together = np.concatenate([*rows.values(), np.flatnonzero(data.store.is_control)])
    assert np.array_equal(np.sort(together), np.arange(data.store.n_cells))


def test_conditions_hold_all_their_cells(tmp_path: Path) -> None:
    data = open_data(write_tiny(tmp_path))
    for condition in data.conditions("train"):
        same = (data.store.pert == condition.pert) & (data.store.cell_type == condition.cell_type)
        assert np.array_equal(condition.rows, np.flatnonzero(same))


def test_controls_are_encoded_from_their_own_file_once(tmp_path: Path) -> None:
    tiny, encoder = write_tiny(tmp_path), MeanEncoder()
    data = open_data(tiny, encoder)
    assert encoder.encoded == 120  # controls only
    beta = anndata.read_h5ad(tiny.files["beta"])
    controls = beta.X[(beta.obs["target_gene"] == CONTROL).to_numpy()].toarray()
    rows = np.flatnonzero(data.store.is_control & (data.store.file == 1))
    found = data.controls.matrix[data.controls.row_of_cell[rows]]
    assert np.allclose(found, np.log1p(controls[:, :6]))
    assert (data.controls.row_of_cell[~data.store.is_control] == -1).all()
    assert "alpha.h5ad and 2 more: 60 genes known" in data.notes
    again = MeanEncoder()
    open_data(tiny, again)
    assert again.encoded == 0  # the second sweep does not touch the encoder


def test_a_dataset_that_no_table_names_is_not_read(tmp_path: Path) -> None:
    split = '[datasets]\na = "{alpha,beta}.h5ad"\nb = "gamma.h5ad"\n[training]\na = "train"\n'
    tiny, encoder = write_tiny(tmp_path, split=split), MeanEncoder()
    cells = anndata.read_h5ad(tiny.files["gamma"])
    cells[:, :30].copy().write_h5ad(tiny.files["gamma"])
    data = open_data(tiny, encoder)
    assert (data.n_genes, data.store.names["dataset"], encoder.encoded) == (60, ["a"], 80)
    assert "datasets not read, as no table names them: b" in data.notes


def test_a_var_column_that_cannot_be_read_is_named_and_stops_nothing(tmp_path: Path) -> None:
    tiny = write_tiny(tmp_path)
    with h5py.File(tiny.files["beta"], "r+") as file:
        file["var"].attrs["column-order"] = ["odd"]
        file["var/odd"] = [1, 2]
    told = [note for note in open_data(tiny).notes if "'odd'" in note]
    assert told == [
        f"{tiny.files['beta']}: var column 'odd' cannot be read (it has 2 rows, X is of 60): "
        "write it again, or drop it"
    ]


def test_embeddings_of_the_files_are_used_on_request(tmp_path: Path) -> None:
    tiny = write_tiny(tmp_path)
    for number, path in enumerate(tiny.files.values()):
        cells = anndata.read_h5ad(path)
        cells.obsm["X_state"] = np.full((cells.n_obs, 14), number + 1, np.float32)
        cells.obsm["X_state"][:, :4] = 0.5
        cells.obsm["X_long"] = 3 * cells.obsm["X_state"]
        cells.obsm["X_odd"] = cells.obsm["X_state"][:, number:]
        cells.write_h5ad(path)
    data = open_data(tiny, **{"data.kwargs.embed_key": "X_state"})
    assert data.embed_dim == 14
    assert np.unique(data.controls.matrix).tolist() == [0.5, 1.0, 2.0, 3.0]
    assert open_data(tiny, **{"data.kwargs.embed_key": "X_long"}).embed_dim == 14
    with pytest.raises(UserError, match=r"beta.h5ad: .* has the shape \(100, 13\), unlike the"):
        open_data(tiny, **{"data.kwargs.embed_key": "X_odd"})
    with pytest.raises(UserError, match="obsm has no 'X_uce'"):
        open_data(tiny, **{"data.kwargs.embed_key": "X_uce"})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.nan, r"alpha.h5ad: obsm\['X_state'\] holds NaN or infinity in control cells"),
        (0.0, r"alpha.h5ad: obsm\['X_state'\] is all zero for 40 control cells"),
        (1.0, r"holds no State Embeddings: those have length 1, these 2;"),
    ],
)
def test_embeddings_that_cannot_be_are_refused(tmp_path: Path, values: float, message: str) -> None:
    tiny = write_tiny(tmp_path)
    for path in tiny.files.values():
        cells = anndata.read_h5ad(path)
        cells.obsm["X_state"] = np.full((cells.n_obs, 14), values, np.float32)
        cells.write_h5ad(path)
    with pytest.raises(UserError, match=message):
        open_data(tiny, **{"data.kwargs.embed_key": "X_state"})


def test_perturbations_without_features_are_refused_or_dropped(tmp_path: Path) -> None:
    tiny = write_tiny(tmp_path)
    features = torch.load(tiny.features, weights_only=True)
    del features["P0"], features["P5"]
    torch.save(features, tiny.features)
    with pytest.raises(UserError, match=r"no vector for 2 of 6 perturbations \(P0, P5\)"):
        open_data(tiny)
    data = open_data(tiny, **{"data.kwargs.missing_features": "drop"})
    kept = {
        data.store.names["pert"][c.pert]
        for s in ("train", "val", "test")
        for c in data.conditions(s)
    }
    assert kept == {"P1", "P2", "P3", "P4"}
    assert any("dropped 2 of 6 perturbations" in note and "P0, P5" in note for note in data.notes)
    known = [i for i, name in enumerate(data.store.names["pert"]) if name in kept]
    assert np.isfinite(data.features[known]).all()


@pytest.mark.parametrize("setting", ["refuse", "drop"])
def test_features_of_none_of_the_perturbations_are_refused(tmp_path: Path, setting: str) -> None:
    tiny = write_tiny(tmp_path)
    features = torch.load(tiny.features, weights_only=True)
    torch.save({f"gene {name}": vector for name, vector in features.items()}, tiny.features)
    with pytest.raises(UserError, match=r"for 6 of 6 .*; name them as obs .* e.g. gene P0, ge"):
        open_data(tiny, **{"data.kwargs.missing_features": setting})


def test_features_under_other_spellings_are_told_of(tmp_path: Path) -> None:
    tiny = write_tiny(tmp_path)
    features = torch.load(tiny.features, weights_only=True)
    features |= {"p4": features.pop("P4"), "P5 ": features.pop("P5")}
    torch.save(features, tiny.features)
    told = "it names 2 of them otherwise (e.g. 'p4' for 'P4')"
    with pytest.raises(UserError) as refused:
        open_data(tiny)
    assert str(refused.value).endswith(f"(P4, P5); {told}: name them as obs does")
    notes = open_data(tiny, **{"data.kwargs.missing_features": "drop"}).notes
    assert f"dropped 2 of 6 perturbations without a feature vector: P4, P5; {told}" in notes


def test_controls_spelled_otherwise_in_one_file_are_no_perturbation(tmp_path: Path) -> None:
    tiny = write_tiny(tmp_path)
    path = next(iter(tiny.files.values()))
    cells = anndata.read_h5ad(path)
    cells.obs["target_gene"] = cells.obs["target_gene"].cat.rename_categories(str.title)
    cells.write_h5ad(path)
    with pytest.raises(UserError, match="has 'Non-Targeting' beside the control 'non-targeting'"):
        open_data(tiny, **{"data.kwargs.missing_features": "drop"})


def test_the_sizes_of_conditions_are_said(tmp_path: Path) -> None:
    tiny = write_tiny(tmp_path)
    said = "conditions (cell type × perturbation): 9 train, 2 val, 7 test, of"
    assert f"{said} 10 cells each" in open_data(tiny).notes
    anndata.read_h5ad(tiny.files["gamma"])[:91].copy().write_h5ad(tiny.files["gamma"])
    assert f"{said} 1 to 10 cells" in open_data(tiny).notes


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "model.kwargs.pert_dim",
            5120,
            "feature vectors have width 8; set model.kwargs.pert_dim=8",
        ),
        ("data.kwargs.pert_col", "gene", "no column 'gene'; set data.kwargs.pert_col; did you"),
        ("data.kwargs.batch_col", "run", "no column 'run'; set data.kwargs.batch_col; known"),
        ("data.kwargs.toml_config_path", "no.toml", "no.toml does not exist"),
        ("data.kwargs.perturbation_features_file", "no.pt", "no.pt does not exist"),
        ("data.kwargs.toml_config_path", None, "toml_config_path is not set"),
    ],
)
def test_mistakes_are_refused_before_the_encoder(
    tmp_path: Path, key: str, value: object, message: str
) -> None:
    encoder = MeanEncoder()
    with pytest.raises(UserError, match=message):
        open_data(write_tiny(tmp_path), encoder, **{key: value})
    assert encoder.encoded == 0


def test_dimensions_are_checked_against_the_data(tmp_path: Path) -> None:
    tiny = write_tiny(tmp_path)
    wrong = {"model.kwargs.input_dim": 61, "model.kwargs.output_dim": 61}
    with pytest.raises(UserError, match=r"input_dim=61.*set model.kwargs.input_dim=60 model"):
        open_data(tiny, **wrong)
    free = dict.fromkeys(("model.kwargs.input_dim", "model.kwargs.output_dim"))
    assert open_data(tiny, **free).n_genes == 60


def test_the_fingerprint_follows_the_cells_and_the_split(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "c").mkdir()
    first = open_data(write_tiny(tmp_path / "a")).fingerprint
    assert open_data(write_tiny(tmp_path / "b")).fingerprint == first
    assert open_data(write_tiny(tmp_path / "c", seed=1)).fingerprint != first


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "must hold a dict of perturbation name -> tensor, written by torch.save$"),
        ({"P0": np.zeros(2)}, "not a readable tensor file: it must hold a dict .* torch.save$"),
        ({"P0": torch.zeros(2, 2)}, "'P0' is not a one-dimensional tensor"),
        ({"P0": torch.zeros(2), "P1": torch.zeros(3)}, "'P1' has 3 values, others 2"),
        ({"P0": torch.tensor([1.0, torch.nan])}, "'P0' holds NaN"),
    ],
)
def test_bad_feature_files_are_named(tmp_path: Path, content: object, message: str) -> None:
    tiny = write_tiny(tmp_path)
    torch.save(content, tiny.features)
    with pytest.raises(UserError, match=message):
        open_data(tiny)


def test_a_text_file_is_no_feature_file(tmp_path: Path) -> None:
    tiny = write_tiny(tmp_path)
    for text in ("hello", "P0,0.1,0.2"):
        tiny.features.write_text(text)
        with pytest.raises(UserError, match=r"features.pt is not a readable tensor file: it must"):
            open_data(tiny)


def test_features_may_be_parameters_or_sparse(tmp_path: Path) -> None:
    tiny = write_tiny(tmp_path)
    plain = read_features(tiny.features)
    vectors = torch.load(tiny.features, weights_only=True)
    for change in (torch.nn.Parameter, torch.Tensor.to_sparse):
        torch.save({name: change(vector) for name, vector in vectors.items()}, tiny.features)
        read = read_features(tiny.features)
        assert all(np.array_equal(read[name], plain[name]) for name in plain)


class Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("hostile-was-here"),))  # type: ignore[return-value]


def test_a_hostile_feature_file_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = write_tiny(tmp_path)
    torch.save({"P0": Hostile()}, tiny.features)
    with pytest.raises(UserError, match="not a readable tensor file"):
        open_data(tiny)
    assert not (tmp_path / "hostile-was-here").exists()


def test_cells_whose_batch_has_no_control_are_told_of(tmp_path: Path) -> None:
    tiny = write_tiny(tmp_path)
    assert not any("no control of their" in note for note in open_data(tiny).notes)
    cells = anndata.read_h5ad(tiny.files["beta"])
    lonely = (cells.obs["target_gene"] == "P3").to_numpy()
    cells.obs["batch_var"] = np.where(lonely, "b9", "b1")
    cells.write_h5ad(tiny.files["beta"])
    told = "10 of 180 perturbed cells have no control of their batch_var"
    assert any(told in note for note in open_data(tiny).notes)


def test_a_batch_in_several_files_is_told_of(tmp_path: Path) -> None:
    tiny = write_tiny(tmp_path, split=SPLIT.replace("beta,", "beta,beta2,"))
    cells = anndata.read_h5ad(tiny.files["beta"])
    cells[:70].write_h5ad(tiny.files["beta"])
    other = cells[70:].copy()
    other.write_h5ad(tmp_path / "beta2.h5ad")
    [told] = [note for note in open_data(tiny).notes if "in several files" in note]
    batches = cells.obs["batch_var"].nunique()
    assert f"{batches} of {3 * batches} batches (e.g. batch_var '" in told
    other.obs["batch_var"] = "beta2-" + other.obs["batch_var"].astype(str)
    other.write_h5ad(tmp_path / "beta2.h5ad")
    assert not any("in several files" in note for note in open_data(tiny).notes)
