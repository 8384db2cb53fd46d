"""Everything a trial needs of the data: prepared once, opened by mmap in each trial.

`prepare` checks what can be refused cheaply first (split file, columns, features,
dimensions) and encodes last. Its result is a small manifest file, so a worker
process opens hundreds of thousands of cells in milliseconds.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sesttune.config.schema import Config
from sesttune.data.embeddings import (
    ControlEmbeddings,
    build_control_embeddings,
    control_embeddings_from_obsm,
)
from sesttune.data.features import (
    feature_matrix,
    missing_features,
    named_otherwise,
    read_features,
)
from sesttune.data.shards import Encoder, Runner, encode_here
from sesttune.data.splits import assign_splits, read_split_file
from sesttune.data.store import CellStore
from sesttune.data.store_builder import SourceFile, build_store
from sesttune.errors import UserError
from sesttune.system.cached_folder import Progress, cached_folder, digest, mark_used, no_progress


@dataclass(frozen=True)
class Condition:
    """The perturbed cells of one (dataset, cell type, perturbation)."""

    pert: int
    dataset: int
    cell_type: int
    rows: np.ndarray
    """Store rows, int64, ascending."""


class TrialData:
    """Prepared data opened from its manifest; arrays are memory-mapped.

    `features` is float32 [perturbations, pert_dim], aligned to `store.names["pert"]`.
    """

    def __init__(self, manifest: Path) -> None:
        about = json.loads(manifest.read_text())
        self.manifest = manifest
        for folder in (about["store"], about["embeddings"], manifest.parent):
            mark_used(Path(folder))
        self.store = CellStore(Path(about["store"]))
        self.controls = ControlEmbeddings(Path(about["embeddings"]), self.store)
        self.features = np.load(manifest.parent / "features.npy", mmap_mode="r")
        self.notes: list[str] = about["notes"]
        self.fingerprint: str = about["fingerprint"]
        self.features_sha256: str = about["features"]
        self.encoder = self.controls.encoder
        self._splits = {(d, c, p): split for d, c, p, split in about["splits"]}

    @property
    def embed_dim(self) -> int:
        return self.controls.embed_dim

    @property
    def n_genes(self) -> int:
        return self.store.n_genes

    @property
    def genes_key(self) -> str:
        """Equal where the genes and their order are."""
        return digest(self.store.genes)

    @property
    def pert_dim(self) -> int:
        return int(self.features.shape[1])

    def conditions(self, split: str) -> list[Condition]:
        """The conditions of `train`, `val` or `test`, in a fixed order."""
        return [
            c
            for c in conditions_of(self.store)
            if self._splits.get(name_of(self.store, c)) == split
        ]


def name_of(store: CellStore, condition: Condition) -> tuple[str, str, str]:
    """Its dataset, cell type and perturbation."""
    names = store.names
    return (
        names["dataset"][condition.dataset],
        names["cell_type"][condition.cell_type],
        names["pert"][condition.pert],
    )


def conditions_of(store: CellStore) -> list[Condition]:
    """Every condition of the store's perturbed cells, ordered by dataset, cell type, name."""
    code = store.context * len(store.names["pert"]) + store.pert
    rows = np.flatnonzero(~store.is_control)
    rows = rows[np.argsort(code[rows], kind="stable")]
    starts = np.flatnonzero(np.diff(code[rows], prepend=-1))
    return [
        Condition(
            int(store.pert[group[0]]),
            int(store.dataset[group[0]]),
            int(store.cell_type[group[0]]),
            group,
        )
        for group in np.split(rows, starts[1:])
        if len(group)
    ]


