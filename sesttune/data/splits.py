"""Read cell-load's TOML split file and say which split each condition belongs to.

A condition is (dataset, cell type, perturbation). Splits are by perturbation and
cell type, never by cell, so nothing of a held-out condition is ever trained on.
Validation never falls back to test: where the file names no validation, a seeded
share of the training perturbations is held out and the caller is told.
"""

import glob
import itertools
import re
import tomllib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sesttune.data.labels import nearest
from sesttune.errors import UserError, WrongPlace, check_file

HELD_OUT = ("val", "test")
SUFFIXES = (".h5ad", ".h5")
PACKED = tuple(f"{suffix}.gz" for suffix in SUFFIXES)

Context = tuple[str, str]
"""(dataset, cell type)."""
Condition = tuple[str, str, str]
"""(dataset, cell type, perturbation)."""


@dataclass(frozen=True)
class SplitFile:
    """The parsed split file; names are not yet checked against the data.

    `datasets` are those that a table names, with their files; `unused` the others.
    """

    path: Path
    datasets: dict[str, tuple[Path, ...]]
    unused: tuple[str, ...]
    training: tuple[str, ...]
    zeroshot: dict[Context, str]
    fewshot: dict[Context, dict[str, tuple[str, ...]]]


def read_split_file(path: Path) -> SplitFile:
    """Parse `path`; raises UserError naming the table and the fix."""
    check_file(path, "data.kwargs.toml_config_path: ")
    try:
        content = tomllib.loads(path.read_text("utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML: {error}") from None
    unknown = set(content) - {"datasets", "training", "zeroshot", "fewshot"}
    if unknown:
        raise UserError(
            f"{path}: unknown table [{sorted(unknown)[0]}]; "
            "the tables are [datasets], [training], [zeroshot], [fewshot]"
        )
    named = _table(content, "datasets", path)
    if not named:
        raise UserError(f'{path}: no [datasets]; write e.g. mydata = "folder" under it')
    training = _table(content, "training", path)
    for name, value in training.items():
        _known_dataset(name, named, path, "[training]")
        if value != "train":
            raise UserError(f'{path}: [training] {name} = "{value}" must be "train"')
    zeroshot: dict[Context, str] = {}
    for key, value in _table(content, "zeroshot", path).items():
        context = _context(key, named, path, "[zeroshot]")
        if value not in HELD_OUT:
            raise UserError(f'{path}: [zeroshot] "{key}" = "{value}" must be "val" or "test"')
        zeroshot[context] = str(value)
    fewshot = _fewshot(_table(content, "fewshot", path), named, path)
    both = set(zeroshot) & set(fewshot)
    if both:
        raise UserError(f"{path}: {'.'.join(both.pop())} is in [zeroshot] and [fewshot]: keep one")
    if not training and not fewshot:
        raise UserError(_nothing_to_train_on(path))
    used = {*training, *(dataset for dataset, _ in (*zeroshot, *fewshot))}
    datasets = {name: _data_files(named[name], name, path) for name in named if name in used}
    _check_each_file_once(datasets, path)
    unused = tuple(name for name in named if name not in used)
    return SplitFile(path, datasets, unused, tuple(training), zeroshot, fewshot)


def assign_splits(
    split_file: SplitFile,
    conditions: Collection[Condition],
    val_fraction: float,
    seed: int,
    dropped: Collection[str] = (),
) -> tuple[dict[Condition, str], list[str]]:
    """Split of each condition (without controls), and notes for people.

    As in cell-load, what [fewshot] does not hold out of a context it names is trained on,
    in [training] or not; other conditions of a dataset outside [training] are left out, and
    so are the `dropped` perturbations (a split file may still name them).
    Raises UserError for a name in the file that the data do not have, and where
    nothing is left to train on.
    """
    _check_names(split_file, conditions)
    splits: dict[Condition, str] = {}
    left_out = 0
    for condition in conditions:
        dataset, cell_type, perturbation = condition
        context = (dataset, cell_type)
        if perturbation in dropped:
            continue
        if context in split_file.zeroshot:
            splits[condition] = split_file.zeroshot[context]
            continue
        held_out = split_file.fewshot.get(context, {})
        where = [split for split, names in held_out.items() if perturbation in names]
        if where:
            splits[condition] = where[0]
        elif dataset in split_file.training or context in split_file.fewshot:
            splits[condition] = "train"
        else:
            left_out += 1
    if "train" not in splits.values():
        raise UserError(
            f"{split_file.path}: nothing is left to train on: every condition of the datasets in "
            "[training] is held out by [zeroshot] or [fewshot], or was dropped"
            if split_file.training
            else _nothing_to_train_on(split_file.path)
        )
    notes: list[str] = []
    if split_file.unused:
        notes.append(f"datasets not read, as no table names them: {', '.join(split_file.unused)}")
    if left_out:
        notes.append(f"conditions left out, of datasets outside [training]: {left_out}")
    if "val" not in splits.values():
        notes.append(_hold_out(splits, split_file.path, val_fraction, seed))
    return splits, notes


def _nothing_to_train_on(path: Path) -> str:
    return f"{path}: nothing is left to train on; name a dataset in [training]"


def _hold_out(splits: dict[Condition, str], path: Path, fraction: float, seed: int) -> str:
    trained = sorted({c[2] for c, split in splits.items() if split == "train"})
    if len(trained) < 2:
        raise UserError(
            f"{path}: {len(trained)} training perturbation cannot be split into training and "
            "validation; name validation perturbations in [fewshot]"
        )
    count = min(max(1, round(fraction * len(trained))), len(trained) - 1)
    chosen = set(np.random.default_rng(seed).choice(trained, count, replace=False).tolist())
    for condition, split in splits.items():
        if split == "train" and condition[2] in chosen:
            splits[condition] = "val"
    return (
        f"no validation split in {path.name}: held out {count} of {len(trained)} training "
        f"perturbations ({', '.join(sorted(chosen)[:5])}{', …' if count > 5 else ''})"
    )


def _check_names(split_file: SplitFile, conditions: Iterable[Condition]) -> None:
    perturbations: dict[Context, set[str]] = {}
    for dataset, cell_type, perturbation in conditions:
        perturbations.setdefault((dataset, cell_type), set()).add(perturbation)
    for table in ("zeroshot", "fewshot"):
        for dataset, cell_type in getattr(split_file, table):
            known = [c for d, c in perturbations if d == dataset]
            if cell_type not in known:
                raise UserError(
                    f"{split_file.path}: [{table}] names cell type '{cell_type}', of which "
                    f"dataset '{dataset}' has no perturbed cell{nearest(cell_type, known)}"
                )
    for context, held_out in split_file.fewshot.items():
        for split, names in held_out.items():
            for name in names:
                if name not in perturbations[context]:
                    raise UserError(
                        f'{split_file.path}: [fewshot."{".".join(context)}"] {split} names '
                        f"perturbation '{name}' that the data do not have"
                        f"{nearest(name, perturbations[context])}"
                    )


def _table(content: Mapping[str, object], name: str, path: Path) -> dict[str, object]:
    table = content.get(name, {})
    if not isinstance(table, dict):
        raise UserError(f"{path}: [{name}] must be a table")
    for key, value in table.items():
        parts = [key]
        while isinstance(value, dict) and value:  # as TOML reads a name with a dot
            inner, value = next(iter(value.items()))
            parts.append(inner)
        dotted = ".".join(parts[:-1] if name == "fewshot" else parts)
        if len(parts) > 1 + (name == "fewshot"):
            raise UserError(f'{path}: [{name}] {dotted} must be in quotes, for its dot: "{dotted}"')
    return table


def _fewshot(
    table: Mapping[str, object], datasets: Mapping[str, object], path: Path
) -> dict[Context, dict[str, tuple[str, ...]]]:
    fewshot: dict[Context, dict[str, tuple[str, ...]]] = {}
    for key, lists in table.items():
        context = _context(key, datasets, path, "[fewshot]")
        if not isinstance(lists, dict) or not set(lists) <= set(HELD_OUT):
            raise UserError(f'{path}: [fewshot."{key}"] must hold val = [...] and/or test = [...]')
        for split, names in lists.items():
            if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
                raise UserError(f'{path}: [fewshot."{key}"] {split} must be a list of names')
        twice = set(lists.get("val", [])) & set(lists.get("test", []))
        if twice:
            raise UserError(
                f"{path}: [fewshot.\"{key}\"] has '{sorted(twice)[0]}' in val and in test"
            )
        fewshot[context] = {split: tuple(names) for split, names in lists.items()}
    return fewshot


def _context(key: str, datasets: Mapping[str, object], path: Path, table: str) -> Context:
    dataset, dot, cell_type = key.partition(".")
    if not dot or not cell_type:
        raise UserError(f'{path}: {table} "{key}" must be "dataset.celltype"')
    fits = [name for name in datasets if key.startswith(f"{name}.") and key != f"{name}."]
    if len(fits) > 1:
        raise UserError(
            f'{path}: {table} "{key}" may be of dataset {" or ".join(fits)}: rename one of them'
        )
    if not fits:
        _known_dataset(dataset, datasets, path, table)
    return fits[0], key.removeprefix(f"{fits[0]}.")


def _known_dataset(name: str, datasets: Mapping[str, object], path: Path, table: str) -> None:
    if name not in datasets:
        raise UserError(
            f"{path}: {table} names dataset '{name}' that [datasets] does not"
            f"{nearest(name, list(datasets))}"
        )


def _data_files(where: object, name: str, path: Path) -> tuple[Path, ...]:
    """Files of a folder, a file, or a glob with {a,b} alternatives that matches such."""
    if not isinstance(where, str):
        raise UserError(
            f'{path}: [datasets] {name} must be one text: a folder, a file, or "{{a,b}}.h5ad"'
        )
    folder, written = path.parent, str(Path(where).expanduser())
    found: list[Path] = []
    # A name may hold { or * as it is, and so may the split file's own folder.
    for pattern in [written] if (folder / written).exists() else expand_braces(written):
        place = folder / pattern
        matches = [pattern] if place.exists() else sorted(glob.glob(pattern, root_dir=folder))
        files = [file for match in matches for file in _files_of(folder / match)]
        if not files:
            raise WrongPlace(f"{path}: [datasets] {name}: no .h5ad or .h5 file at {place}")
        found += files
    return tuple(dict.fromkeys(found))


def _files_of(place: Path) -> list[Path]:
    if not place.is_dir():
        return [place]
    # Hidden ones are no data, as for a glob: what is still being written, macOS's `._` files.
    named = [file for file in place.iterdir() if not file.name.startswith(".")]
    for file in named:
        if file.name.endswith(PACKED) and file.with_suffix("") not in named:
            raise UserError(f"{file} would not be read: unpack it with gunzip, or move it away")
    return sorted(file for file in named if file.suffix.lower() in SUFFIXES)


def _check_each_file_once(datasets: Mapping[str, Sequence[Path]], path: Path) -> None:
    """The same cells under two names could be trained on and held out."""
    seen: dict[Path, str] = {}
    for name, files in datasets.items():
        for file in files:
            here, real = f"{name} ({file})", file.resolve()
            if real in seen:
                raise UserError(
                    f"{path}: [datasets] {seen[real]} and {here} are the same file: name it once"
                )
            seen[real] = here


def expand_braces(pattern: str) -> list[str]:
    """`a{b,c}d` -> [`abd`, `acd`], for any number of groups."""
    parts = re.split(r"\{([^{}]*)\}", pattern)
    choices = [p.split(",") if i % 2 else [p] for i, p in enumerate(parts)]
    return ["".join(choice) for choice in itertools.product(*choices)]
