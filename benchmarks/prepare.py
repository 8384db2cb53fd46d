"""What preparing the data costs beside the encoder's passes.

    python benchmarks/prepare.py                          # 3,000 of 18,080 genes expressed
    python benchmarks/prepare.py --expressed 8400 --gzip  # as dense as the VCC data, compressed

Seconds to build the cell store of an h5ad file, and to plan, read and write the shards of its
control cells with an encoder that computes nothing. A GPU waits for the planning, and for the
rest where it takes longer than the passes.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import sparse
from synthetic_trial import add_sizes, write_cells

from sesttune.config.schema import DataKwargs
from sesttune.data.embeddings import build_control_embeddings
from sesttune.data.shards import Encoder, Shard, encode_here
from sesttune.data.store_builder import SourceFile, build_store

WIDTH = 2_058


class Match:
    report = "no genes are matched"


class NoEncoder:
    """Gives zeros."""

    min_matched, calls_at_once, key = 0.0, 2, "none"

    @property
    def identity(self) -> dict[str, str]:
        return {"path": "", "sha256": "", "label": self.key}

    def match(self, gene_names: object, var_columns: object) -> Match:
        return Match()

    def encode(self, x: sparse.csr_matrix, match: object) -> np.ndarray:
        return np.zeros((x.shape[0], WIDTH), np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add_sizes(parser)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_cells(folder, args)
        start = time.perf_counter()
        store = build_store([SourceFile(folder / "cells.h5ad", "bench")], DataKwargs(), folder)
        built = time.perf_counter()
        planned = 0.0

        def run(shards: Sequence[Shard], encoder: Encoder, progress: object) -> None:
            nonlocal planned
            planned = time.perf_counter()
            encode_here(shards, encoder, lambda *shown: None)

        build_control_embeddings(store, NoEncoder(), folder, runner=run)
        end = time.perf_counter()
        controls = int(store.is_control.sum())
    compressed = ", compressed" if args.gzip else ""
    print(f"{args.cells:,} cells of {args.expressed:,} of {args.genes:,} genes{compressed}")
    print(f"{'cell store':<30}{built - start:9.2f} s {args.cells / (built - start):12,.0f} cells/s")
    print(f"{'planning the shards':<30}{planned - built:9.2f} s")
    rate = controls / (end - planned)
    print(f"{'reading and writing them':<30}{end - planned:9.2f} s {rate:12,.0f} controls/s")


if __name__ == "__main__":
    main()
