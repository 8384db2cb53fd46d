import pickle
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Semaphore

import numpy as np
import pytest
import torch
from helpers.waits import Waits
from scipy import sparse

from sesttune.data.h5ad import H5adFile
from sesttune.errors import UserError
from sesttune.model import attention
from sesttune.model.se_checkpoint import find_files, read_weights
from sesttune.model.se_demo import write_demo_encoder
from sesttune.model.se_encoder import SEEncoder
from sesttune.model.se_genes import GeneMatch
from sesttune.model.se_tokens import Tokens
from sesttune.model.se_transformer import build_transformer

ORACLE = Path(__file__).parents[1] / "data_oracle"
NEEDS_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
needs_onednn = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this PyTorch has no oneDNN"
)
TOLERANCE = 1.5e-6
"""LayerNorm eps 1e-6 for 1e-5 shows at 2.1e-6, tanh-GELU at 3.6e-5, all else higher."""


def open_oracle(checkpoint: str = "se_tiny.ckpt", device: str = "cpu", **more: object) -> SEEncoder:
    files = find_files(None, str(ORACLE / checkpoint), str(ORACLE / "protein_embeddings.pt"))
    return SEEncoder(files, device=device, **more)  # type: ignore[arg-type]


def read(name: str) -> tuple[sparse.csr_matrix, GeneMatch]:
    with H5adFile(ORACLE / f"{name}.h5ad") as file:
        cells = file.read_rows(np.arange(file.n_cells))
        return cells, open_oracle().match(file.var_names, file.var_columns())


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


def test_proteins_inside_the_checkpoint_serve_as_well() -> None:
    inside = SEEncoder(find_files(None, str(ORACLE / "se_tiny.ckpt"), None), device="cpu")
    cells = read("cells")
    assert np.array_equal(inside.encode(*cells), open_oracle().encode(*cells))


def test_the_weights_are_converted_once_and_give_the_same(tmp_path: Path) -> None:
    cells = read("cells")
    wanted = open_oracle().encode(*cells)
    assert np.array_equal(open_oracle(cache=tmp_path).encode(*cells), wanted)
    (converted,) = (tmp_path / "encoders").glob("*/encoder.safetensors")
    assert converted.stat().st_size < (ORACLE / "se_tiny.ckpt").stat().st_size
    before = converted.stat().st_mtime_ns
    assert np.array_equal(open_oracle(cache=tmp_path).encode(*cells), wanted)
    assert converted.stat().st_mtime_ns == before
    content = bytearray(converted.read_bytes())
    content[-4:] = b"\xff\xff\xff\x7f"  # damaged: another number, the same size
    converted.write_bytes(bytes(content))
    assert np.array_equal(open_oracle(cache=tmp_path).encode(*cells), wanted)
    open_oracle("se_tiny_old.ckpt", cache=tmp_path).match(["GEN0380"], {})
    assert len(list((tmp_path / "encoders").glob("*/encoder.safetensors"))) == 2


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


@needs_onednn
@pytest.mark.parametrize("name", ["cells", "cells_255known"])
def test_the_attention_of_an_amd_gives_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By oneDNN's products, which it takes for the 2,049 tokens of a real encoder."""
    cells, taken, by_onednn = read(name), [], attention.attend_by_onednn
    monkeypatch.setattr(attention, "_MANY_TOKENS", 0)
    monkeypatch.setattr(attention, "_products_by_onednn", lambda dtype: True)
    monkeypatch.setattr(
        attention, "attend_by_onednn", lambda *qkv: taken.append(1) or by_onednn(*qkv)
    )
    wanted = np.load(ORACLE / f"expected{name.removeprefix('cells')}.npy")
    assert np.abs(open_oracle().encode(*cells) - wanted).max() <= TOLERANCE
    rounded = open_oracle(precision="bf16").encode(*cells)
    lengths = np.linalg.norm(rounded, axis=1) * np.linalg.norm(wanted, axis=1)
    assert ((rounded * wanted).sum(1) / lengths).min() >= 0.9999
    assert taken


def test_out_of_memory_halves_the_batch_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
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
            raise torch.OutOfMemoryError("CUDA out of memory")
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


@pytest.mark.parametrize("name", ["cells_sparse", "cells_120known", "cells"])
def test_a_cell_has_one_embedding_whatever_the_batch_and_order(name: str) -> None:
    x, match = read(name)
    together = open_oracle(batch_size=60).encode(x, match)
    alone = open_oracle(batch_size=1).encode(x, match)
    order = np.random.default_rng(0).permutation(x.shape[0])
    shuffled = open_oracle(batch_size=7).encode(x[order], match)
    assert np.abs(together - alone).max() <= 1e-6
    assert np.abs(together[order] - shuffled).max() <= 1e-6


