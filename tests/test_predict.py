"""What `sesttune predict` takes, and what it refuses in a line, before it reads a cell."""

import json
from pathlib import Path

import anndata
import h5py
import numpy as np
import pytest
import torch
from anndata.io import write_elem
from helpers.promoted import FEATURES, SIZES, promoted
from helpers.tiny_data import CONTROL, write_cells

from sesttune import evaluate, export, predict, reproduce
from sesttune.command import run
from sesttune.model.se_checkpoint import find_files
from sesttune.model.se_demo import write_demo_encoder
from sesttune.model.se_encoder import SEEncoder


def refused(capsys: pytest.CaptureFixture[str], model: Path, *more: str) -> str:
    arguments = ["--model", str(model), "--adata", "no.h5ad", "--output", str(model / "o.h5ad")]
    assert run(predict.main, [*arguments, *more]) == 2
    [line] = capsys.readouterr().err.splitlines()
    return line


def test_only_obs_and_var_of_the_input_must_be_readable(tmp_path: Path) -> None:
    settings = {"data.kwargs.embed_key": "X_tiny", "data.cache_dir": str(tmp_path / "cache")}
    promoted(tmp_path / "head", **settings)
    rng, genes = np.random.default_rng(0), [f"G{i}" for i in range(SIZES.output_dim)]
    labels = [CONTROL] * 10 + 5 * list(FEATURES)
    source = write_cells(tmp_path / "in.h5ad", rng, labels, "alpha", genes[::-1])
    found = []
    for odd in (False, True):
        with h5py.File(source, "r+") as file:
            if odd:
                for place in ("uns/odd", "layers/odd", "varm/odd"):
                    file[place] = [1, 2]
                    file[place].attrs["encoding-type"] = "of-tomorrow"
                    file[place].attrs["encoding-version"] = "9"
            else:
                embedded = rng.normal(size=(len(labels), SIZES.embed_dim))
                write_elem(file, "obsm/X_tiny", embedded)
        output = tmp_path / f"{odd}.h5ad"
        arguments = ["--model", str(tmp_path / "head"), "--adata", str(source)]
        assert run(predict.main, [*arguments, "--output", str(output)]) == 0
        found.append(anndata.read_h5ad(output))
    plain, predicted = found
    assert np.array_equal(plain.X, predicted.X)
    assert predicted.obs.equals(plain.obs)
    assert predicted.obs["target_gene"].to_list() == labels
    assert predicted.var_names.to_list() == genes


def test_what_the_predictions_rest_on_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"data.kwargs.embed_key": "X_tiny", "data.cache_dir": str(tmp_path / "cache")}
    head = tmp_path / "head"
    promoted(head, **settings)
    about = json.loads((head / "head.json").read_text())
    (head / "head.json").write_text(json.dumps(about | {"counts_a_cell": [10_000, 10_000]}))
    rng, genes = np.random.default_rng(0), [f"G{i}" for i in range(SIZES.output_dim)]
    source = write_cells(tmp_path / "in.h5ad", rng, [CONTROL] * 10 + ["P1"] * 5, "alpha", genes)
    arguments = ["--model", str(head), "--adata", str(source), "--output", str(tmp_path / "o.h5ad")]
    cells = anndata.read_h5ad(source)
    cells.obsm["X_tiny"] = rng.normal(size=(15, SIZES.embed_dim)).astype(np.float32)
    cells.obs["batch_var"] = ["b0"] * 12 + ["b1"] * 3
    x = cells.X.toarray()
    for total, warned in ((10_000, False), (2_500, True)):
        cells.X = np.log1p(x / x.sum(1, keepdims=True) * total)
        cells.write_h5ad(source)
        assert run(predict.main, arguments) == 0
        told = capsys.readouterr()
        assert "3 of 5 perturbed cells have no control of their batch_var" in told.out
        said = "2,500 counts a cell, where the model was trained on 10,000"
        assert (said in told.err) == warned
    cells.obs["cell_type"] = ["alpha"] * 12 + ["beta"] * 3
    cells.write_h5ad(source)
    line = refused(capsys, head, "--adata", str(source))
    assert "--adata: cell type 'beta' has no control cells" in line
    assert "leave its cells out of the file" in line


