"""Files that `sesttune predict` must refuse."""

from pathlib import Path

import anndata


def write_wrong_cells(whole: Path, path: Path) -> None:
    """Write `whole` to `path` with what is wrong with it that the name of `path` says."""
    cells = anndata.read_h5ad(whole)
    names = cells.obs["target_gene"].astype(str)
    if path.stem == "fewer":
        cells = cells[:, 3:].copy()
    elif path.stem == "unknown":
        names.iloc[names.ne("non-targeting").to_numpy().argmax()] = "NEW"
        cells.obs["target_gene"] = names
    else:
        is_control = names.eq("non-targeting").to_numpy()
        cells = cells[is_control if path.stem == "controls" else ~is_control].copy()
    cells.write_h5ad(path)
