"""Labels of cells: which are meant as one, and what must agree across all files."""

import difflib
from collections.abc import Collection, Iterable

import pandas as pd

from sesttune.config.schema import DataKwargs
from sesttune.errors import UserError


def loosely(label: str) -> str:
    """What a label is but for spaces around it and upper and lower case, where slips are made."""
    return label.strip().casefold()


def nearest(name: str, known: Collection[str]) -> str:
    """`; did you mean 'x'?` with the nearest known name, or the known names."""
    close = [other for other in known if loosely(other) == loosely(name)]
    close = close or difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    if close:
        return f"; did you mean '{close[0]}'?"
    listed = sorted(known)
    return f"; known: {', '.join(listed[:8])}{', …' if len(listed) > 8 else ''}"


def alike(column: str, labels: Iterable[str]) -> list[str]:
    """A line where labels may be meant as one: their cells may be trained on and held out."""
    spelled: dict[str, list[str]] = {}
    for label in sorted(labels):
        spelled.setdefault(loosely(label), []).append(label)
    found = [same for same in spelled.values() if len(same) > 1]
    if not found:
        return []
    shown = " and ".join(f"'{label}'" for label in found[0])
    more = f", so do {len(found) - 1} more" if len(found) > 1 else ""
    return [
        f"obs column '{column}': {shown} differ in spaces or case alone{more}: they are not taken "
        "for the same"
    ]


def check_controls(obs: pd.DataFrame, kwargs: DataKwargs) -> None:
    """Every (dataset, cell type) needs control cells, or nothing can be paired in it.

    Controls that are spelled otherwise, in one of the files say, would be a perturbation.
    """
    names = obs["pert"].value_counts()
    names = names[names > 0]
    if kwargs.control_pert not in names:
        most = ", ".join(f"'{name}' ({cells:,})" for name, cells in names[:5].items())
        raise UserError(
            f"no cell of obs column '{kwargs.pert_col}' is the control '{kwargs.control_pert}': "
            f"set data.kwargs.control_pert to its label; most cells are of {most}"
        )
    for name in names.index:
        if name != kwargs.control_pert and loosely(name) == loosely(kwargs.control_pert):
            raise UserError(
                f"obs column '{kwargs.pert_col}' has '{name}' beside the control "
                f"'{kwargs.control_pert}': write it the same in all cells and files"
            )
    control = obs["pert"] == kwargs.control_pert
    for (dataset, cell_type), group in obs.groupby(["dataset", "cell_type"], sort=True):
        if not control[group.index].any():
            raise UserError(
                f"dataset '{dataset}', cell type '{cell_type}' has no control cells "
                f"({kwargs.pert_col}={kwargs.control_pert}): add some, or leave its cells out of "
                "the file"
            )
