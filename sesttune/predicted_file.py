"""The file `sesttune predict` writes, and what a Virtual Cell Challenge entry is made from.

`cell-eval prep` (0.8) takes one column `target_gene` with `non-targeting` cells, genes in the
order of a CSV, log1p values below 15, and at most 200,000 cells. All of that is checked here, in
one line, before anything is predicted where it can be. Of the input only obs and var are read, and
before: the rest may be of a kind that anndata cannot read. Only zeros are left out of the sparse
matrix, so no value changes.
"""

import csv
import io
import math
import shlex
import warnings
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
from anndata.io import write_elem
from scipy import sparse

from sesttune.config.schema import DataKwargs
from sesttune.data.h5ad import H5adFile
from sesttune.errors import UserError, first_line
from sesttune.system.atomic import replacing, write_text
from sesttune.system.machine import free_memory

VCC_COLUMN, VCC_CONTROL = "target_gene", "non-targeting"
VCC_CELLS, VCC_LOG1P = 200_000, 15.0
BLOCK_ROWS = 4_096


def check_memory(source: Path, genes: int) -> None:
    """Raise UserError where predictions of `genes` genes for the cells of `source` do not fit.

    Before the controls are encoded, which may take hours; the kernel would kill it after that.
    """
    with H5adFile(source) as file:
        cells = file.n_cells
    size, free = 4 * cells * genes, free_memory()
    if size > free > 0:
        raise UserError(
            f"--adata {source}: predictions for {cells:,} cells of {genes:,} genes take "
            f"{size / 1e9:.3g} GB, and {free / 1e9:.3g} GB of memory are free: give fewer cells at "
            "a time, each with the controls of its cell type"
        )


def without_x(source: Path, about: dict[str, Any]) -> anndata.AnnData:
    """What will be written, but for X: obs and var of `source`, of the model's genes."""
    with H5adFile(source) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names of cells that are numbers, or not unique
        cells = anndata.AnnData(obs=file.frame("obs"), var=file.frame("var"))
        predicted = cells[:, about["genes"]].copy()
        _check_writable(predicted, source)
    predicted.uns["sesttune"] = {"encoder": about["encoder"]["label"], "step": about["step"]}
    return predicted


def _check_writable(predicted: anndata.AnnData, source: Path) -> None:
    """Raise UserError for a frame that anndata reads and does not write (a column `_index`)."""
    for which in ("obs", "var"):
        try:
            with h5py.File(which, "w", driver="core", backing_store=False) as file, _as_read():
                write_elem(file, which, getattr(predicted, which))
        except Exception as error:  # of any kind, by what is held
            raise UserError(
                f"--adata {source}: {which} cannot be written again ({first_line(error)}): "
                "rename or drop what it names"
            ) from None


def _as_read() -> AbstractContextManager[None]:
    """Text that may be missing (all text, with pandas 3) is read, but not written by default."""
    return anndata.settings.override(allow_write_nullable_strings=True)


def write_predicted(predicted: anndata.AnnData, output: Path, expression: np.ndarray) -> None:
    """`output` as of `without_x`, with X `expression`, float32 [cells, genes]."""
    predicted.X = expression
    _write(predicted, output)


def check_vcc(source: Path, kwargs: DataKwargs) -> None:
    """Raise UserError where no entry can be made of predictions for the cells of `source`."""
    with H5adFile(source) as file:
        if file.n_cells > VCC_CELLS:
            raise UserError(
                f"--vcc: {source} has {file.n_cells:,} cells, cell-eval prep takes at most "
                f"{VCC_CELLS:,}: give fewer, controls too"
            )
        labels = set(file.obs(kwargs.pert_col))
        taken = kwargs.pert_col != VCC_COLUMN and VCC_COLUMN in file.obs_columns
    if kwargs.control_pert not in labels:
        raise UserError(
            f"--vcc: {source}: no cell in obs '{kwargs.pert_col}' is the control "
            f"'{kwargs.control_pert}', and cell-eval prep needs some"
        )
    if taken:
        raise UserError(
            f"--vcc: {source}: '{kwargs.pert_col}' is to be named '{VCC_COLUMN}', but obs has "
            "such a column already: rename or drop it"
        )
    if kwargs.control_pert != VCC_CONTROL and VCC_CONTROL in labels:
        raise UserError(
            f"--vcc: {source}: the control '{kwargs.control_pert}' is to be named "
            f"'{VCC_CONTROL}', but a perturbation has that name: rename it"
        )


def write_vcc(
    predicted: anndata.AnnData, output: Path, expression: np.ndarray, kwargs: DataKwargs
) -> str:
    """As `write_predicted`, sparse and with the names prep expects, and `OUT.genes.csv`.

    Returns the prep command. Raises UserError where a value is not a log1p value for prep.
    """
    highest, of_all_counts = float(expression.max()), math.log1p(kwargs.target_sum)
    if highest >= VCC_LOG1P:
        fix = "train with a smaller data.kwargs.target_sum"
        if of_all_counts < VCC_LOG1P:
            fix = f"no cell has more than {of_all_counts:.3g}: the head is not trained enough"
        raise UserError(
            f"--vcc: predictions go up to {highest:.4g}, cell-eval prep takes log1p values below "
            f"{VCC_LOG1P:g}: {fix}"
        )
    starts = range(0, len(expression), BLOCK_ROWS)
    rows = [sparse.csr_matrix(expression[start : start + BLOCK_ROWS]) for start in starts]
    predicted.X = sparse.vstack(rows, format="csr", dtype=np.float32)
    _rename(predicted, kwargs)
    genes = output.with_suffix(".genes.csv")
    lines = io.StringIO()
    csv.writer(lines, lineterminator="\n").writerows([gene] for gene in predicted.var_names)
    _write(predicted, output)
    write_text(genes, lines.getvalue())
    return shlex.join(["cell-eval", "prep", "-i", str(output), "-g", str(genes)])


def _rename(predicted: anndata.AnnData, kwargs: DataKwargs) -> None:
    predicted.obs = predicted.obs.rename(columns={kwargs.pert_col: VCC_COLUMN})
    if kwargs.control_pert != VCC_CONTROL:
        labels = predicted.obs[VCC_COLUMN].astype(str)
        named = labels.replace({kwargs.control_pert: VCC_CONTROL})
        predicted.obs[VCC_COLUMN] = named.astype("category")


def _write(predicted: anndata.AnnData, output: Path) -> None:
    try:
        with _as_read(), replacing(output) as draft:
            predicted.write_h5ad(draft)
    except OSError as error:
        raise UserError(f"--output {output}: cannot write it ({error})") from None