def test_another_user_has_another_cache(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nowhere = tmp_path / "file"
    nowhere.write_text("")
    settings = {"data.kwargs.embed_key": "X_tiny", "data.cache_dir": str(nowhere / "cache")}
    head = tmp_path / "head"
    promoted(head, **settings)
    rng, genes = np.random.default_rng(0), [f"G{i}" for i in range(SIZES.output_dim)]
    source = write_cells(tmp_path / "in.h5ad", rng, [CONTROL] * 10 + ["P1"] * 5, "alpha", genes)
    with h5py.File(source, "r+") as file:
        write_elem(file, "obsm/X_tiny", rng.normal(size=(15, SIZES.embed_dim)))
    line = refused(capsys, head, "--adata", str(source))
    assert line.startswith(f"error: --cache-dir: cannot write to {nowhere}")
    arguments = ["--model", str(head), "--adata", str(source), "--output", str(tmp_path / "o.h5ad")]
    assert run(predict.main, [*arguments, "--cache-dir", str(tmp_path / "own")]) == 0
    assert (tmp_path / "own" / "stores").is_dir()


def test_what_the_model_fixes_is_not_to_be_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"data.cache_dir": str(tmp_path / "cache"), "data.kwargs.embed_key": "X_tiny"}
    promoted(tmp_path / "head", **settings)
    rng, genes = np.random.default_rng(0), [f"G{i}" for i in range(SIZES.output_dim)]
    odd = write_cells(tmp_path / "odd.h5ad", rng, [CONTROL, *FEATURES], "alpha", genes)
    with h5py.File(odd, "r+") as file:
        file["obs"].attrs["column-order"] = ["target_gene", "cell_type"]
    line = refused(capsys, tmp_path / "head", "--adata", str(odd))
    assert "no column 'batch_var'; the model's batches are in such a one: name it so; known" in line
    for labels, said in {
        ("NTC", *FEATURES): "the model's controls are called so: label these the same; most cells",
        (CONTROL, *FEATURES): "obsm has no 'X_tiny'; write it with `sesttune encode`",
    }.items():
        source = write_cells(tmp_path / "in.h5ad", rng, list(labels), "alpha", genes)
        line = refused(capsys, tmp_path / "head", "--adata", str(source))
        assert said in line
        assert "data.kwargs" not in line


def test_the_same_checkpoint_beside_other_protein_embeddings_is_another_encoder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    genes = [f"G{i}" for i in range(SIZES.output_dim)]
    checkpoint = write_demo_encoder(tmp_path / "se", genes)
    head = tmp_path / "head"
    promoted(head, **{"data.cache_dir": str(tmp_path / "cache")})
    about = json.loads((head / "head.json").read_text())
    about["encoder"] = SEEncoder(find_files(str(checkpoint.parent))).identity
    (head / "head.json").write_text(json.dumps(about))
    write_cells(tmp_path / "in.h5ad", np.random.default_rng(0), [CONTROL, "P1"], "alpha", genes)
    vectors = {name: torch.ones(8) for name in genes}
    torch.save(vectors, checkpoint.with_name("protein_embeddings.pt"))
    line = refused(capsys, head, "--adata", str(tmp_path / "in.h5ad"))
    assert f"the protein embeddings of {checkpoint} are not those this model was" in line


def test_features_that_do_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    promoted(tmp_path / "head")
    features = tmp_path / "more.pt"
    told = refused(capsys, tmp_path / "head", "--features", str(features))
    assert told == f"error: --features: {features} does not exist"
    torch.save({"P9": torch.ones(5)}, features)
    told = refused(capsys, tmp_path / "head", "--features", str(features))
    assert "more.pt: its vectors have 5 values, those of the model 8" in told
    assert "--seed -1 must not" in refused(capsys, tmp_path / "head", "--seed", "-1")


@pytest.mark.parametrize("file", ["features.safetensors", "head.safetensors", "head.json"])
def test_a_damaged_file_of_a_model_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str
) -> None:
    promoted(tmp_path / "head")
    whole = (tmp_path / "head" / file).read_bytes()
    for content in (whole[:100], b""):
        (tmp_path / "head" / file).write_bytes(content)
        assert f"{tmp_path}/head" in refused(capsys, tmp_path / "head")
    if file == "features.safetensors":
        (tmp_path / "head" / file).unlink()
        assert f"head/{file} is missing" in refused(capsys, tmp_path / "head")
        state = ["--model", str(tmp_path / "head"), "--state", str(tmp_path / "state")]
        assert run(export.main, state) == 2


def test_a_model_that_says_too_little_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    promoted(tmp_path / "head")
    (tmp_path / "head" / "head.json").write_text('{"head": {}, "genes": []}')
    model = str(tmp_path / "head")
    assert "head.json does not say its config, encoder" in refused(capsys, tmp_path / "head")
    for main, arguments in ((evaluate.main, ["--model", model]), (reproduce.main, [model])):
        assert run(main, arguments) == 2
        assert "head.json does not say its config" in capsys.readouterr().err
