from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from helpers.small_h5ad import COUNTS, write
from scipy import sparse

from sesttune.data.h5ad import H5adFile
from sesttune.errors import UserError


@pytest.mark.parametrize("encode", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32])
@pytest.mark.parametrize("block_rows", [1, 3, 100])
def test_values_whatever_the_encoding(
    tmp_path: Path, encode: object, dtype: type, block_rows: int
) -> None:
    path = write(tmp_path / "x.h5ad", encode(COUNTS.astype(dtype)))  # type: ignore[operator]
    with H5adFile(path) as file:
        blocks = list(file.iter_csr(block_rows=block_rows))
        picked = list(file.iter_csr(np.array([0, 3]), block_rows))
    assert np.array_equal(sparse.vstack(blocks).toarray(), COUNTS)
    assert np.array_equal(sparse.vstack(picked).toarray(), COUNTS[[0, 3]])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pd.Categorical(["u", "v", "u", "v"]), ["u", "v", "u", "v"]),
        (["p", "q", "r", "s"], ["p", "q", "r", "s"]),
        ([1, 2, 3, 4], ["1", "2", "3", "4"]),
        ([1.0, 2.0, 3.0, 4.0], ["1", "2", "3", "4"]),
        (pd.Categorical([1.0, 0.0, 1.0, 0.0]), ["1", "0", "1", "0"]),
        ([1.0, 2.5, 3.0, 4.0], ["1.0", "2.5", "3.0", "4.0"]),
        ([1e300, 2e300, 3e300, 0.0], ["1e+300", "2e+300", "3e+300", "0.0"]),
        ([True, False, True, True], ["True", "False", "True", "True"]),
    ],
)
def test_obs_columns_of_every_kind(tmp_path: Path, values: object, expected: list[str]) -> None:
    with H5adFile(write(tmp_path / "x.h5ad", col=values)) as file:
        assert file.obs("col").tolist() == expected


def test_var_names_and_columns(tmp_path: Path) -> None:
    with H5adFile(write(tmp_path / "x.h5ad")) as file:
        assert file.var_names == ["g0", "g1", "g2", "g3"]
        assert file.var_columns() == {"symbol": ["A", "B", "C", "D"]}
        assert file.obsm("X_state") is None


def test_a_var_column_that_cannot_be_read_is_passed_over_and_named(tmp_path: Path) -> None:
    path = write(tmp_path / "x.h5ad")
    with h5py.File(path, "r+") as file:
        file["var"].attrs["column-order"] = ["odd", "symbol"]
        file["var/odd"] = [1, 2, 3, 4]
        file["var/odd"].attrs.update({"encoding-type": "of-tomorrow", "encoding-version": "9"})
    with H5adFile(path) as file:
        assert file.var_columns() == {"symbol": ["A", "B", "C", "D"]}
        [told] = file.unreadable_var()
        assert f"{path}: var column 'odd' cannot be read (" in told
        with pytest.raises(UserError, match="var column 'odd' cannot be read"):
            file.frame("var")


def test_missing_column_names_the_nearest(tmp_path: Path) -> None:
    with (
        H5adFile(write(tmp_path / "x.h5ad", target_gene=list("abcd"))) as file,
        pytest.raises(UserError, match=r"x.h5ad: obs has no column 'target_gen'.*'target_gene'"),
    ):
        file.obs("target_gen")


def test_empty_labels_are_refused(tmp_path: Path) -> None:
    labels = pd.Categorical(["a", None, "b", ""])
    with H5adFile(write(tmp_path / "x.h5ad", col=labels, text=["", "a", "b", ""])) as file:
        for column in ("col", "text"):
            with pytest.raises(UserError, match=f"'{column}' is empty for 2 cells; label them"):
                file.obs(column)


def test_a_file_without_cells_or_genes_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "x.h5ad")
    for what, where in {"cell": np.s_[:0, :], "gene": np.s_[:, :0]}.items():
        anndata.read_h5ad(tmp_path / "x.h5ad")[where].copy().write_h5ad(tmp_path / "none.h5ad")
        with pytest.raises(UserError, match=f"none.h5ad holds no {what}: leave the file out"):
            H5adFile(tmp_path / "none.h5ad")


