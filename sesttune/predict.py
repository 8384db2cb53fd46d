"""`sesttune predict`: predict perturbed cells from the controls of an h5ad file.

Every cell that is not a control gets a prediction made from a control of its own
context (same batch where there is one); control cells keep their own log1p
expression. The output has the input's obs and var.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sesttune.command import check_output, run, settings_as_flags
from sesttune.config.schema import Config
from sesttune.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from sesttune.data.embeddings import ControlEmbeddings
    from sesttune.data.store import CellStore
    from sesttune.model.st_head import STHead

FLAGS = {
    "data.cache_dir": "--cache-dir",
    "model.kwargs.se_model_path": "--model-folder",
    "model.kwargs.se_checkpoint_path": "--model-folder",
    "data.kwargs.perturbation_features_file": "--features",
}

FIXED = {
    "dataset 'input', cell type": "--adata: cell type",
    "set data.kwargs.control_pert to its label": "the model's controls are called so: label these "
    "the same",
    "set data.kwargs.pert_col": "the model's perturbations are in such a one: name it so",
    "set data.kwargs.cell_type_key": "the model's cell types are in such a one: name it so",
    "set data.kwargs.batch_col": "the model's batches are in such a one: name it so",
    "set data.kwargs.counts=raw if these are counts": "give counts, or log1p values of counts",
    ", or set data.kwargs.embed_key=null to compute the embeddings": "",
}
"""Settings that come with the model: what else can be done where a training's could be changed."""


def main(argv: Sequence[str]) -> int:
    """Predict perturbed expression with a registered model."""
    parser = argparse.ArgumentParser("sesttune predict", description=main.__doc__)
    parser.add_argument("--model", required=True, help="models:/se-st@champion, or a folder")
    parser.add_argument("--adata", required=True, type=Path, metavar="IN.h5ad")
    parser.add_argument("--output", required=True, type=Path, metavar="OUT.h5ad")
    parser.add_argument("--model-folder", help="SE model folder, if it has moved")
    parser.add_argument("--cache-dir", metavar="DIR", help="default: the training's own")
    parser.add_argument("--features", type=Path, help="features of perturbations not trained on")
    parser.add_argument("--output-dir", default="outputs", help="runs and MLflow: %(default)s")
    parser.add_argument("--seed", type=int, default=42, help="which controls: %(default)s")
    parser.add_argument(
        "--vcc", action="store_true", help="write what `cell-eval prep` takes, and its gene list"
    )
    args = parser.parse_args(argv)
    if args.seed < 0:
        raise UserError(f"--seed {args.seed} must not be negative")
    check_output(args.output, (".h5ad",), source=args.adata)
    from sesttune.config.load import from_dict, with_point
    from sesttune.data.trial_data import describe_genes, describe_pairing
    from sesttune.model.head_checkpoint import import_head
    from sesttune.predicted_file import (
        check_memory,
        check_vcc,
        without_x,
        write_predicted,
        write_vcc,
    )
    from sesttune.tracking.registry import fetch_model
    from sesttune.tracking.store import tracking_uri

    uri = tracking_uri(Config(output_dir=args.output_dir))
    folder = fetch_model(args.model, uri)
    head, about = import_head(folder)
    config = from_dict(about["config"])
    if args.cache_dir is not None:
        config = with_point(config, {"data.cache_dir": args.cache_dir})
    if args.vcc:
        check_vcc(args.adata, config.data.kwargs)
    features = _features(folder, args.features, about["head"]["pert_dim"])
    check_memory(args.adata, len(about["genes"]))
    store, controls = _read_cells(args, config, about, set(features))
    pairing = describe_pairing(store, config.data.kwargs.batch_col)
    for line in (*describe_genes(controls.gene_reports), *pairing):
        print(line)
    if store.is_control.all():
        raise UserError(f"--adata {args.adata} holds control cells alone: nothing to predict")
    predicted = without_x(args.adata, about)
    expression = _predict(head, store, controls, features, config, args.seed)
    if args.vcc:
        prepare = write_vcc(predicted, args.output, expression, config.data.kwargs)
    else:
        write_predicted(predicted, args.output, expression)
    print(f"{int((~store.is_control).sum()):,} cells predicted, written to {args.output}")
    if args.vcc:
        print(f"submit it: {prepare}")
    return 0


