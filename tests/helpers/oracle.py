"""The tiny public encoder with its reference outputs, opened as sesttune does."""

from pathlib import Path

import numpy as np
from scipy import sparse

from sesttune.data.h5ad import H5adFile
from sesttune.model.se_checkpoint import find_files
from sesttune.model.se_encoder import SEEncoder
from sesttune.model.se_genes import GeneMatch

ORACLE = Path(__file__).parents[1] / "data_oracle"


def open_oracle(checkpoint: str = "se_tiny.ckpt", device: str = "cpu", **more: object) -> SEEncoder:
    files = find_files(None, str(ORACLE / checkpoint), str(ORACLE / "protein_embeddings.pt"))
    return SEEncoder(files, device=device, **more)  # type: ignore[arg-type]


def read(name: str) -> tuple[sparse.csr_matrix, GeneMatch]:
    with H5adFile(ORACLE / f"{name}.h5ad") as file:
        cells = file.read_rows(np.arange(file.n_cells))
        return cells, open_oracle().match(file.var_names, file.var_columns())
