"""An h5ad file of four cells and four genes, as anndata writes it."""

from pathlib import Path

import anndata
import numpy as np
import pandas as pd

COUNTS = np.array([[0, 2, 0, 5], [1, 0, 0, 0], [0, 0, 0, 0], [3, 0, 7, 1]], np.float32)


def write(path: Path, x: object = COUNTS, **obs: object) -> Path:
    frame = pd.DataFrame(obs or {"a": list("wxyz")}, index=[f"c{i}" for i in range(4)])
    var = pd.DataFrame({"symbol": list("ABCD")}, index=[f"g{i}" for i in range(4)])
    anndata.AnnData(X=x, obs=frame, var=var).write_h5ad(path)
    return path