def prepare(
    config: Config,
    load_encoder: Callable[[], Encoder],
    progress: Progress = no_progress,
    runner: Runner = encode_here,
    genes: list[str] | None = None,
) -> Path:
    """Check the data, build what is not cached, and return the manifest's path.

    `genes` fixes the store's genes and their order; None takes those that the settings say.
    `load_encoder` is called only where `data.kwargs.embed_key` is not set; the encoder's
    weights are needed only on a cache miss, and `runner` then does the encoding. Raises
    UserError for every fault of the input.
    """
    kwargs = config.data.kwargs
    if kwargs.toml_config_path is None:
        raise UserError("data.kwargs.toml_config_path is not set: name a cell-load split file")
    if kwargs.perturbation_features_file is None:
        raise UserError(
            "data.kwargs.perturbation_features_file is not set: name a .pt file of "
            "perturbation name -> feature vector"
        )
    split_file = read_split_file(Path(kwargs.toml_config_path).expanduser())
    features = read_features(Path(kwargs.perturbation_features_file).expanduser())
    _check_dim("pert_dim", config.model.kwargs.pert_dim, len(next(iter(features.values()))))
    encoder = load_encoder() if kwargs.embed_key is None else None
    cache = Path(config.data.cache_dir).expanduser().absolute()
    files = [SourceFile(p, name) for name, paths in split_file.datasets.items() for p in paths]
    store = build_store(files, kwargs, cache, progress, genes)
    _check_dim("input_dim", config.model.kwargs.input_dim, store.n_genes)
    _check_dim("output_dim", config.model.kwargs.output_dim, store.n_genes)
    notes = list(store.notes)
    conditions = {name_of(store, c): len(c.rows) for c in conditions_of(store)}
    lacking = missing_features(features, [c[2] for c in conditions])
    if lacking:
        total = len({condition[2] for condition in conditions})
        notes.append(_refuse_or_drop(lacking, kwargs.missing_features, total, features))
    seed = config.training.train_seed
    splits, split_notes = assign_splits(
        split_file, conditions, kwargs.val_fraction, seed, set(lacking)
    )
    notes += split_notes
    if encoder is not None:
        controls = build_control_embeddings(store, encoder, cache, progress, runner)
    else:
        assert kwargs.embed_key is not None
        controls = control_embeddings_from_obsm(store, kwargs.embed_key, cache)
    notes += describe_genes(controls.gene_reports)
    notes.append(
        f"{len(controls.matrix):,} control cells embedded by {controls.encoder['label']} "
        f"({controls.embed_dim} values each)"
    )
    notes += [_describe_splits(splits, conditions), *describe_pairing(store, kwargs.batch_col)]
    matrix = feature_matrix(features, store.names["pert"])
    listed = sorted((*condition, split) for condition, split in splits.items())
    about = {
        "store": str(store.folder),
        "embeddings": str(controls.folder),
        "splits": listed,
        "notes": notes,
        "fingerprint": digest(store.fingerprint, listed),
        "features": hashlib.sha256(matrix.tobytes()).hexdigest(),
    }

    def write(draft: Path) -> None:
        np.save(draft / "features.npy", matrix)
        (draft / "manifest.json").write_text(json.dumps(about))

    return cached_folder(cache / "prepared" / digest(about), write) / "manifest.json"


def _refuse_or_drop(lacking: list[str], setting: str, total: int, features: Collection[str]) -> str:
    shown = ", ".join(lacking[:8]) + (", …" if len(lacking) > 8 else "")
    otherwise = named_otherwise(features, lacking)
    if setting == "refuse" or len(lacking) == total:
        fix = "add them, or set data.kwargs.missing_features=drop"
        if otherwise:
            fix = f"{otherwise}: name them as obs does"
        elif len(lacking) == total:
            fix = f"name them as obs does, it has e.g. {', '.join(list(features)[:3])}"
        raise UserError(
            f"data.kwargs.perturbation_features_file has no vector for {len(lacking)} of {total} "
            f"perturbations ({shown}); {fix}"
        )
    told = f"dropped {len(lacking)} of {total} perturbations without a feature vector: {shown}"
    return f"{told}; {otherwise}" if otherwise else told


def _check_dim(name: str, expected: int | None, found: int) -> None:
    if expected is not None and expected != found:
        fits = f"model.kwargs.{name}={found}"
        if name != "pert_dim":
            fits = f"model.kwargs.input_dim={found} model.kwargs.output_dim={found}"
        what = "feature vectors have width" if name == "pert_dim" else "number of common genes is"
        raise UserError(
            f"model.kwargs.{name}={expected}, but the data's {what} {found}; set {fits}"
        )


def describe_genes(reports: dict[str, str]) -> list[str]:
    """One line for all files that matched alike."""
    alike: dict[str, list[str]] = {}
    for path, report in reports.items():
        alike.setdefault(report, []).append(Path(path).name)
    return [
        f"{files[0]}{f' and {len(files) - 1} more' if files[1:] else ''}: {report}"
        for report, files in alike.items()
    ]


def _describe_splits(
    splits: Mapping[tuple[str, str, str], str], cells: Mapping[tuple[str, str, str], int]
) -> str:
    counts = [
        f"{sum(1 for s in splits.values() if s == split)} {split}"
        for split in ("train", "val", "test")
    ]
    sizes = [cells[condition] for condition in splits]
    least, most = min(sizes), max(sizes)
    of = f"of {least:,} cells each" if least == most else f"of {least:,} to {most:,} cells"
    return f"conditions (cell type × perturbation): {', '.join(counts)}, {of}"


def describe_pairing(store: CellStore, batch_col: str) -> list[str]:
    """Lines where the pairing of `sampling.ControlPool` leaves the batch, or may not be meant."""
    batch = store.context * len(store.names["batch"]) + store.batch
    told = []
    alone = ~np.isin(batch[~store.is_control], batch[store.is_control])
    if alone.any():
        told.append(
            f"{int(alone.sum()):,} of {len(alone):,} perturbed cells have no control of their "
            f"{batch_col}: theirs are of all batches of the cell type"
        )
    parts = np.unique(batch * len(store.files) + store.file) // len(store.files)
    found, files = np.unique(parts, return_counts=True)
    if (files > 1).any():
        name = store.names["batch"][found[files > 1][0] % len(store.names["batch"])]
        told.append(
            f"{int((files > 1).sum()):,} of {len(found):,} batches (e.g. {batch_col} '{name}') "
            "have cells in several files and are one each: label them by file if they are not"
        )
    return told
