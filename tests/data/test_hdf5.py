"""Files that cannot be opened as what they are named, and cells that lie in another one."""

import gzip
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers.small_h5ad import COUNTS, write
from scipy import sparse

from sesttune.data.h5ad import H5adFile
from sesttune.errors import UserError


def test_foreign_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gone.h5ad does not exist"):
        H5adFile(tmp_path / "gone.h5ad")
    with pytest.raises(UserError, match="is a folder: name a file"):
        H5adFile(tmp_path)
    (tmp_path / "text.h5ad").write_text("not hdf5")
    with pytest.raises(UserError, match="text.h5ad is not an HDF5 file"):
        H5adFile(tmp_path / "text.h5ad")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["Y"] = [1]
    with pytest.raises(UserError, match="other.h5 is not an AnnData file: it lacks X, obs, var"):
        H5adFile(tmp_path / "other.h5")
    for part, told in {"matrix/barcodes": "10x: scanpy.read_10x_h5", "mod/rna": "a MuData"}.items():
        with h5py.File(tmp_path / "other.h5", "w") as file:
            file[part] = [1]
        with pytest.raises(UserError, match=rf"other.h5 is not an AnnData file: .* \(.*{told}"):
            H5adFile(tmp_path / "other.h5")
    whole = write(tmp_path / "whole.h5ad").read_bytes()
    (tmp_path / "cut.h5ad").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cut.h5ad is not an HDF5 file, or is truncated"):
        H5adFile(tmp_path / "cut.h5ad")
    (tmp_path / "x.h5ad.gz").write_bytes(gzip.compress(whole))
    with pytest.raises(UserError, match="x.h5ad.gz is compressed: unpack it with gunzip"):
        H5adFile(tmp_path / "x.h5ad.gz")


def test_a_file_that_another_process_writes_is_to_be_waited_for(tmp_path: Path) -> None:
    path = write(tmp_path / "x.h5ad")
    hold = f"import h5py; file = h5py.File({str(path)!r}, 'r+'); print(flush=True); input()"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", hold], stdin=pipe, stdout=pipe) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        with pytest.raises(UserError, match="x.h5ad is being written by another process: wait"):
            H5adFile(path)
        writer.communicate(b"\n")
    H5adFile(path).close()
    killed = f"import h5py; file = h5py.File({str(path)!r}, 'w', libver='latest'); file.flush()"
    subprocess.run([sys.executable, "-c", f"{killed}; import os; os._exit(1)"])
    with pytest.raises(UserError, match="x.h5ad was not closed by the process that wrote it"):
        H5adFile(path)


def read_all(path: Path) -> None:
    with H5adFile(path) as file:
        file.obs("a")
        file.obsm("e")
        file.read_rows(np.arange(4))


DATASETS = ("X", "X/data", "obs/a", "obsm/e")


@pytest.mark.parametrize(
    ("part", "kind"),
    [("obs", "link"), *((p, k) for p in DATASETS for k in ("link", "through", "virtual", "raw"))],
)
def test_what_lies_in_another_file_is_refused(tmp_path: Path, part: str, kind: str) -> None:
    """Of a virtual dataset whose source is gone HDF5 gives zeros; no change of it is seen."""
    path = write(tmp_path / "x.h5ad", sparse.csr_matrix(COUNTS) if part == "X/data" else COUNTS)
    with h5py.File(path, "r+") as file:
        file["obsm/e"] = np.ones((4, 2), np.float32)
        attributes, shape = dict(file[part].attrs), getattr(file[part], "shape", ())
        del file[part]
        if kind == "link":
            file[part] = h5py.ExternalLink("gone.h5ad", part)
        elif kind == "through":
            shutil.copy(path, tmp_path / "gone.h5ad")
            file["way"], file[part] = h5py.ExternalLink("gone.h5ad", "/"), h5py.SoftLink("/way/Y")
            with h5py.File(tmp_path / "gone.h5ad", "r+") as other:
                other["Y"] = np.ones((4, 2))
        elif kind == "virtual":
            layout = h5py.VirtualLayout(shape, np.float32)
            layout[:] = h5py.VirtualSource("gone.h5ad", part, shape)
            file.create_virtual_dataset(part, layout).attrs.update(attributes)
        else:
            places = [("gone.raw", 0, h5py.h5f.UNLIMITED)]
            file.create_dataset(part, shape, np.float32, external=places).attrs.update(attributes)
    with pytest.raises(UserError, match=r"x\.h5ad.* lies in another file, .*gone\."):
        read_all(path)


def test_a_virtual_dataset_of_the_file_itself_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "x.h5ad")
    with h5py.File(path, "r+") as file:
        file.move("X", "values")
        layout = h5py.VirtualLayout(COUNTS.shape, COUNTS.dtype)
        layout[:] = h5py.VirtualSource(file["values"])
        file.create_virtual_dataset("X", layout)
    with H5adFile(path) as file:
        assert np.array_equal(file.read_rows(np.arange(4)).toarray(), COUNTS)
