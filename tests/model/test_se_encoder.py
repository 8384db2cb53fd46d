"""The encoder's embeddings: against the public ones, in any precision, batch, order and memory."""

import pickle
import weakref
from concurrent.futures import ThreadPoolExecutor
from threading import get_ident

import numpy as np
import pytest
import torch
from helpers.onednn import needs_onednn, needs_onednn_bf16
from helpers.oracle import ORACLE, open_oracle, read
from helpers.waits import Waits

from sesttune.errors import UserError
from sesttune.model import attention
from sesttune.model.se_checkpoint import find_files, read_weights
from sesttune.model.se_encoder import one_thread
from sesttune.model.se_tokens import Tokens
from sesttune.model.se_transformer import SETransformer, build_transformer

NEEDS_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
TOLERANCE = 1.5e-6
"""LayerNorm eps 1e-6 for 1e-5 shows at 2.1e-6, tanh-GELU at 3.6e-5, all else higher."""


@pytest.mark.parametrize("checkpoint", ["se_tiny.ckpt", "se_tiny_old.ckpt"])
@pytest.mark.parametrize(
    ("cells", "expected"), [("cells", "expected"), ("cells_255known", "expected_255known")]
)
def test_embeddings_equal_the_public_implementation(
    checkpoint: str, cells: str, expected: str
) -> None:
    found = open_oracle(checkpoint).encode(*read(cells))
    wanted = np.load(ORACLE / f"{expected}.npy")
    assert found.shape == wanted.shape == (len(wanted), 74)
    assert np.abs(found - wanted).max() <= TOLERANCE


@pytest.mark.parametrize("name", ["", "_255known", "_sparse", "_120known"])
def test_embeddings_of_the_recorded_tokens(name: str) -> None:
    recorded = np.load(ORACLE / f"tokens_cells{name}.npz")
    # Column 0 of the record is CLS: it has a count and no gene of its own.
    tokens = Tokens(recorded["ids"][:, 1:].astype(np.int64), recorded["counts"])
    found = open_oracle().embed(tokens)
    assert np.abs(found - np.load(ORACLE / f"expected{name}.npy")).max() <= TOLERANCE


def test_no_pass_asks_for_a_value() -> None:
    """Or each would wait for the GPU in the middle."""
    files = find_files(None, str(ORACLE / "se_tiny.ckpt"), None)
    weights = read_weights(files)
    model = build_transformer(weights, files)
    model.freeze(weights.proteins, torch.float32)
    recorded = np.load(ORACLE / "tokens_cells.npz")
    ids, counts = torch.from_numpy(recorded["ids"][:, 1:]), torch.from_numpy(recorded["counts"])
    with Waits() as waits, torch.inference_mode():
        model(ids, counts)
    assert waits.found == []
    assert waits.operations > 40  # a whole pass was seen


@pytest.mark.parametrize("name", ["cells", "cells_255known"])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_GPU)])
def test_bfloat16_keeps_the_embedding(device: str, name: str) -> None:
    cells = read(name)
    exact, rounded = open_oracle(), open_oracle(device=device, precision="bf16")
    found, wanted = rounded.encode(*cells), exact.encode(*cells)
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(wanted, axis=1)
    assert ((found * wanted).sum(1) / lengths).min() >= 0.9999
    assert not np.array_equal(found, wanted)
    assert rounded.key != exact.key


@pytest.mark.parametrize("name", ["cells", "cells_255known"])
@pytest.mark.parametrize(
    "precision",
    [
        pytest.param("fp32", marks=needs_onednn),
        pytest.param("bf16", marks=needs_onednn_bf16),
    ],
)
def test_the_attention_of_an_amd_gives_the_same(
    precision: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By oneDNN's products, which it takes for the 2,049 tokens of a real encoder."""
    taken, by_onednn = [], attention.attend_by_onednn
    monkeypatch.setattr(attention, "_MANY_TOKENS", 0)
    monkeypatch.setattr(attention, "_products_by_onednn", lambda dtype: True)
    monkeypatch.setattr(
        attention, "attend_by_onednn", lambda *qkv: taken.append(1) or by_onednn(*qkv)
    )
    wanted = np.load(ORACLE / f"expected{name.removeprefix('cells')}.npy")
    found = open_oracle(precision=precision).encode(*read(name))
    if precision == "fp32":
        assert np.abs(found - wanted).max() <= TOLERANCE
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(wanted, axis=1)
    assert ((found * wanted).sum(1) / lengths).min() >= 0.9999
    assert taken


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (torch.OutOfMemoryError, "CUDA out of memory"),
        (RuntimeError, "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
    ],
)
def test_out_of_memory_halves_the_batch_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, kind: type[RuntimeError], words: str
) -> None:
    cells = read("cells")
    wanted = open_oracle().encode(*cells)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)  # one pass after another
    encoder, most, passes = open_oracle(batch_size=16), 5, []
    embed, held = encoder.embed, []

    def embed_in_little_memory(tokens: Tokens) -> np.ndarray:
        passes.append(len(tokens))
        activation = torch.ones(3)
        held.append(weakref.ref(activation))
        if len(tokens) > most:
            raise kind(words)
        return embed(tokens)

    def nothing_is_held() -> None:
        assert held.pop()() is None, "what the failed pass held cannot be given back"

    monkeypatch.setattr(encoder, "embed", embed_in_little_memory)
    monkeypatch.setattr(torch.cuda, "empty_cache", nothing_is_held)
    assert np.abs(encoder.encode(*cells) - wanted).max() <= 1e-6
    assert passes[:3] == [16, 8, 4]
    assert max(passes[2:]) == encoder.batch_size == 4
    most = 0
    with pytest.raises(UserError, match="cpu has too little free memory to encode a single cell"):
        encoder.encode(*cells)


