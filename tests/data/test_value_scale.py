import re
from pathlib import Path

import anndata
import numpy as np
import pytest
from helpers.tiny_data import write_tiny
from scipy import sparse

from sesttune.config.schema import DataKwargs
from sesttune.data.store_builder import SourceFile, build_store
from sesttune.data.value_scale import ValueScale, scale_notes, unlike_training
from sesttune.errors import UserError

KWARGS = DataKwargs()


def log1p_of(path: Path, total: float) -> None:
    """Make the counts of a file log1p values of `total` counts a cell, the first cell empty."""
    cells = anndata.read_h5ad(path)
    x = cells.X.toarray()
    x[0] = 0
    cells.X = sparse.csr_matrix(np.log1p(x / np.maximum(x.sum(1, keepdims=True), 1) * total))
    cells.write_h5ad(path)


@pytest.mark.parametrize(("total", "told"), [(10_000, False), (1_500, True)])
def test_files_on_other_scales_are_told_of(tmp_path: Path, total: float, told: bool) -> None:
    files = write_tiny(tmp_path).files
    log1p_of(files["beta"], total)
    sources = [SourceFile(files[name], "t") for name in ("alpha", "beta")]
    notes = build_store(sources, KWARGS, tmp_path / "c").notes
    assert (
        f"beta.h5ad: 100 cells (1 without a count), log1p values of {total:,} counts a cell"
        in notes
    )
    about = "alpha.h5ad of 10,000 counts a cell, beta.h5ad of 1,500"
    assert any(about in note for note in notes) == told


def test_of_a_single_scale_nothing_is_told(tmp_path: Path) -> None:
    path = write_tiny(tmp_path).files["beta"]
    log1p_of(path, 1_500)
    notes = build_store([SourceFile(path, "t")], KWARGS, tmp_path / "c").notes
    assert notes == [
        "beta.h5ad: 100 cells (1 without a count), log1p values of 1,500 counts a cell"
    ]


@pytest.mark.parametrize(
    ("here", "trained", "told"),
    [
        ([10_000, 10_000], [10_000, 10_000], None),
        ([7_000, 14_000], [10_000, 10_000], None),
        ([2_500, 10_000], [2_500, 10_000], None),
        (
            [2_500, 10_000],
            [10_000, 10_000],
            "2,500 counts a cell, where the model was trained on 10,",
        ),
        ([10_000, 10_000], [2_500, 4_000], "10,000 counts a cell, where .* on 2,500 to 4,000, and"),
        ([], [10_000, 10_000], None),
        ([10_000, 10_000], [], None),
    ],
)
def test_what_is_said_of_cells_unlike_those_of_training(here, trained, told):
    found = unlike_training(here, trained)
    assert found is None if told is None else re.search(told, found)


@pytest.mark.parametrize("made", [bool, np.float32])
def test_counts_made_yes_or_no_are_told_of(tmp_path: Path, made: type) -> None:
    path = write_tiny(tmp_path).files["beta"]
    cells = anndata.read_h5ad(path)
    cells.layers["counts"] = cells.X.copy()
    cells.X = (cells.X.toarray() > 0).astype(made)
    cells.write_h5ad(path)
    notes = build_store([SourceFile(path, "t")], KWARGS, tmp_path / "c").notes
    assert notes == [
        "beta.h5ad: 100 cells, raw counts",
        "beta.h5ad: X holds 0 and 1 alone, as if counts had been made yes or no; give counts (copy "
        "them into X, if layers['counts'] has them)",
    ]


def test_logarithms_to_another_base_are_told_of(tmp_path: Path) -> None:
    path = write_tiny(tmp_path).files["beta"]
    log1p_of(path, 1_000_000)
    assert len(build_store([SourceFile(path, "t")], KWARGS, tmp_path / "c").notes) == 1
    cells = anndata.read_h5ad(path)
    cells.X = cells.X / np.log(2)
    cells.write_h5ad(path)
    notes = build_store([SourceFile(path, "t")], KWARGS, tmp_path / "c").notes
    assert re.search(r"beta.h5ad: log1p values of \S+ counts a cell are more .*log2", notes[1])


def test_a_store_knows_the_counts_of_a_cell(tmp_path: Path) -> None:
    files = write_tiny(tmp_path).files
    log1p_of(files["beta"], 1_500)
    sources = [SourceFile(files[name], "t") for name in ("alpha", "beta")]
    found = build_store(sources, KWARGS, tmp_path / "c").counts_a_cell
    assert found == [pytest.approx(1_500), 10_000]


def test_a_file_without_values_has_no_scale() -> None:
    empty = ValueScale(Path("x.h5ad"))
    empty.add(sparse.csr_matrix((3, 4), dtype=np.float32))
    assert empty.decide("log1p") == "log1p"
    assert str(empty) == "log1p values"
    assert scale_notes([empty], 10_000.0) == []


def test_values_that_are_not_what_they_are_said_to_be_are_refused() -> None:
    large = ValueScale(Path("x.h5ad"))
    large.add(sparse.csr_matrix(np.array([[0.5, 35.5]], np.float32)))
    with pytest.raises(UserError, match=r"x.h5ad: X is neither whole counts .* value 35.5\)"):
        large.decide("auto")
    with pytest.raises(UserError, match="counts=log1p, but X has the value 35.5"):
        large.decide("log1p")
    assert large.decide("raw") == "raw"


def test_the_scale_of_a_file_is_that_of_its_first_cells_and_yes_or_no_is_of_all() -> None:
    found = ValueScale(Path("x.h5ad"))
    for value in (0.5, 1.0):
        found.add(sparse.csr_matrix(np.array([[value]], np.float32)))
    found.decide("auto")
    assert found.sum_of_a_cell(10_000.0) == pytest.approx(np.expm1(0.5))
    assert not found.binary
