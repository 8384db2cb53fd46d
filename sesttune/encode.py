"""`sesttune encode`: State Embeddings of the cells of an h5ad file.

Option names follow the public `state emb transform`. The embeddings go into a copy of
the input (`obsm["X_state"]`), or alone into a `.npy`. The copy is one of bytes, so the
rest of the file may be larger than memory, or of a kind that anndata cannot read.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from sesttune.command import check_output, run, settings_as_flags
from sesttune.config.schema import ModelKwargs
from sesttune.errors import UserError
from sesttune.system.atomic import replacing

if TYPE_CHECKING:
    import numpy as np

    from sesttune.model.se_encoder import SEEncoder

BLOCK_ROWS = 1_024
FLAGS = {
    "model.kwargs.se_model_path": "--model-folder",
    "model.kwargs.se_checkpoint_path": "--checkpoint",
    "model.kwargs.se_min_matched": "--min-matched",
}


def main(argv: Sequence[str]) -> int:
    """Compute the SE embedding of every cell of an h5ad file."""
    parser = argparse.ArgumentParser("sesttune encode", description=main.__doc__)
    parser.add_argument("--input", required=True, type=Path, metavar="IN.h5ad")
    parser.add_argument("--output", required=True, type=Path, metavar="OUT.h5ad|OUT.npy")
    parser.add_argument("--model-folder", metavar="DIR", help="folder of the SE model")
    parser.add_argument(
        "--checkpoint", metavar="C", help="checkpoint, if not the folder's only one"
    )
    parser.add_argument("--protein-embeddings", metavar="P", help="dict of symbol -> vector, .pt")
    parser.add_argument("--config", type=Path, metavar="Y", help="settings, if not the saved ones")
    parser.add_argument("--embed-key", default="X_state", help="obsm key: %(default)s")
    parser.add_argument("--batch-size", type=int, help="cells a pass (default: by device)")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument(
        "--min-matched",
        type=float,
        default=ModelKwargs.se_min_matched,
        metavar="SHARE",
        help="least share of the file's genes the encoder must know: %(default)s",
    )
    parser.add_argument("--seed", type=int, default=0, help="draw of filler genes: %(default)s")
    args = parser.parse_args(argv)
    args.input, args.output = args.input.expanduser(), args.output.expanduser()
    check_output(args.output, (".h5ad", ".npy"))
    if args.embed_key in ("", ".") or "/" in args.embed_key:
        raise UserError(f"--embed-key '{args.embed_key}' must be a plain name without '/'")
    if not 0 <= args.seed < 2**63:
        raise UserError(f"--seed {args.seed} must be in [0, 2^63)")
    if args.model_folder is None and args.checkpoint is None:
        raise UserError("name the SE model: --model-folder DIR, or --checkpoint C")
    if args.batch_size is not None and args.batch_size < 1:
        raise UserError(f"--batch-size {args.batch_size} must be at least 1")
    if not 0 <= args.min_matched <= 1:
        raise UserError(f"--min-matched {args.min_matched:g} must be in [0, 1]")
    with settings_as_flags(FLAGS):
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    from sesttune.model.se_checkpoint import find_files
    from sesttune.model.se_encoder import SEEncoder

    files = find_files(args.model_folder, args.checkpoint, args.protein_embeddings)
    encoder = SEEncoder(
        files,
        batch_size=args.batch_size,
        seed=args.seed,
        config=args.config,
        precision=args.precision,
        min_matched=args.min_matched,
    )
    print(f"encoder: {encoder.identity['label']} (sha256 {encoder.identity['sha256'][:12]})")
    embeddings = _encode(args.input, args.output, encoder)
    _write(args.input, args.output, embeddings, args.embed_key)
    print(f"{len(embeddings):,} cells, {embeddings.shape[1]} values each, in {args.output}")
    return 0


def _encode(source: Path, output: Path, encoder: "SEEncoder") -> "np.ndarray":
    import numpy as np

    from sesttune.data.h5ad import H5adFile
    from sesttune.data.value_scale import BINARY, ValueScale
    from sesttune.system.progress_bars import progress_bars

    what, done, negative, scale = "encoding cells", 0, False, ValueScale(source)
    parts: list[np.ndarray] = []
    with H5adFile(source) as file, progress_bars(Console(stderr=True)) as show:
        width = encoder.embed_dim  # reads the model, whose faults are not the input's
        try:
            match = encoder.match(file.var_names, file.var_columns())
        except UserError as error:
            raise UserError(f"--input {source}: {error}") from None
        print(f"{source.name}: {match.report}")
        for line in file.unreadable_var():
            print(f"warning: {line}", file=sys.stderr)
        _check_room(source, output, 4 * file.n_cells * width)
        show(what, done, file.n_cells)
        for block in file.iter_csr(block_rows=BLOCK_ROWS):

            def advance(count: int, before: int = done) -> None:
                show(what, before + count, file.n_cells)

            negative = negative or bool((block.data < 0).any())
            scale.add(block)
            parts.append(encoder.encode(block, match, advance))
            if not np.isfinite(parts[-1]).all():
                raise UserError(
                    f"--input {source}: the encoder gives NaN: its checkpoint or protein "
                    "embeddings hold NaN or infinity"
                )
            done += block.shape[0]
        told = BINARY if scale.binary else ""
        if negative:
            told = "X holds negative values, which the encoder reads as 0"
        if told:
            print(f"warning: --input {source}: {told}{file.elsewhere()}", file=sys.stderr)
    return np.concatenate(parts)


def _check_room(source: Path, output: Path, size: int) -> None:
    """Raise UserError where the disk has no room for embeddings of `size` bytes."""
    size += source.stat().st_size if output.suffix == ".h5ad" else 0
    free = shutil.disk_usage(output.parent).free
    if size > free:
        raise UserError(
            f"--output {output} will have {size / 1e9:.2f} GB and its disk has {free / 1e9:.2f} GB "
            "free: free some space, or name another place"
        )


def _write(source: Path, output: Path, embeddings: "np.ndarray", key: str) -> None:
    import numpy as np

    try:
        with replacing(output) as draft:
            if output.suffix == ".npy":
                np.save(draft, embeddings)
            else:
                shutil.copyfile(source, draft)
                _add_to(draft, embeddings, key)
    except OSError as error:
        raise UserError(f"--output {output}: cannot write it ({error})") from None


def _add_to(path: Path, embeddings: "np.ndarray", key: str) -> None:
    import h5py
    from anndata.io import write_elem

    with h5py.File(path, "r+") as file:
        if "obsm" not in file:
            write_elem(file, "obsm", {})
        write_elem(file["obsm"], key, embeddings)


if __name__ == "__main__":
    sys.exit(run(main))