def test_a_column_that_cannot_be_read_stops_only_what_needs_it(tmp_path: Path) -> None:
    path = write(tmp_path / "x.h5ad", col=list("abcd"), odd=[1, 2, 3, 4], short=[1, 2, 3, 4])
    with h5py.File(path, "r+") as file:
        file["obs/odd"].attrs.update({"encoding-type": "of-tomorrow", "encoding-version": "9"})
        attributes = dict(file["obs/short"].attrs)
        del file["obs/short"]
        file["obs/short"] = [1, 2, 3]
        file["obs/short"].attrs.update(attributes)
    with H5adFile(path) as file:
        assert file.obs("col").tolist() == list("abcd")
        assert file.obs_columns == ["col", "odd", "short"]
        for column in ("odd", "short"):
            named = rf"x.h5ad: obs column '{column}' cannot be read \(.+\): write it again, or drop"
            with pytest.raises(UserError, match=named) as refused:
                file.obs(column)
            assert "\n" not in str(refused.value)
        with pytest.raises(UserError, match="obs column 'odd' cannot be read"):
            file.frame("obs")


def test_labels_as_anndata_0_7_wrote_them(tmp_path: Path) -> None:
    labels = pd.Categorical(["u", None, "u", "w"], categories=["w", "v", "u"], ordered=True)
    path = write(tmp_path / "x.h5ad", col=["a"] * 4, number=[1.5, 2, 3, 4])
    with h5py.File(path, "r+") as file:
        frame = file["obs"]
        frame.attrs["encoding-version"] = "0.1.0"
        frame.attrs["column-order"] = ["number", "label"]
        del frame["col"]
        frame["__categories/label"] = labels.categories.to_numpy(dtype=object)
        frame["__categories/label"].attrs["ordered"] = True
        frame["label"] = labels.codes
        frame["label"].attrs["categories"] = frame["__categories/label"].ref
    with H5adFile(path) as file:
        found = file.frame("obs")
    assert found["label"].array.equals(labels)
    pd.testing.assert_frame_equal(found, anndata.read_h5ad(path).obs)


def test_infinite_labels_are_refused(tmp_path: Path) -> None:
    with (
        H5adFile(write(tmp_path / "x.h5ad", col=[1.0, np.inf, 2.0, 3.0])) as file,
        pytest.raises(UserError, match="x.h5ad: obs column 'col' holds infinity"),
    ):
        file.obs("col")


def test_obsm_is_a_matrix_of_numbers(tmp_path: Path) -> None:
    cells = anndata.AnnData(X=COUNTS)
    frame = pd.DataFrame({"a": list("wxyz")}, index=cells.obs_names)
    cells.obsm = {"text": frame, "deep": COUNTS[:, :, None], "sparse": sparse.csr_matrix(COUNTS)}
    cells.write_h5ad(tmp_path / "x.h5ad")
    with h5py.File(tmp_path / "x.h5ad", "r+") as file:
        file["obsm/odd"] = COUNTS
        file["obsm/odd"].attrs.update({"encoding-type": "of-tomorrow", "encoding-version": "9"})
    with H5adFile(tmp_path / "x.h5ad") as file:
        assert np.array_equal(file.obsm("sparse"), COUNTS)
        for key in ("text", "deep"):
            with pytest.raises(UserError, match=rf"x.h5ad: obsm\['{key}'\] is no matrix of num"):
                file.obsm(key)
        with pytest.raises(UserError, match=r"x.h5ad: cannot read obsm\['odd'\]") as refused:
            file.obsm("odd")
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("encode", [sparse.csr_matrix, sparse.csc_matrix])
def test_a_stored_zero_is_no_value(tmp_path: Path, encode: type) -> None:
    path = write(tmp_path / "x.h5ad", encode(COUNTS + 1))
    with h5py.File(path, "r+") as file:
        file["X/data"][:] = file["X/data"][:] - 1
    with H5adFile(path) as file:
        (block,) = file.iter_csr()
    assert block.nnz == np.count_nonzero(COUNTS)
    assert np.array_equal(block.toarray(), COUNTS)


def test_negative_values_are_refused_with_where_counts_may_be(tmp_path: Path) -> None:
    cells = anndata.AnnData(X=COUNTS - 1, layers={"counts": COUNTS})
    cells.raw = anndata.AnnData(X=COUNTS)
    cells.write_h5ad(tmp_path / "x.h5ad")
    with H5adFile(tmp_path / "x.h5ad") as file:
        (block,) = file.iter_csr()
        with pytest.raises(UserError, match=r"x.h5ad: X holds neg.*layers\['counts'\] or raw.X"):
            file.refuse_negative(block)
    del cells.raw
    del cells.X
    cells.write_h5ad(tmp_path / "x.h5ad")
    with pytest.raises(UserError, match=r"lacks X \(copy them into X, if layers\['counts'\] has"):
        H5adFile(tmp_path / "x.h5ad")


def test_nan_values_are_refused(tmp_path: Path) -> None:
    bad = COUNTS.copy()
    bad[1, 0] = np.nan
    with (
        H5adFile(write(tmp_path / "x.h5ad", sparse.csr_matrix(bad))) as file,
        pytest.raises(UserError, match=r"x.h5ad: X holds NaN"),
    ):
        list(file.iter_csr())