def test_a_device_too_full_for_the_weights_is_named_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory (injected)")

    monkeypatch.setattr(SETransformer, "freeze", full)
    with pytest.raises(UserError, match="cpu has too little free memory for the encoder itself"):
        open_oracle().encode(*read("cells_sparse"))


@pytest.mark.parametrize("name", ["cells_sparse", "cells_120known", "cells"])
def test_a_cell_has_one_embedding_whatever_the_batch_and_order(name: str) -> None:
    x, match = read(name)
    together = open_oracle(batch_size=60).encode(x, match)
    alone = open_oracle(batch_size=1).encode(x, match)
    order = np.random.default_rng(0).permutation(x.shape[0])
    shuffled = open_oracle(batch_size=7).encode(x[order], match)
    assert np.abs(together - alone).max() <= 1e-6
    assert np.abs(together[order] - shuffled).max() <= 1e-6


def test_passes_of_one_thread_as_on_a_gpu_give_the_same() -> None:
    cells = read("cells_sparse")
    wanted = open_oracle().encode(*cells)
    encoder = pickle.loads(pickle.dumps(open_oracle(batch_size=8)))  # as an actor gets it
    encoder._threads, encoder._passes, computed_by = 2, one_thread(), []
    embed = encoder.embed

    def embed_and_note(tokens: Tokens) -> np.ndarray:
        computed_by.append(get_ident())
        return embed(tokens)

    encoder.embed = embed_and_note
    with ThreadPoolExecutor(2) as pool:  # two shards
        for found in pool.map(lambda _: encoder.encode(*cells), range(2)):
            assert np.abs(found - wanted).max() <= 1e-6
    assert len(computed_by) > 2
    assert len(set(computed_by)) == 1


def test_an_encoder_computes_on_the_device_of_the_machine_it_is_sent_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    has_gpu = torch.cuda.is_available()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: not has_gpu)  # the machine it is from
    sent = open_oracle(device="auto", precision="fp32")
    parcel = pickle.dumps(sent)
    monkeypatch.undo()
    encoder = pickle.loads(parcel)
    expected = open_oracle(device="auto", precision="fp32")
    assert sent.device != encoder.device == expected.device
    assert encoder.batch_size == expected.batch_size
    assert encoder.key == sent.key
    found = encoder.encode(*read("cells"))
    assert np.abs(found - np.load(ORACLE / "expected.npy")).max() <= (
        1e-4 if has_gpu else TOLERANCE
    )


def test_filler_follows_the_seed() -> None:
    cells = read("cells_sparse")
    first, other = open_oracle(seed=0), open_oracle(seed=1)
    assert first.key != other.key
    assert np.abs(first.encode(*cells) - other.encode(*cells)).max() > 1e-3


@pytest.mark.parametrize(
    ("cells", "expected"),
    [("cells_sparse", "expected_sparse"), ("cells_120known", "expected_120known")],
)
def test_cells_with_filler_are_distributed_like_the_public_ones(cells: str, expected: str) -> None:
    """The public draw lies among ours: its distance to their mean has no special rank."""
    read_once = read(cells)
    draws = np.stack([open_oracle(seed=seed).encode(*read_once) for seed in range(24)])
    public = np.load(ORACLE / f"{expected}.npy")
    ours = draws - (draws.sum(0) - draws) / (len(draws) - 1)  # each against the others' mean
    theirs = public - draws.mean(0)
    rank = (np.linalg.norm(ours, axis=-1) < np.linalg.norm(theirs, axis=-1)).mean(0)  # [cells]
    error = 1 / np.sqrt(12 * len(rank))  # of the mean of uniform ranks
    assert abs(rank.mean() - 0.5) < 4 * error