def _features(folder: Path, more: Path | None, width: int) -> dict[str, "np.ndarray"]:
    from sesttune.data.features import read_features
    from sesttune.model.head_checkpoint import read_vectors

    known = read_vectors(folder)
    if more is None:
        return known
    with settings_as_flags(FLAGS):
        others = read_features(more)
    found = len(next(iter(others.values())))
    if found != width:
        raise UserError(
            f"--features {more}: its vectors have {found} values, those of the model {width}: give "
            "features made as those it was trained on were"
        )
    return {**others, **known}


def _read_cells(
    args: argparse.Namespace, config: Config, about: dict[str, Any], known: set[str]
) -> tuple["CellStore", "ControlEmbeddings"]:
    """The input as a cell store of the model's genes, its controls encoded."""
    from sesttune.data.embeddings import build_control_embeddings, control_embeddings_from_obsm
    from sesttune.data.identity import other_embeddings
    from sesttune.data.store_builder import SourceFile, build_store
    from sesttune.data.value_scale import unlike_training
    from sesttune.model.se_checkpoint import find_files
    from sesttune.model.se_encoder import SEEncoder

    cache = Path(config.data.cache_dir).expanduser().absolute()
    source = SourceFile(args.adata, "input")
    with settings_as_flags(FIXED | FLAGS):
        store = build_store([source], config.data.kwargs, cache, genes=about["genes"])
    print("\n".join(store.notes))
    told = unlike_training(store.counts_a_cell, about.get("counts_a_cell", ()))
    if told is not None:
        print(f"warning: --adata {args.adata}: {told}", file=sys.stderr)
    lacking = sorted({n for n in store.names["pert"] if n != store.control_pert} - known)
    if lacking:
        raise UserError(
            f"{args.adata}: the model has no feature vector for {len(lacking)} perturbations "
            f"({', '.join(lacking[:5])}); give a file that has with --features"
        )
    if config.data.kwargs.embed_key is not None:
        with settings_as_flags(FIXED):
            return store, control_embeddings_from_obsm(store, config.data.kwargs.embed_key, cache)
    checkpoint = None if args.model_folder else about["encoder"]["path"]
    moved = args.model_folder or str(Path(about["encoder"]["path"]).parent)
    kwargs = config.model.kwargs
    with settings_as_flags(FLAGS):
        encoder = SEEncoder(
            find_files(moved, checkpoint),
            cache=cache,
            precision=kwargs.se_precision,
            min_matched=kwargs.se_min_matched,
        )
    if encoder.identity["sha256"] != about["encoder"]["sha256"]:
        raise UserError(
            f"{encoder.files.checkpoint} is not the encoder this model was trained with "
            f"(sha256 {encoder.identity['sha256'][:12]}, expected "
            f"{about['encoder']['sha256'][:12]}); point --model-folder at the right one"
        )
    if other_embeddings(about["encoder"], encoder.identity):
        raise UserError(
            f"the protein embeddings of {encoder.files.checkpoint} are not those this model was "
            "trained with; point --model-folder at the right folder"
        )
    return store, build_control_embeddings(store, encoder, cache)


def _predict(
    head: "STHead",
    store: "CellStore",
    controls: "ControlEmbeddings",
    features: dict[str, "np.ndarray"],
    config: Config,
    seed: int,
) -> "np.ndarray":
    """log1p expression float32 [cells, genes]: predicted, and of controls their own."""
    import numpy as np

    from sesttune.data.features import feature_matrix
    from sesttune.data.trial_data import conditions_of
    from sesttune.evaluation.every_cell import predict_every_cell
    from sesttune.evaluation.predictors import head_predictor
    from sesttune.predicted_file import BLOCK_ROWS

    out = np.empty((store.n_cells, store.n_genes), np.float32)
    own = np.flatnonzero(store.is_control)
    for start in range(0, len(own), BLOCK_ROWS):  # of all at once there would be a second copy
        block = own[start : start + BLOCK_ROWS]
        out[block] = store.dense(block)
    predict = head_predictor(head, controls, feature_matrix(features, store.names["pert"]))
    length = config.model.kwargs.st_cell_set_len
    for rows, predicted in predict_every_cell(store, conditions_of(store), predict, length, seed):
        out[rows] = predicted
    return out


if __name__ == "__main__":
    sys.exit(run(main))
