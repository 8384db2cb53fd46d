"""The files of an encoder: which are taken, refused, converted, and what they are called by."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.oracle import ORACLE, open_oracle, read

from sesttune.data.identity import EMBEDDINGS, changed, other_embeddings
from sesttune.errors import UserError
from sesttune.model.se_checkpoint import file_sha256, find_files, read_weights
from sesttune.model.se_demo import write_demo_encoder
from sesttune.model.se_encoder import SEEncoder


def opened(path: Path) -> SEEncoder:
    return SEEncoder(find_files(None, str(path)))


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
        _ = opened(path).embed_dim
    content["state_dict"] = {"layer.weight": torch.zeros(2)}
    torch.save(content, path)
    with pytest.raises(UserError, match=r"lacks encoder.0.weight, decoder.1.weight"):
        _ = opened(path).embed_dim
    whole: dict[str, object] = {"state_dict": dict(weights.tensors), "hyper_parameters": hyper}
    for wrong, message in {
        ("nlayers", 3): "nlayers=3, but lacks transformer_encoder.layers.2.linear1.weight",
        ("nhead", 0): "nhead=0 must be a whole number, 1 or more",
        ("nhead", 5): "5 heads do not divide a width of 64",
    }.items():
        torch.save({**content, **whole, "hyper_parameters": hyper | dict([wrong])}, path)
        with pytest.raises(UserError, match=message):
            _ = opened(path).embed_dim
    torch.save({**content, **whole, "cfg_yaml": "dataset: {pad_length: x, cls_token_idx: 3}"}, path)
    with pytest.raises(UserError, match="pad_length='x' must be a whole number"):
        _ = opened(path).embed_dim
    for name, tensor, message in (
        ("encoder.0.weight", torch.zeros(64), "encoder.0.weight is not a matrix"),
        ("encoder.0.bias", torch.zeros(3), r"encoder.0.bias has shape \(3,\), expected \(64,\)"),
    ):
        torch.save({**content, "state_dict": {**weights.tensors, name: tensor}}, path)
        with pytest.raises(UserError, match=message):
            _ = opened(path).embed_dim
    torch.save({**content, **whole, "protein_embeds_dict": {"A": torch.zeros(31)}}, path)
    with pytest.raises(UserError, match="have width 31, the checkpoint expects 32"):
        _ = opened(path).embed_dim
    torch.save({"anything": 1}, path)
    with pytest.raises(UserError, match="lacks state_dict and/or hyper_parameters"):
        _ = opened(path).embed_dim


def test_truncated_and_foreign_files_are_refused(tmp_path: Path) -> None:
    whole = (ORACLE / "se_tiny.ckpt").read_bytes()
    cut = tmp_path / "cut.ckpt"
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cut.ckpt is truncated, or not in PyTorch's zip format"):
        _ = opened(cut).embed_dim


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
    one = SEEncoder(find_files(str(write_demo_encoder(tmp_path / "a", genes, 0).parent)))
    same = SEEncoder(find_files(str(write_demo_encoder(tmp_path / "b", genes, 0).parent)))
    other = SEEncoder(find_files(str(write_demo_encoder(tmp_path / "c", genes, 1).parent)))
    assert one.identity["label"] == "demo-encoder (random weights)"
    assert one.key == same.key != other.key
    assert one.embed_dim == 74
    proteins = "protein_embeddings.pt"
    (tmp_path / "b" / proteins).write_bytes((tmp_path / "c" / proteins).read_bytes())
    mixed = SEEncoder(find_files(str(tmp_path / "b")))
    assert (mixed.identity["sha256"], mixed.key != one.key) == (one.identity["sha256"], True)
    older = {k: v for k, v in one.identity.items() if k != "proteins"}
    for then, now, is_another in ((one, same, False), (one, mixed, True), (one, other, True)):
        assert other_embeddings(then.identity, now.identity) == is_another
        kept = [{"fingerprint": "f", "encoder": e.identity} for e in (then, now)]
        assert changed(*kept) == ([EMBEDDINGS] if is_another else [])
    assert not other_embeddings(older, mixed.identity)


def test_orig_mod_names_of_compiled_trainings_are_understood(tmp_path: Path) -> None:
    source = write_demo_encoder(tmp_path / "a", ["A", "B"], 0)
    content = torch.load(source, weights_only=True)
    compiled = {f"_orig_mod.{name}": tensor for name, tensor in content["state_dict"].items()}
    torch.save({**content, "state_dict": compiled}, source)
    assert SEEncoder(find_files(str(source.parent))).embed_dim == 74


def test_a_file_is_hashed_again_where_its_time_or_size_is_another(tmp_path: Path) -> None:
    """Or what another checkpoint of the same size had encoded would serve for this one."""
    file, cache = tmp_path / "x.ckpt", tmp_path / "cache"

    def found(content: bytes, time: int, cache: Path | None = cache) -> bool:
        file.write_bytes(content)
        os.utime(file, ns=(time, time))
        return file_sha256(file, cache) == hashlib.sha256(content).hexdigest()

    assert found(b"one", 1)
    assert not found(b"two", 1)  # as remembered: it is not read
    assert found(b"two", 2)
    assert found(b"three", 2)
    assert found(b"3", 1, None)
    assert len(list(cache.iterdir())) == 3


def test_settings_of_a_file_go_before_those_of_the_checkpoint(tmp_path: Path) -> None:
    files = find_files(None, str(ORACLE / "se_tiny.ckpt"))
    config = tmp_path / "other.yaml"
    config.write_text("dataset: {pad_length: 77, cls_token_idx: 2}")
    weights = read_weights(files, config)
    assert (weights.pad_length, weights.cls_token_idx) == (77, 2)
    config.write_text("dataset: {pad_length: 77}")
    with pytest.raises(UserError, match=r"other.yaml holds no settings with dataset.pad_length"):
        read_weights(files, config)