def test_passes_that_take_turns_as_on_a_gpu_give_the_same() -> None:
    cells = read("cells_sparse")
    wanted = open_oracle().encode(*cells)
    encoder = pickle.loads(pickle.dumps(open_oracle(batch_size=8)))  # as an actor gets it
    encoder._threads, encoder._turn, computing = 2, Semaphore(1), []
    embed = encoder.embed

    def embed_alone(tokens: Tokens) -> np.ndarray:
        assert not computing, "two passes at once"
        computing.append(tokens)
        found = embed(tokens)
        computing.remove(tokens)
        return found

    encoder.embed = embed_alone
    with ThreadPoolExecutor(2) as pool:  # two shards
        for found in pool.map(lambda _: encoder.encode(*cells), range(2)):
            assert np.abs(found - wanted).max() <= 1e-6


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


def test_a_file_that_is_no_se_checkpoint_is_refused_by_what_it_lacks(tmp_path: Path) -> None:
    weights = read_weights(find_files(None, str(ORACLE / "se_tiny.ckpt"), None))
    hyper = {"nhead": weights.nhead}
    content = {"state_dict": dict(weights.tensors), "hyper_parameters": hyper}
    content["cfg_yaml"] = "dataset: {pad_length: 256, cls_token_idx: 3}"
    content["protein_embeds_dict"] = {"A": torch.zeros(32)}
    path = tmp_path / "x.ckpt"
    del content["state_dict"]["bin_encoder.weight"]
    torch.save(content, path)
    with pytest.raises(UserError, match=r"x.ckpt is not an SE checkpoint: it lacks bin_encoder.w"):
        _ = SEEncoder.open(None, str(path)).embed_dim
    content["state_dict"] = {"layer.weight": torch.zeros(2)}
    torch.save(content, path)
    with pytest.raises(UserError, match=r"lacks encoder.0.weight, decoder.1.weight"):
        _ = SEEncoder.open(None, str(path)).embed_dim
    whole: dict[str, object] = {"state_dict": dict(weights.tensors), "hyper_parameters": hyper}
    for wrong, message in {
        ("nlayers", 3): "nlayers=3, but lacks transformer_encoder.layers.2.linear1.weight",
        ("nhead", 0): "nhead=0 must be a whole number, 1 or more",
        ("nhead", 5): "5 heads do not divide a width of 64",
    }.items():
        torch.save({**content, **whole, "hyper_parameters": hyper | dict([wrong])}, path)
        with pytest.raises(UserError, match=message):
            _ = SEEncoder.open(None, str(path)).embed_dim
    torch.save({**content, **whole, "cfg_yaml": "dataset: {pad_length: x, cls_token_idx: 3}"}, path)
    with pytest.raises(UserError, match="pad_length='x' must be a whole number"):
        _ = SEEncoder.open(None, str(path)).embed_dim
    torch.save({"anything": 1}, path)
    with pytest.raises(UserError, match="lacks state_dict and/or hyper_parameters"):
        _ = SEEncoder.open(None, str(path)).embed_dim


def test_truncated_and_foreign_files_are_refused(tmp_path: Path) -> None:
    whole = (ORACLE / "se_tiny.ckpt").read_bytes()
    cut = tmp_path / "cut.ckpt"
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cut.ckpt is truncated, or not in PyTorch's zip format"):
        _ = SEEncoder.open(None, str(cut)).embed_dim


def test_several_checkpoints_are_a_question(tmp_path: Path) -> None:
    for name in ("epoch15.ckpt", "epoch16.ckpt"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match="epoch15.ckpt, epoch16.ckpt.*which one"):
        find_files(str(tmp_path), None, None)
    assert find_files(str(tmp_path), str(tmp_path / "epoch16.ckpt"), None).proteins is None


def test_files_of_a_model_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a folder"):
        find_files(str(tmp_path / "gone"), None, None)
    with pytest.raises(UserError, match=r"holds no .ckpt file"):
        find_files(str(tmp_path), None, None)
    for name in ("a.ckpt", "protein_embeddings_b.pt", "protein_embeddings_a.pt"):
        (tmp_path / name).touch()
    assert find_files(str(tmp_path), None, None).proteins == tmp_path / "protein_embeddings_b.pt"
    (tmp_path / "protein_embeddings.pt").touch()
    assert find_files(str(tmp_path), None, None).proteins == tmp_path / "protein_embeddings.pt"


def test_the_identity_follows_the_weights(tmp_path: Path) -> None:
    genes = [f"G{i}" for i in range(300)]
    one = SEEncoder.open(str(write_demo_encoder(tmp_path / "a", genes, 0).parent), None)
    same = SEEncoder.open(str(write_demo_encoder(tmp_path / "b", genes, 0).parent), None)
    other = SEEncoder.open(str(write_demo_encoder(tmp_path / "c", genes, 1).parent), None)
    assert one.identity["label"] == "demo-encoder (random weights)"
    assert one.key == same.key != other.key
    assert one.embed_dim == 74


def test_orig_mod_names_of_compiled_trainings_are_understood(tmp_path: Path) -> None:
    source = write_demo_encoder(tmp_path / "a", ["A", "B"], 0)
    content = torch.load(source, weights_only=True)
    compiled = {f"_orig_mod.{name}": tensor for name, tensor in content["state_dict"].items()}
    torch.save({**content, "state_dict": compiled}, source)
    assert SEEncoder.open(str(source.parent), None).embed_dim == 74
