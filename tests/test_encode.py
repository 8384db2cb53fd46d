import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import anndata
import h5py
import numpy as np
import pytest

from sesttune.encode import main
from sesttune.errors import UserError

ORACLE = Path(__file__).parent / "data_oracle"
MODEL = [
    *("--checkpoint", str(ORACLE / "se_tiny.ckpt")),
    *("--protein-embeddings", str(ORACLE / "protein_embeddings.pt")),
]


def encode(source: Path, output: Path) -> int:
    return main([*MODEL, "--input", str(source), "--output", str(output)])


def written(path: Path) -> dict[str, object]:
    """Everything in an HDF5 file but obsm: name -> bytes, or the attributes of a group."""
    found: dict[str, object] = {}

    def visit(name: str, item: h5py.Dataset | h5py.Group) -> None:
        if not name.startswith("obsm"):
            values = item[()] if isinstance(item, h5py.Dataset) else sorted(item.attrs)
            found[name] = np.asarray(values).tolist()

    with h5py.File(path) as file:
        file.visititems(visit)
    return found


def test_what_anndata_cannot_read_is_copied_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = tmp_path / "in.h5ad", tmp_path / "out.h5ad"
    shutil.copy(ORACLE / "cells.h5ad", source)
    with h5py.File(source, "r+") as file:
        file["var"].attrs["column-order"] = [*file["var"].attrs["column-order"], "odd"]
        for place in ("uns/odd", "var/odd"):
            file[place] = [1, 2]
            file[place].attrs["encoding-type"] = "of-tomorrow"
            file[place].attrs["encoding-version"] = "9"
        del file["obsm"]
    source.chmod(0o444)
    before = source.read_bytes()
    assert encode(source, output) == 0
    assert f"warning: {source}: var column 'odd' cannot be read (" in capsys.readouterr().err
    assert source.read_bytes() == before
    assert written(output) == written(source)
    with h5py.File(output, "r+") as file:
        assert np.allclose(file["obsm/X_state"], np.load(ORACLE / "expected.npy"), atol=1.5e-6)
        del file["uns/odd"], file["var/odd"]
        file["var"].attrs["column-order"] = np.array([], dtype=h5py.string_dtype())
        first = file["obsm/X_state"][:]
        file["obsm/X_state"][:] = 0
    assert encode(output, output) == 0  # what is there under the name is replaced
    assert np.array_equal(anndata.read_h5ad(output).obsm["X_state"], first)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.h5ad", "out.h5ad"]


@pytest.mark.parametrize(("name", "needed"), [("out.npy", 0), ("out.h5ad", 1)])
def test_a_disk_without_room_is_refused_before_anything_is_encoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, needed: int
) -> None:
    source = ORACLE / "cells.h5ad"
    size = np.load(ORACLE / "expected.npy").nbytes + needed * source.stat().st_size
    monkeypatch.setattr("sesttune.model.se_encoder.SEEncoder.encode", None)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=size - 1))
    with pytest.raises(UserError, match=f"{name} will have .* GB and its disk has"):
        encode(source, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_values_that_are_no_counts_are_told_of_with_where_counts_may_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = anndata.read_h5ad(ORACLE / "cells.h5ad")[:2].copy()
    where = "(copy them into X, if layers['counts'] has"
    ones = (cells.X > 0).astype(np.float32)
    for x, told in ((cells.X, ""), (-cells.X, f"as 0 {where}"), (ones, f"give counts {where}")):
        scaled = anndata.AnnData(x, var=cells.var, layers={"counts": cells.X})
        scaled.write_h5ad(tmp_path / "in.h5ad")
        assert encode(tmp_path / "in.h5ad", tmp_path / "out.npy") == 0
        warned = capsys.readouterr().err
        assert told in warned
        assert ("warning" in warned) == bool(told)


def test_genes_that_the_encoder_does_not_know_are_refused_with_the_file(tmp_path: Path) -> None:
    cells = anndata.read_h5ad(ORACLE / "cells.h5ad")[:1].copy()
    cells.var_names = cells.var_names.str.lower()
    cells.write_h5ad(tmp_path / "in.h5ad")
    with pytest.raises(UserError, match=r"^--input \S+in.h5ad: none of the file's "):
        encode(tmp_path / "in.h5ad", tmp_path / "out.npy")


def test_a_settings_file_that_is_no_text_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes(b"dataset: \xff")
    more = ["--config", str(tmp_path / "c.yaml")]
    with pytest.raises(UserError, match=r"^--config \S+c.yaml holds no settings with"):
        main(
            [
                *MODEL,
                *more,
                "--input",
                str(ORACLE / "cells.h5ad"),
                "--output",
                str(tmp_path / "o.npy"),
            ]
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*MODEL, "--output=out.csv"], "must end in .h5ad or .npy"),
        ([*MODEL, "--output=."], "must end"),
        ([*MODEL, "--output=gone/more.npy"], "gone is not a folder"),
        ([*MODEL, "--batch-size=0"], "--batch-size 0 must be at least 1"),
        ([*MODEL, "--min-matched=2"], "--min-matched 2 must be in [0, 1]"),
        ([*MODEL, "--config=no.yaml"], "--config no.yaml does not exist"),
        (["--model-folder=nowhere"], "--model-folder: nowhere is not a folder"),
        (
            ["--model-folder=two"],
            "holds several checkpoints (a.ckpt, b.ckpt): which one? set --checkpoint",
        ),
    ],
)
def test_mistakes_are_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "two").mkdir()
    for name in ("a.ckpt", "b.ckpt"):
        (tmp_path / "two" / name).touch()
    source = f"--input={ORACLE / 'cells.h5ad'}"
    with pytest.raises(UserError, match=re.escape(message)):
        main([source, "--output=more.npy", *arguments])
    assert [path.name for path in tmp_path.iterdir()] == ["two"]
