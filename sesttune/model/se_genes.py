"""Which genes of a file the encoder knows.

Exact, case-sensitive names, as the public encoder matches them. Its one trap is refused
here: a stray symbol in an index of Ensembl ids makes it ignore a full column of symbols.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sesttune.config.schema import ModelKwargs
from sesttune.errors import UserError

MIN_MATCHED = ModelKwargs.se_min_matched
"""Refuse a file where a smaller share of its genes is in the vocabulary. Whole-genome files,
with their non-coding genes, have 0.3 to 0.6; another species or naming has next to none."""


@dataclass(frozen=True)
class GeneMatch:
    """Which columns of a file the encoder knows.

    `columns` int64 [known]: file columns in file order; `ids` int64 [known]: their
    vocabulary rows; `source`: `var index`, or the var column the names came from;
    `unmatched`: examples of the names the encoder does not know.
    """

    columns: np.ndarray
    ids: np.ndarray
    source: str
    total: int
    unmatched: tuple[str, ...] = ()

    @property
    def report(self) -> str:
        """One line: how many matched, by what, and some that did not.

        Names that occur twice are read as two genes, as the public encoder does, and counted.
        """
        share = f"{len(self.ids):,} of {self.total:,} genes known to the encoder, by {self.source}"
        if twice := len(self.ids) - len(np.unique(self.ids)):
            share += f", {twice:,} under a name that another has, too"
        return f"{share} (not: {', '.join(self.unmatched)}, …)" if self.unmatched else share


def match_genes(
    names: Sequence[str],
    columns: Mapping[str, Sequence[str]],
    vocabulary: Mapping[str, int],
    min_matched: float = MIN_MATCHED,
) -> GeneMatch:
    """Match a file's genes by exact name, as the public encoder does.

    The var index is used where it knows any name; else the var column that knows most.
    Raises UserError where nothing or less than `min_matched` of the genes matches, and
    where a stray symbol in the index would hide a column of symbols.
    """
    known = {"var index": _known(names, vocabulary)}
    known |= {f"var column '{name}'": _known(c, vocabulary) for name, c in columns.items()}
    sources = {"var index": names} | {f"var column '{n}'": c for n, c in columns.items()}
    best = max(known, key=lambda source: len({sources[source][i] for i in known[source]}))
    chosen = "var index" if len(known["var index"]) else best
    found, total = len(known[chosen]), len(names)
    if not found:
        raise UserError(
            f"none of the file's {total} genes is in the encoder's vocabulary (file: "
            f"{', '.join(list(names)[:3])}; encoder: {', '.join(list(vocabulary)[:3])}); "
            "put gene symbols in var.index or in a var column"
        )
    if len(known[best]) > 2 * found:
        raise UserError(
            f"the var index matches only {found} of {total} genes but {best} matches "
            f"{len(known[best])}: make that column the index (the public encoder would use "
            "the few)"
        )
    unmatched = tuple(name for name in sources[chosen] if name not in vocabulary)[:3]
    if found < min_matched * total:
        raise UserError(
            f"only {found} of {total} genes ({found / total:.1%}) are in the encoder's vocabulary "
            f"(not: {', '.join(unmatched)}); the names must be the symbols it was trained on, "
            f"or lower model.kwargs.se_min_matched, now {min_matched:g}"
        )
    ids = np.array([vocabulary[sources[chosen][i]] for i in known[chosen]], np.int64)
    return GeneMatch(known[chosen], ids, chosen, total, unmatched)


def _known(names: Sequence[str], vocabulary: Mapping[str, int]) -> np.ndarray:
    return np.array([i for i, name in enumerate(names) if name in vocabulary], np.int64)
