"""Columns of an h5ad's obs or var, each read by itself: a damaged one stops only what needs it.

A file of before anndata 0.7 is refused, as its labels are codes into `uns`.
"""

from pathlib import Path
from typing import Any

import h5py
import pandas as pd

from sesttune.data.hdf5 import other_file
from sesttune.errors import UserError, first_line


def check_frame(frame: h5py.Group | h5py.Dataset, rows: int, path: Path) -> None:
    """Raise UserError where `frame` is no data frame, or not one of `rows` rows, as X is."""
    which = frame.name.strip("/")
    if isinstance(frame, h5py.Dataset) or not {"_index", "column-order"} <= set(frame.attrs):
        raise UserError(
            f"{path}: {which} is not as anndata 0.7 and later write it; write the "
            "file again (anndata.read_h5ad(FILE).write_h5ad(FILE))"
        )
    index = frame.get(frame.attrs["_index"])
    if isinstance(index, h5py.Dataset) and len(index) != rows:
        raise UserError(f"{path}: {which} has {len(index):,} rows, X is of {rows:,}")


def column_names(frame: h5py.Group) -> list[str]:
    """The columns but for the index, in the file's order."""
    return [str(name) for name in frame.attrs["column-order"]]


def read_frame(frame: h5py.Group, rows: int, path: Path) -> pd.DataFrame:
    """All of its `rows`; raises UserError for the first column that cannot be read."""
    names = column_names(frame)
    columns = {name: read_column(frame, name, rows, path) for name in names}
    return pd.DataFrame(columns, index=read_index(frame, rows, path), columns=names or None)


def read_index(frame: h5py.Group, rows: int, path: Path) -> pd.Index:
    """The names of the cells or genes; as in anndata, `_index` is no name of theirs."""
    name = str(frame.attrs["_index"])
    return pd.Index(read_column(frame, name, rows, path), name=None if name == "_index" else name)


def read_column(frame: h5py.Group, name: str, rows: int, path: Path) -> Any:
    """What pandas makes a column of; raises UserError naming one that cannot be read."""
    from anndata.io import read_elem

    try:
        if (other := other_file(frame, name)) is not None:
            raise ValueError(f"it lies in another file, {other}")
        held = frame[name]
        if "categories" in held.attrs:  # a categorical of anndata 0.7
            known = frame[held.attrs["categories"]]
            ordered = bool(known.attrs.get("ordered", False))
            column = pd.Categorical.from_codes(held[()], read_elem(known), ordered)
        else:
            column = read_elem(held)
        if len(column) != rows:
            raise ValueError(f"it has {len(column):,} rows, X is of {rows:,}")
    except Exception as error:  # of any kind, by what is damaged
        raise UserError(
            f"{path}: {frame.name.strip('/')} column '{name}' cannot be read "
            f"({first_line(error)}): write it again, or drop it"
        ) from None
    return column
