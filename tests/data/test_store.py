from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from helpers.tiny_data import CONTROL, N_GENES, write_cells, write_tiny
from scipy import sparse

from sesttune.config.schema import DataKwargs
from sesttune.data import growing_array
from sesttune.data.store import CellStore
from sesttune.data.store_builder import SourceFile, build_store
from sesttune.errors import UserError

KWARGS = DataKwargs()


def normalised(counts: np.ndarray, target: float = 10_000.0) -> np.ndarray:
    return np.log1p(counts / np.maximum(counts.sum(1, keepdims=True), 1) * target)


def test_dense_is_log1p_of_normalised_counts(tmp_path: Path) -> None:
    files = [SourceFile(p, "tiny") for p in write_tiny(tmp_path).files.values()]
    store = build_store(files, KWARGS, tmp_path / "cache")
    expected = np.vstack([normalised(anndata.read_h5ad(f.path).X.toarray()) for f in files])
    rows = np.random.default_rng(0).permutation(store.n_cells)
    assert np.abs(store.dense(rows) - expected[rows]).max() < 1e-5
    assert store.values.dtype == np.uint16  # whole counts take two bytes
    assert store.indices.dtype == np.uint16
    assert store.is_control.sum() == 120


@pytest.mark.parametrize("encoding", ["csc", "dense"])
def test_the_encoding_of_x_does_not_matter(tmp_path: Path, encoding: str) -> None:
    folders = tmp_path / "a", tmp_path / "b"
    stores = []
    for folder, kind in zip(folders, ("csr", encoding), strict=True):
        folder.mkdir()
        files = [SourceFile(p, "t") for p in write_tiny(folder, encoding=kind).files.values()]
        stores.append(build_store(files, KWARGS, folder / "cache"))
    assert stores[0].fingerprint == stores[1].fingerprint
    everything = np.arange(stores[0].n_cells)
    assert np.array_equal(stores[0].dense(everything), stores[1].dense(everything))


def test_log1p_values_are_detected_and_kept(tmp_path: Path) -> None:
    path = write_tiny(tmp_path).files["alpha"]
    cells = anndata.read_h5ad(path)
    logged = normalised(cells.X.toarray()).astype(np.float32)
    cells.X = sparse.csr_matrix(logged)
    cells.write_h5ad(path)
    store = build_store([SourceFile(path, "t")], KWARGS, tmp_path / "cache")
    assert store.files[0]["values"] == "log1p"
    assert np.array_equal(store.dense(np.arange(100)), logged)
    assert store.values.dtype == np.float32  # half precision would lose digits


def test_detection_can_be_overridden(tmp_path: Path) -> None:
    path = write_tiny(tmp_path).files["alpha"]
    store = build_store([SourceFile(path, "t")], DataKwargs(counts="log1p"), tmp_path / "c")
    counts = anndata.read_h5ad(path).X.toarray()
    assert np.array_equal(store.dense(np.arange(100)), counts)


def test_values_on_another_scale_are_other_data(tmp_path: Path) -> None:
    path = write_tiny(tmp_path).files["alpha"]

    def fingerprint(source: Path, **more: object) -> str:
        kwargs = DataKwargs(**more)  # type: ignore[arg-type]
        return build_store([SourceFile(source, "t")], kwargs, tmp_path / "c").fingerprint

    raw = fingerprint(path)
    assert fingerprint(path, counts="raw") == raw
    assert len({raw, fingerprint(path, target_sum=1e6), fingerprint(path, counts="log1p")}) == 3
    cells = anndata.read_h5ad(path)
    cells.X = sparse.csr_matrix(normalised(cells.X.toarray()).astype(np.float32))
    cells.write_h5ad(logged := tmp_path / "logged.h5ad")
    assert fingerprint(logged) == fingerprint(logged, target_sum=1e6)  # taken as they are


