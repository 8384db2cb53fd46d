"""What `predict --vcc` writes, as the real `cell-eval prep` takes it."""

import importlib.util
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from sesttune import predicted_file
from sesttune.config.load import load_config
from sesttune.errors import UserError
from sesttune.predicted_file import check_memory, check_vcc, without_x, write_predicted, write_vcc

GENES = ["B", "A,1", "C"]
LABELS = ["safe", "P0", "P1", "P0", "safe"]
OTHER_NAMES = {"data.kwargs.pert_col": "gene", "data.kwargs.control_pert": "safe"}
EXPRESSION = np.array(
    [[0, 0.5, 2.25], [1e-30, 0, 3.125], [0, 0, 0], [7.1, 14.9, 0], [0.1, 0, 0]], np.float32
)
ABOUT: dict[str, Any] = {"genes": GENES, "encoder": {"label": "tiny encoder"}, "step": 7}


def entry(
    source: Path, output: Path, expression: np.ndarray = EXPRESSION, **settings: object
) -> str:
    kwargs = load_config(base=settings).data.kwargs
    return write_vcc(without_x(source, ABOUT), output, expression, kwargs)


def cells(path: Path, labels: list[str], column: str = "gene", **more: object) -> Path:
    """Cells with more genes than the model's, in another order."""
    obs = pd.DataFrame({column: pd.Categorical(labels), "depth": np.arange(len(labels)), **more})
    obs.index = pd.Index([f"cell{i}" for i in range(len(labels))])
    var = pd.DataFrame({"id": ["3", "0", "1", "2"]}, index=["C", "extra", "A,1", "B"])
    anndata.AnnData(np.ones((len(labels), 4), np.float32), obs, var).write_h5ad(path)
    return path


def test_more_cells_than_memory_holds_are_refused_at_once(tmp_path: Path) -> None:
    source = cells(tmp_path / "in.h5ad", LABELS)
    check_memory(source, len(GENES))
    with pytest.raises(UserError, match=r"in.h5ad: predictions for 5 cells of .* take 2e\+04 GB"):
        check_memory(source, 10**12)


def test_an_entry_is_sparse_and_named_as_prep_expects_without_a_changed_value(
    tmp_path: Path,
) -> None:
    source = cells(tmp_path / "in.h5ad", LABELS)
    command = entry(source, tmp_path / "o.h5ad", **OTHER_NAMES)
    assert shlex.split(command) == [
        *("cell-eval", "prep", "-i", str(tmp_path / "o.h5ad")),
        *("-g", str(tmp_path / "o.genes.csv")),
    ]
    assert pd.read_csv(tmp_path / "o.genes.csv", header=None)[0].to_list() == GENES
    found = anndata.read_h5ad(tmp_path / "o.h5ad")
    assert isinstance(found.X, sparse.csr_matrix)
    assert found.X.dtype == np.float32
    assert np.array_equal(found.X.toarray(), EXPRESSION)
    assert found.X.nnz == np.count_nonzero(EXPRESSION)
    assert found.var_names.to_list() == GENES
    assert found.var["id"].to_list() == ["2", "1", "3"]
    assert found.obs.columns.to_list() == ["target_gene", "depth"]
    expected = [label.replace("safe", "non-targeting") for label in LABELS]
    assert found.obs["target_gene"].to_list() == expected
    assert found.uns["sesttune"]["encoder"] == "tiny encoder"


@pytest.mark.filterwarnings("error")
def test_names_of_cells_that_anndata_warns_of_are_written_as_they_are(tmp_path: Path) -> None:
    source = cells(tmp_path / "in.h5ad", LABELS)
    for names in (np.arange(5), np.array([b"a", b"b", b"a", b"c", b"d"])):
        with h5py.File(source, "r+") as file:
            del file["obs/_index"]
            file["obs/_index"] = names
        write_predicted(without_x(source, ABOUT), tmp_path / "o.h5ad", EXPRESSION)
        with h5py.File(tmp_path / "o.h5ad") as file:
            assert file["obs/_index"].asstr()[:].tolist() == names.astype(str).tolist()


def test_without_vcc_obs_and_var_are_the_inputs(tmp_path: Path) -> None:
    source = cells(tmp_path / "in.h5ad", LABELS)
    write_predicted(without_x(source, ABOUT), tmp_path / "o.h5ad", EXPRESSION)
    found, given = anndata.read_h5ad(tmp_path / "o.h5ad"), anndata.read_h5ad(source)
    assert found.obs.equals(given.obs)
    assert found.var.equals(given.var.loc[GENES])
    assert np.array_equal(found.X, EXPRESSION)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.h5ad", "o.h5ad"]


