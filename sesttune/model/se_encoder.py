"""The frozen State Embedding encoder: count rows in, embeddings out.

Opening one is cheap and gives its identity; the weights are read when the first
cell is encoded, so a sweep whose embeddings are cached never loads them.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy import sparse

from sesttune.model.se_checkpoint import SEFiles, file_sha256, find_files, read_weights
from sesttune.model.se_genes import match_genes
from sesttune.model.se_tokens import Tokens, tokenize
from sesttune.model.se_transformer import SETransformer, build_transformer

ENCODER_VERSION = 2
"""Raised when the same files would give other embeddings."""


class SEEncoder:
    """An SE model of the public checkpoint schema. There is no fallback encoder."""

    def __init__(
        self,
        files: SEFiles,
        device: str = "auto",
        batch_size: int = 32,
        seed: int = 0,
        hash_cache: Path | None = None,
        config: Path | None = None,
    ) -> None:
        self.files = files
        self.device = (
            ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        )
        self.batch_size, self.seed = batch_size, seed
        self._config, self._hash_cache = config, hash_cache
        self._sha256: str | None = None
        self._model: SETransformer | None = None
        self._vocabulary: dict[str, int] = {}
        self._pad_length = self._cls_token_idx = 0

    @classmethod
    def open(
        cls,
        model_folder: str | None,
        checkpoint: str | None = None,
        protein_embeddings: str | None = None,
        device: str = "auto",
        hash_cache: Path | None = None,
    ) -> "SEEncoder":
        """Find the files (UserError where they are missing or ambiguous); loads no weights."""
        files = find_files(model_folder, checkpoint, protein_embeddings)
        return cls(files, device, hash_cache=hash_cache)

    @property
    def identity(self) -> dict[str, str]:
        """`path`, `sha256` and `label` of the checkpoint."""
        if self._sha256 is None:
            self._sha256 = file_sha256(self.files.checkpoint, self._hash_cache)
        path = str(self.files.checkpoint.resolve())
        return {"path": path, "sha256": self._sha256, "label": self.files.label}

    @property
    def key(self) -> str:
        """Changes with anything that changes an embedding."""
        proteins = self.files.proteins
        parts = [
            f"v{ENCODER_VERSION}",
            self.identity["sha256"],
            file_sha256(proteins, self._hash_cache) if proteins else "inside",
            "bf16" if self.device == "cuda" else "fp32",
            f"seed{self.seed}",
        ]
        return "-".join(parts)

    @property
    def embed_dim(self) -> int:
        return self._load().embed_dim

    def encode(
        self,
        x: sparse.csr_matrix,
        gene_names: list[str],
        var_columns: dict[str, list[str]],
        on_batch: Callable[[int], None] | None = None,
    ) -> np.ndarray:
        """Embeddings float32 [cells, embed_dim] of file values [cells, file genes].

        Raises UserError as `match_genes` and `tokenize` do. `on_batch` gets the number of
        cells done.
        """
        self._load()
        match = match_genes(gene_names, var_columns, self._vocabulary)
        parts = []
        for start in range(0, x.shape[0], self.batch_size):
            rows = x[start : start + self.batch_size]
            tokens = tokenize(rows, match, self._pad_length, self._cls_token_idx, self.seed)
            parts.append(self.embed(tokens))
            if on_batch is not None:
                on_batch(start + rows.shape[0])
        return np.concatenate(parts) if parts else np.zeros((0, self.embed_dim), np.float32)

    def embed(self, tokens: Tokens) -> np.ndarray:
        """Embeddings float32 [cells, embed_dim] of ready tokens."""
        model = self._load()
        ids = torch.from_numpy(tokens.ids).to(self.device)
        counts = torch.from_numpy(tokens.counts).to(self.device)
        on_gpu = self.device == "cuda"
        with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16, enabled=on_gpu):
            return model(ids, counts).float().cpu().numpy()

    def _load(self) -> SETransformer:
        if self._model is None:
            weights = read_weights(self.files, self._config)
            self._vocabulary = {symbol: row for row, symbol in enumerate(weights.symbols)}
            self._pad_length, self._cls_token_idx = weights.pad_length, weights.cls_token_idx
            model = build_transformer(weights, self.files).to(self.device)
            model.set_proteins(weights.proteins)
            self._model = model
        return self._model
