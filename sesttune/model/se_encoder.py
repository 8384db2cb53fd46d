"""The frozen State Embedding encoder: count rows in, embeddings out.

Opening one is cheap and gives its identity; the weights are read when the first
cell is encoded, so a sweep whose embeddings are cached never loads them.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
import torch
from scipy import sparse

from sesttune.errors import UserError
from sesttune.model.se_checkpoint import (
    SEFiles,
    SEWeights,
    file_sha256,
    read_weights,
)
from sesttune.model.se_converted import load_converted, save_converted
from sesttune.model.se_genes import MIN_MATCHED, GeneMatch, match_genes
from sesttune.model.se_tokens import Tokens, tokenize
from sesttune.model.se_transformer import SETransformer, build_transformer
from sesttune.system.cached_folder import cached_folder, digest, is_intact
from sesttune.system.host_memory import keep_freed_memory, release_freed_memory
from sesttune.system.machine import cores
from sesttune.system.out_of_memory import give_back, is_out_of_memory
from sesttune.system.threads import one_core_each

log = logging.getLogger(__name__)

ENCODER_VERSION = 4
"""Raised when the same files would give other embeddings."""
CONVERTED_VERSION = 1
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
CPU_BATCH, GPU_BATCH = 2, 64
"""Cells a pass: more is not faster, as a cell is 2,049 tokens already."""


def one_thread() -> ThreadPoolExecutor:
    """For all passes on a GPU, one at a time, while others read and tokenise.

    What cuDNN has planned for a shape is a thread's own, and planning takes tens of milliseconds.
    """
    return ThreadPoolExecutor(1, "encoder passes")


class SEEncoder:
    """An SE model of the public checkpoint schema. There is no fallback encoder.

    `precision` is `fp32`, `bf16` or `auto` (bf16 on a GPU that has it, as in public).
    `batch_size` is the largest number of cells a pass; out of memory halves it. `seed` draws
    filler genes. In `cache` are kept the hashes of the files, and their inference tensors as
    safetensors.
    """

    def __init__(
        self,
        files: SEFiles,
        device: str = "auto",
        batch_size: int | None = None,
        seed: int = 0,
        cache: Path | None = None,
        config: Path | None = None,
        precision: str = "auto",
        min_matched: float = MIN_MATCHED,
    ) -> None:
        self.files, self.seed, self.min_matched = files, seed, min_matched
        self._asked = device, batch_size
        self._choose_device()
        if precision == "auto":
            bf16 = self.device != "cpu" and torch.cuda.is_bf16_supported(including_emulation=False)
            precision = "bf16" if bf16 else "fp32"
        self.precision = precision
        self._config, self._cache = config, cache
        self._hashes = cache / "sha256" if cache else None
        self._found: tuple[str, str] | None = None
        self._model: SETransformer | None = None
        self._vocabulary: dict[str, int] = {}
        self._pad_length = self._cls_token_idx = 0
        self._make_locks()

    def _choose_device(self) -> None:
        device, batch_size = self._asked
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = device
        by_device = CPU_BATCH if device == "cpu" else GPU_BATCH
        self.batch_size = by_device if batch_size is None else batch_size
        self.calls_at_once = 1 if device == "cpu" else 2

    def _make_locks(self) -> None:
        self._loading = RLock()
        # A pass a core on a CPU: none waits for another after each operation.
        self._threads = min(torch.get_num_threads(), cores()) if self.device == "cpu" else 2
        self._passes = None if self.device == "cpu" else one_thread()

    def __getstate__(self) -> dict[str, Any]:
        """Another process, maybe on another machine, loads its own weights on its own device."""
        return {**self.__dict__, "_model": None, "_loading": None, "_passes": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._choose_device()
        self._make_locks()

    @property
    def identity(self) -> dict[str, str]:
        """`path`, `sha256` and `label` of the checkpoint; `proteins`: sha256 of their file."""
        path, (sha256, proteins) = str(self.files.checkpoint.resolve()), self._sha256s()
        return {"path": path, "sha256": sha256, "proteins": proteins, "label": self.files.label}

    @property
    def key(self) -> str:
        """Changes with anything that changes an embedding."""
        parts = [f"v{ENCODER_VERSION}", *self._sha256s(), self.precision, f"seed{self.seed}"]
        return "-".join(parts)

    def _sha256s(self) -> tuple[str, str]:
        if self._found is None:
            weights, proteins = self.files.checkpoint, self.files.proteins
            of_proteins = file_sha256(proteins, self._hashes) if proteins else "inside"
            self._found = file_sha256(weights, self._hashes), of_proteins
        return self._found

    @property
    def embed_dim(self) -> int:
        return self._load().embed_dim

    def match(
        self, gene_names: Sequence[str], var_columns: Mapping[str, Sequence[str]]
    ) -> GeneMatch:
        """Which genes of a file the encoder knows; raises UserError as `match_genes` does."""
        with self._loading:
            if not self._vocabulary:
                self._read()
        return match_genes(gene_names, var_columns, self._vocabulary, self.min_matched)

    def encode(
        self,
        x: sparse.csr_matrix,
        match: GeneMatch,
        on_batch: Callable[[int], None] | None = None,
    ) -> np.ndarray:
        """Embeddings float32 [cells, embed_dim] of values [cells, genes of the matched file].

        Raises UserError as `tokenize` does. `on_batch` gets the number of cells done.
        """
        out = np.empty((x.shape[0], self.embed_dim), np.float32)
        size = self.batch_size
        starts = range(0, x.shape[0], size)

        def work(start: int) -> np.ndarray:
            rows = x[start : start + size]
            tokens = tokenize(rows, match, self._pad_length, self._cls_token_idx, self.seed)
            if self._passes is None:
                return self._embed_what_fits(tokens)
            return self._passes.submit(self._embed_what_fits, tokens).result()

        pool = one_core_each(max(1, min(self._threads, len(starts))), "encoder")
        try:
            for start, part in zip(starts, pool.map(work, starts), strict=True):
                out[start : start + len(part)] = part
                if on_batch is not None:
                    on_batch(start + len(part))
        finally:
            pool.shutdown(cancel_futures=True)
        if self.device == "cpu":
            release_freed_memory()
        return out

    def embed(self, tokens: Tokens) -> np.ndarray:
        """Embeddings float32 [cells, embed_dim] of ready tokens, in one pass."""
        model = self._load()
        ids = torch.from_numpy(tokens.ids).to(self.device)
        counts = torch.from_numpy(tokens.counts).to(self.device)
        with torch.inference_mode():
            return model(ids, counts).float().cpu().numpy()

    def _embed_what_fits(self, tokens: Tokens) -> np.ndarray:
        """`embed` in parts of at most `batch_size`, halved where memory runs out."""
        parts: list[np.ndarray] = []
        done = 0
        while done < len(tokens):
            part = tokens[done : done + self.batch_size]
            try:
                parts.append(self.embed(part))
                done += len(part)
                continue
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if len(part) == 1:
                    raise UserError(
                        f"{self.device} has too little free memory to encode a single cell"
                    ) from None
            # Outside of `except`, whose traceback keeps the tensors of the failed pass.
            self.batch_size = min(self.batch_size, len(part) // 2)  # another may have failed too
            give_back()
            log.warning("out of memory: encoding %d cells a pass", self.batch_size)
        return np.concatenate(parts)

    def _read(self) -> SEWeights:
        weights = self._read_files()
        self._vocabulary = {symbol: row for row, symbol in enumerate(weights.symbols)}
        self._pad_length, self._cls_token_idx = weights.pad_length, weights.cls_token_idx
        return weights

    def _read_files(self) -> SEWeights:
        if self._cache is None or self._config is not None:
            return read_weights(self.files, self._config)
        key = digest(CONVERTED_VERSION, self._sha256s())
        return load_converted(
            cached_folder(
                self._cache / "encoders" / key,
                lambda draft: save_converted(draft, read_weights(self.files), self.files),
                is_intact,  # what damaged weights encode would be kept as if it were right
            )
        )

    def _load(self) -> SETransformer:
        with self._loading:
            if self._model is None:
                if self.device == "cpu":
                    keep_freed_memory()
                weights = self._read()
                model = build_transformer(weights, self.files)
                proteins = weights.proteins
                del weights  # the checkpoint's pages, which `freeze` can then let go one by one
                try:
                    model.to(self.device).freeze(proteins, DTYPES[self.precision])
                except Exception as error:
                    if not is_out_of_memory(error):
                        raise
                    raise UserError(
                        f"{self.device} has too little free memory for the encoder itself"
                    ) from None
                self._model = model
            return self._model
