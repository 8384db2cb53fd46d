"""Which gene each perturbation is named after: by the gene names, or by a column of var.

Files with Ensembl ids for gene names call their perturbations by symbol, which a column of var
has. Whoever leaves a perturbed gene out of a comparison must find it there.
"""

from collections.abc import Collection, Sequence
from pathlib import Path

from sesttune.data.h5ad import H5adFile


def target_genes(
    files: Sequence[Path], genes: Sequence[str], perturbations: Collection[str]
) -> tuple[dict[str, int], list[str]]:
    """Perturbation -> its place in `genes`, where it is a gene; and lines on what is unreadable.

    Of each file the names are taken that most perturbations are among: those of the genes, or a
    column's. Of two genes with one symbol it is the first.
    """
    place = {gene: index for index, gene in enumerate(genes)}
    found: dict[str, int] = {}
    told: list[str] = []
    for path in files:
        with H5adFile(path) as file:
            names, columns = file.var_names, file.var_columns()
            told += file.unreadable_var()
        known = []
        for labels in (names, *columns.values()):
            pairs = zip(reversed(labels), reversed(names), strict=True)
            named = {label: place[name] for label, name in pairs if name in place}
            known.append({pert: named[pert] for pert in perturbations if pert in named})
        found = max(known, key=len) | found
    return found, told