def test_text_that_may_be_missing_is_written_as_it_was_read(tmp_path: Path) -> None:
    source = cells(tmp_path / "in.h5ad", LABELS)
    given = anndata.read_h5ad(source)
    for frame in (given.obs, given.var):
        frame["note"] = pd.array([f"n{i}" for i in range(len(frame))], dtype="string")
    with anndata.settings.override(allow_write_nullable_strings=True):
        given.write_h5ad(source, convert_strings_to_categoricals=False)
    write_predicted(without_x(source, ABOUT), tmp_path / "o.h5ad", EXPRESSION)
    found = anndata.read_h5ad(tmp_path / "o.h5ad")
    for now, then in ((found.obs, given.obs), (found.var, given.var.loc[GENES])):
        assert now["note"].to_dict() == then["note"].to_dict()


@pytest.mark.parametrize("which", ["obs", "var"])
def test_what_anndata_reads_and_does_not_write_is_refused_first(tmp_path: Path, which: str) -> None:
    source = cells(tmp_path / "in.h5ad", LABELS)
    with h5py.File(source, "r+") as file:  # as of a file made from Seurat's
        frame = file[which]
        frame["names"] = frame["_index"][:]
        frame.attrs["_index"] = "names"
        frame.attrs["column-order"] = [*frame.attrs["column-order"], "_index"]
    with pytest.raises(UserError, match=f"in.h5ad: {which} cannot be written again .'_index' is a"):
        without_x(source, ABOUT)


@pytest.mark.parametrize(
    ("labels", "more", "settings", "message"),
    [
        (["P0", "P1"], {}, {}, "no cell in obs 'gene' is the control 'non-targeting'"),
        (["safe"] * 6, {}, OTHER_NAMES, "has 6 cells, cell-eval prep takes at most 5"),
        (["safe", "P0"], {"target_gene": "x"}, OTHER_NAMES, "obs has such a column already"),
        (["safe", "non-targeting"], {}, OTHER_NAMES, "but a perturbation has that name"),
    ],
)
def test_what_prep_would_refuse_is_refused_first(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    labels: list[str],
    more: dict[str, object],
    settings: dict[str, object],
    message: str,
) -> None:
    monkeypatch.setattr(predicted_file, "VCC_CELLS", 5)
    source = cells(tmp_path / "in.h5ad", labels, **more)
    kwargs = load_config(base={"data.kwargs.pert_col": "gene", **settings}).data.kwargs
    with pytest.raises(UserError, match=message):
        check_vcc(source, kwargs)


@pytest.mark.parametrize(
    ("total", "fix"),
    [
        (1e4, "no cell has more than 9.21: the head is not trained enough"),
        (1e7, "train with a smaller data.kwargs.target_sum"),
    ],
)
def test_values_too_large_are_refused_and_nothing_is_written(
    tmp_path: Path, total: float, fix: str
) -> None:
    source = cells(tmp_path / "in.h5ad", LABELS)
    settings = {**OTHER_NAMES, "data.kwargs.target_sum": total}
    with pytest.raises(UserError, match=f"go up to 15, cell-eval prep takes .* below 15: {fix}"):
        entry(source, tmp_path / "o.h5ad", EXPRESSION + np.float32(0.1), **settings)
    assert [p.name for p in tmp_path.iterdir()] == ["in.h5ad"]


@pytest.mark.skipif(
    importlib.util.find_spec("cell_eval") is None, reason="cell-eval (extra `eval`) is missing"
)
@pytest.mark.skipif(shutil.which("zstd") is None, reason="cell-eval prep needs zstd")
@pytest.mark.parametrize("settings", [OTHER_NAMES, {}])
def test_the_real_prep_takes_it_as_it_is(tmp_path: Path, settings: dict[str, object]) -> None:
    kwargs = load_config(base=settings).data.kwargs
    labels = [kwargs.control_pert if label == "safe" else label for label in LABELS]
    source = cells(tmp_path / "in.h5ad", labels, kwargs.pert_col)
    check_vcc(source, kwargs)
    command = entry(source, tmp_path / "o.h5ad", **settings)
    call = [sys.executable, "-m", "cell_eval", *shlex.split(command)[1:]]
    done = subprocess.run(call, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    shutil.unpack_archive(tmp_path / "o.prep.vcc", tmp_path, "tar")
    subprocess.run(["zstd", "-q", "-d", str(tmp_path / "pred.h5ad.zst")], check=True)
    packed = anndata.read_h5ad(tmp_path / "pred.h5ad")
    assert np.array_equal(packed.X.toarray(), EXPRESSION), "prep took it for log1p values"
    assert packed.var_names.to_list() == GENES
    expected = [label.replace("safe", "non-targeting") for label in LABELS]
    assert packed.obs["target_gene"].to_list() == expected