def test_genes_are_aligned_by_name(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = ["non-targeting", "P0"] * 5
    first = write_cells(tmp_path / "a.h5ad", rng, labels, "x", ["A", "B", "C", "D"])
    second = write_cells(tmp_path / "b.h5ad", rng, labels, "y", ["D", "E", "B", "A"])
    store = build_store(
        [SourceFile(first, "t"), SourceFile(second, "t")], KWARGS, tmp_path / "cache"
    )
    assert store.genes == ["A", "B", "D"]
    assert any("3 genes common" in note for note in store.notes)
    # The library size is that of the whole cell, not of the kept genes.
    whole = normalised(anndata.read_h5ad(second).X.toarray())
    assert np.abs(store.dense(np.arange(10, 20)) - whole[:, [3, 2, 0]]).max() < 1e-5


@pytest.mark.parametrize("count", [2**16, 2**16 + 1])
def test_more_genes_than_two_bytes_number_keep_their_places(tmp_path: Path, count: int) -> None:
    x = np.zeros((2, count), np.float32)
    x[:, -1] = x[0, 0] = 1
    obs = {"target_gene": ["non-targeting", "P0"], "cell_type": "x", "batch_var": "b"}
    cells = anndata.AnnData(
        sparse.csr_matrix(x),
        pd.DataFrame(obs, index=["a", "b"]),
        pd.DataFrame(index=np.arange(count).astype(str)),
    )
    cells.write_h5ad(tmp_path / "x.h5ad")
    store = build_store([SourceFile(tmp_path / "x.h5ad", "t")], KWARGS, tmp_path / "cache")
    assert store.indices.tolist() == [0, count - 1, count - 1]
    assert store.indices.itemsize == (2 if count == 2**16 else 4)


def test_files_that_share_no_gene_are_both_named(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = {"a": ["A", "B", "C"], "b": ["B", "A", "D"], "ens": ["ENSG1.2", "ENSG2.1", "ENSG3"]}
    files = [
        SourceFile(write_cells(tmp_path / f"{n}.h5ad", rng, ["non-targeting"], "x", genes), "t")
        for n, genes in names.items()
    ]
    message = r"common to \S+/a.h5ad \(e.g. A, B\) and \S+/ens.h5ad \(e.g. ENSG1.2, ENSG2.1\); use"
    with pytest.raises(UserError, match=message):
        build_store(files, KWARGS, tmp_path / "cache")


def test_gene_list_fixes_genes_and_order(tmp_path: Path) -> None:
    tiny = write_tiny(tmp_path)
    (tmp_path / "genes.txt").write_text("G5\nG2\n")
    files = [SourceFile(tiny.files["alpha"], "t")]
    kwargs = DataKwargs(gene_list=str(tmp_path / "genes.txt"))
    assert build_store(files, kwargs, tmp_path / "c").genes == ["G5", "G2"]
    (tmp_path / "genes.txt").write_bytes("G5\nG2\n".encode("utf-8-sig"))
    assert build_store(files, kwargs, tmp_path / "c").genes == ["G5", "G2"]
    for encoding in ("latin-1", "utf-16"):
        (tmp_path / "genes.txt").write_bytes("G5\nGé\n".encode(encoding))
        with pytest.raises(UserError, match=r"gene_list: .*genes.txt is not text in UTF-8"):
            build_store(files, kwargs, tmp_path / "c")
    (tmp_path / "genes.txt").write_text("G5\nZZ\n")
    with pytest.raises(UserError, match="lacks 1 of the 2 genes.*'ZZ'; others are .* e.g. 'G0'"):
        build_store(files, kwargs, tmp_path / "c")


def test_a_second_build_is_served_from_the_cache(tmp_path: Path) -> None:
    files = [SourceFile(p, "t") for p in write_tiny(tmp_path).files.values()]
    first = build_store(files, KWARGS, tmp_path / "cache")
    stamp = (first.folder / "values.npy").stat().st_mtime_ns
    again = build_store(files, KWARGS, tmp_path / "cache")
    assert again.folder == first.folder
    assert (again.folder / "values.npy").stat().st_mtime_ns == stamp
    other = build_store(files, DataKwargs(target_sum=1e6), tmp_path / "cache")
    assert other.folder != first.folder


def test_a_torn_cache_is_built_again(tmp_path: Path) -> None:
    files = [SourceFile(p, "t") for p in write_tiny(tmp_path).files.values()]
    store = build_store(files, KWARGS, tmp_path / "cache")
    everything = np.arange(store.n_cells)
    before = store.dense(everything)
    values = store.folder / "values.npy"
    values.write_bytes(values.read_bytes()[:-10])
    assert np.array_equal(build_store(files, KWARGS, tmp_path / "cache").dense(everything), before)
    (store.folder / "complete.json").unlink()
    assert np.array_equal(build_store(files, KWARGS, tmp_path / "cache").dense(everything), before)


def _build(paths: list[Path], cache: Path) -> str:
    return build_store([SourceFile(p, "t") for p in paths], KWARGS, cache).fingerprint


def test_concurrent_builders_agree(tmp_path: Path) -> None:
    paths = list(write_tiny(tmp_path).files.values())
    with ProcessPoolExecutor(3, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(_build, paths, tmp_path / "cache") for _ in range(3)]
        assert len({job.result() for job in jobs}) == 1
    assert len([p for p in (tmp_path / "cache" / "stores").iterdir() if p.is_dir()]) == 1


def edited(tmp_path: Path, **obs: object) -> list[SourceFile]:
    path = write_tiny(tmp_path).files["alpha"]
    cells = anndata.read_h5ad(path)
    for column, values in obs.items():
        cells.obs[column] = values
    cells.write_h5ad(path)
    return [SourceFile(path, "t")]


def test_contexts_without_controls_are_refused(tmp_path: Path) -> None:
    types = pd.Categorical(["alpha"] * 95 + ["lonely"] * 5)
    with pytest.raises(UserError, match="cell type 'lonely' has no control cells"):
        build_store(edited(tmp_path, cell_type=types), KWARGS, tmp_path / "c")
    kwargs = DataKwargs(control_pert="NTC")  # the labels of thousands of genes would hide it
    with pytest.raises(UserError, match=r"most cells are of 'non-targeting' \(40\), "):
        build_store(edited(tmp_path), kwargs, tmp_path / "c")


def test_labels_that_may_be_meant_as_one_are_told_of(tmp_path: Path) -> None:
    sources = edited(tmp_path, cell_type=["alpha"] * 10 + ["Alpha "] * 90)
    notes = build_store(sources, KWARGS, tmp_path / "c").notes
    told = "'Alpha ' and 'alpha' differ in spaces or case alone: they are not taken for the same"
    assert notes[-1] == f"obs column 'cell_type': {told}"
    labels = [CONTROL] * 40 + [pert for pert in ("a", "A", "b", "B", "c", "d") for _ in range(10)]
    notes = build_store(edited(tmp_path, target_gene=labels), KWARGS, tmp_path / "c").notes
    told = "'A' and 'a' differ in spaces or case alone, so do 1 more: they are not taken for the"
    assert notes[-1] == f"obs column 'target_gene': {told} same"


def test_controls_are_looked_for_before_x_is_read(tmp_path: Path) -> None:
    kwargs = DataKwargs(control_pert="NON-TARGETING ")
    [source] = edited(tmp_path)
    with h5py.File(source.path, "r+") as file:
        file["X/data"][0] = np.nan
    with pytest.raises(UserError, match="no cell .* is the control 'NON-TARGETING '"):
        build_store([source], kwargs, tmp_path / "c")


def test_cells_that_lie_in_two_files_are_told_of(tmp_path: Path) -> None:
    files = write_tiny(tmp_path).files
    alpha, beta = (anndata.read_h5ad(files[name]) for name in ("alpha", "beta"))
    anndata.concat([alpha, beta]).write_h5ad(tmp_path / "whole.h5ad")
    beta.X = sparse.vstack([alpha.X[:20], beta.X[20:]])  # half of its controls
    beta.write_h5ad(tmp_path / "half.h5ad")

    def told(*names: str) -> list[str]:
        sources = [SourceFile(tmp_path / f"{name}.h5ad", "t") for name in names]
        notes = build_store(sources, KWARGS, tmp_path / "c").notes
        return [note.split(":")[0] for note in notes if "same control cells" in note]

    assert told("alpha", "beta", "gamma") == told("alpha", "half") == []
    assert told("alpha", "whole") == ["alpha.h5ad and whole.h5ad hold the same control cells"]
    pair = "whole.h5ad and beta.h5ad hold the same control cells"
    assert told("whole", "beta") == [pair]
    assert told("whole", "beta", "alpha") == [f"{pair}, as do 1 more pairs of files"]


@pytest.mark.parametrize(
    ("value", "message"),
    [(-1.0, "holds negative values"), (1e4 + 0.5, "neither whole counts nor log1p")],
)
def test_impossible_values_are_refused(tmp_path: Path, value: float, message: str) -> None:
    path = write_tiny(tmp_path).files["alpha"]
    cells = anndata.read_h5ad(path)
    x = cells.X.toarray()
    x[3, 4] = value
    cells.X = sparse.csr_matrix(x)
    cells.write_h5ad(path)
    with pytest.raises(UserError, match=message):
        build_store([SourceFile(path, "t")], KWARGS, tmp_path / "c")
    assert not list((tmp_path / "c" / "stores").glob("*/values.npy"))  # nothing half-built stays


def test_empty_cells_are_zero(tmp_path: Path) -> None:
    path = write_tiny(tmp_path).files["alpha"]
    cells = anndata.read_h5ad(path)
    x = cells.X.toarray()
    x[7] = 0
    cells.X = sparse.csr_matrix(x)
    cells.write_h5ad(path)
    store: CellStore = build_store([SourceFile(path, "t")], KWARGS, tmp_path / "c")
    assert np.array_equal(store.dense(np.array([7])), np.zeros((1, N_GENES), np.float32))


@pytest.mark.parametrize("odd", [None, 0.5, 65_536.0])
def test_halving_the_counts_of_a_large_store_says_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, odd: float | None
) -> None:
    monkeypatch.setattr(growing_array, "CHUNK", 4)
    values = np.arange(10, dtype=np.float32)
    if odd is not None:
        values[9] = odd
    np.save(tmp_path / "values.npy", values)
    told: list[tuple[int, int]] = []
    growing_array.shrink_values(tmp_path / "values.npy", lambda _, *step: told.append(step))
    found = np.load(tmp_path / "values.npy")
    assert np.array_equal(found, values)
    assert found.dtype == (np.uint16 if odd is None else np.float32)
    assert told == [(n, 6) for n in range(1, 7 if odd is None else 3)]