@pytest.mark.parametrize("encode", [np.asarray, sparse.csr_matrix])
def test_complex_values_are_refused(tmp_path: Path, encode: object) -> None:
    path = write(tmp_path / "x.h5ad", encode(COUNTS * (1 + 1j)))  # type: ignore[operator]
    with pytest.raises(UserError, match="x.h5ad: X holds values of type complex64, not real"):
        H5adFile(path)


def test_an_encoding_that_is_not_known_is_not_taken_for_another(tmp_path: Path) -> None:
    path = write(tmp_path / "x.h5ad", sparse.csr_matrix(COUNTS))
    with h5py.File(path, "r+") as file:
        file["X"].attrs["encoding-type"] = "bsr_matrix"
    with pytest.raises(UserError, match="X has the unknown encoding 'bsr_matrix'; write it with"):
        H5adFile(path)


def test_duplicate_genes_are_refused(tmp_path: Path) -> None:
    cells = anndata.AnnData(X=COUNTS, var=pd.DataFrame(index=["A", "B", "A", "C"]))
    cells.write_h5ad(tmp_path / "x.h5ad")
    with (
        H5adFile(tmp_path / "x.h5ad") as file,
        pytest.raises(UserError, match="1 gene names occur more than once.*'A'"),
    ):
        file.unique_genes()


def test_a_gene_that_a_row_holds_twice_counts_once(tmp_path: Path) -> None:
    path = write(tmp_path / "x.h5ad", sparse.csr_matrix(COUNTS))
    with h5py.File(path, "r+") as file:
        file["X/indices"][1] = file["X/indices"][0]  # 2 and 5 of the first cell, both of gene 1
    with H5adFile(path) as file:
        (block,) = file.iter_csr()
    assert block.has_canonical_format
    assert block[0].toarray().tolist() == [[0, 7, 0, 0]]


@pytest.mark.parametrize("encode", [sparse.csr_matrix, sparse.csc_matrix])
@pytest.mark.parametrize(
    ("part", "place", "value", "message"),
    [
        ("indices", 3, 4, "X/indices names 4"),
        ("indices", 3, -1, "X/indices names"),
        ("indptr", 1, 99, "X/indptr is damaged"),
        ("indptr", 4, 99, "X/indptr is damaged"),
    ],
)
def test_damaged_indices_are_refused_not_followed(
    tmp_path: Path, encode: object, part: str, place: int, value: int, message: str
) -> None:
    path = write(tmp_path / "x.h5ad", encode(COUNTS))  # type: ignore[operator]
    with h5py.File(path, "r+") as file:
        file[f"X/{part}"][place] = value
    with H5adFile(path) as file, pytest.raises(UserError, match=f"x.h5ad: {message}"):
        list(file.iter_csr())


def test_parts_that_do_not_fit_are_refused_when_the_file_is_opened(tmp_path: Path) -> None:
    def cut(name: str, length: int) -> None:
        with h5py.File(path, "r+") as file:
            kept = file[name][:length]
            attributes = dict(file[name].attrs)
            del file[name]
            file[name] = kept
            file[name].attrs.update(attributes)

    for name, message in {
        "X/data": "its parts do not fit",
        "X/indptr": "its parts do not fit",
        "obs/_index": "obs has 3 rows, X is of 4",
        "var/_index": "var has 3 rows, X is of 4",
    }.items():
        path = write(tmp_path / "x.h5ad", sparse.csr_matrix(COUNTS))
        cut(name, 3)
        with pytest.raises(UserError, match=f"x.h5ad: .*{message}"):
            H5adFile(path)
    path = write(tmp_path / "x.h5ad", sparse.csr_matrix(COUNTS))
    with h5py.File(path, "r+") as file:
        del file["X/indices"]
    with pytest.raises(UserError, match="X lacks its indices"):
        H5adFile(path)


@pytest.mark.parametrize("encode", [np.asarray, sparse.csr_matrix])
def test_a_file_of_before_anndata_0_7_is_to_be_written_again(
    tmp_path: Path, encode: object
) -> None:
    path = write(tmp_path / "x.h5ad", encode(COUNTS))  # type: ignore[operator]
    with h5py.File(path, "r+") as file:
        if encode is sparse.csr_matrix:
            for name in list(file["X"].attrs):
                del file["X"].attrs[name]
            file["X"].attrs.update({"h5sparse_format": "csr", "h5sparse_shape": COUNTS.shape})
        del file["obs"]
        file["obs"] = np.array([(b"c0", 1)] * 4, dtype=[("index", "S2"), ("gene", "i4")])
    with pytest.raises(UserError, match="obs is not as anndata 0.7 and later write it"):
        H5adFile(path)
