import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from sesttune.errors import UserError
from sesttune.model import safe_pickle
from sesttune.model.safe_pickle import Stub, plain, read_checkpoint


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("touch hostile-was-here",))


class Foreign:
    def __init__(self) -> None:
        self.value = 3


def test_a_hostile_pickle_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"w": torch.ones(2)}, "evil": Hostile()}, tmp_path / "x.ckpt")
    content = read_checkpoint(tmp_path / "x.ckpt")
    assert torch.equal(content["state_dict"]["w"], torch.ones(2))
    assert isinstance(content["evil"], Stub)
    assert not (tmp_path / "hostile-was-here").exists()
    # The file is hostile indeed: an ordinary unpickler runs it.
    torch.load(tmp_path / "x.ckpt", weights_only=False)
    assert (tmp_path / "hostile-was-here").exists()


class Setting:
    def __reduce__(self) -> tuple[Any, ...]:
        return (torch.set_default_dtype, (torch.float64,))


def test_no_function_of_torch_is_run_either(tmp_path: Path) -> None:
    torch.save({"evil": Setting(), "w": torch.ones(2)}, tmp_path / "x.ckpt")
    try:
        assert isinstance(read_checkpoint(tmp_path / "x.ckpt")["evil"], Stub)
        assert torch.get_default_dtype() == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_foreign_objects_keep_their_state_and_do_nothing(tmp_path: Path) -> None:
    torch.save({"object": Foreign()}, tmp_path / "x.ckpt")
    stub = read_checkpoint(tmp_path / "x.ckpt")["object"]
    assert isinstance(stub, Stub)
    assert not isinstance(stub, Foreign)
    assert stub.stub_state == {"value": 3}


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool]
)
def test_tensors_of_every_kind_and_shape(tmp_path: Path, dtype: torch.dtype) -> None:
    base = torch.arange(24).reshape(4, 6).to(dtype)
    saved = {"whole": base, "part": base[1:3, ::2], "turned": base.T, "none": base[:0]}
    saved["parameter"] = torch.nn.Parameter(base.clone(), requires_grad=False)
    saved["scalar"] = base[1, 1]
    torch.save(saved, tmp_path / "x.ckpt")
    found = read_checkpoint(tmp_path / "x.ckpt")
    for name, tensor in saved.items():
        assert found[name].dtype == dtype
        assert torch.equal(found[name], tensor), name


def test_many_tensors_hold_few_file_descriptors(tmp_path: Path) -> None:
    """A process may have 1,024, and protein embeddings are 19,790 vectors."""
    vectors = {f"G{i}": torch.full((64,), float(i)) for i in range(3_000)}
    torch.save(vectors, tmp_path / "file.pt")
    before = len(list(Path("/proc/self/fd").iterdir()))
    found = read_checkpoint(tmp_path / "file.pt")
    assert len(list(Path("/proc/self/fd").iterdir())) < before + 10
    assert all(torch.equal(found[name], vector) for name, vector in vectors.items())


def test_tensors_across_the_windows_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(safe_pickle, "_LEAST_WINDOW", 1 << 12)
    sizes = (1, 900, 1_025, 70_000, 3, 5_000)
    tensors = [torch.arange(size, dtype=torch.float64) for size in sizes]
    torch.save(tensors, tmp_path / "file.pt")
    found = read_checkpoint(tmp_path / "file.pt")
    assert all(torch.equal(a, b) for a, b in zip(found, tensors, strict=True))


def test_writing_into_a_tensor_leaves_the_file_alone(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(3)}, tmp_path / "x.ckpt")
    read_checkpoint(tmp_path / "x.ckpt")["w"].zero_()
    assert torch.equal(read_checkpoint(tmp_path / "x.ckpt")["w"], torch.ones(3))


def test_settings_come_out_of_a_pickled_omegaconf_node(tmp_path: Path) -> None:
    from omegaconf import OmegaConf

    node = OmegaConf.create({"dataset": {"pad_length": 5, "list": [1, "a"], "none": None}})
    torch.save({"cfg": node}, tmp_path / "x.ckpt")
    found = plain(read_checkpoint(tmp_path / "x.ckpt")["cfg"])
    assert found == {"dataset": {"pad_length": 5, "list": [1, "a"], "none": None}}
    assert plain([Stub()]) == [None]


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_checkpoint(tmp_path / "gone.ckpt")
    (tmp_path / "text.ckpt").write_text("hello")
    with pytest.raises(UserError, match="not in PyTorch's zip format"):
        read_checkpoint(tmp_path / "text.ckpt")


@pytest.mark.parametrize(("offset", "size"), [(0, 99), (-8, 1), (9, 1)])
def test_a_tensor_beyond_its_storage_is_refused(tmp_path: Path, offset: int, size: int) -> None:
    class Beyond:
        def __reduce__(self) -> tuple[Any, ...]:
            storage = torch.ones(4).untyped_storage()
            typed = torch.storage.TypedStorage(
                wrap_storage=storage, dtype=torch.float32, _internal=True
            )
            arguments = (typed, offset, (size,), (1,), False, {})
            return (torch._utils._rebuild_tensor_v2, arguments)

    torch.save({"w": Beyond()}, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match="x.ckpt cannot be read"):
        read_checkpoint(tmp_path / "x.ckpt")


def test_a_tensor_without_its_values_is_refused(tmp_path: Path) -> None:
    """Else it would be whatever the memory held before."""

    class Hollow:
        def __reduce__(self) -> tuple[Any, ...]:
            empty = torch.storage.TypedStorage(
                wrap_storage=torch.ones(0).untyped_storage(), dtype=torch.float32, _internal=True
            )
            arguments = (empty, 0, (2,), (1,), False, {})
            return (torch._utils._rebuild_tensor_v2, arguments)

    torch.save({"w": Hollow()}, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match="a tensor without its values"):
        read_checkpoint(tmp_path / "x.ckpt")


def test_values_that_lie_askew_in_the_file_are_copied_to_where_they_are_aligned(
    tmp_path: Path,
) -> None:
    """As files are where a zip program wrote them again; torch itself aligns."""
    wanted = torch.arange(3, dtype=torch.float64)
    torch.save({"w": wanted}, tmp_path / "x.ckpt")
    with zipfile.ZipFile(tmp_path / "x.ckpt") as saved:
        entries = {name: saved.read(name) for name in saved.namelist()}
    for before in range(8):
        with zipfile.ZipFile(tmp_path / "y.ckpt", "w") as archive:
            for name, content in ({"x/before": bytes(before)} | entries).items():
                archive.writestr(name, content)
        found = read_checkpoint(tmp_path / "y.ckpt")["w"]
        assert found.data_ptr() % 8 == 0
        assert torch.equal(found, wanted)


def test_a_large_tensor_has_a_map_of_its_own_that_goes_with_it(tmp_path: Path) -> None:
    """Or a model's memory would hold the file as long as any tensor of it is held."""
    torch.save({"large": torch.ones(1 << 16), "small": torch.ones(2)}, tmp_path / "x.ckpt")
    found = read_checkpoint(tmp_path / "x.ckpt")

    def open_files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = open_files()
    del found["large"]
    assert open_files() == before - 1


def test_a_zip_that_is_not_what_torch_writes_is_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(4), "dtype": torch.float16}, tmp_path / "x.ckpt")
    assert read_checkpoint(tmp_path / "x.ckpt")["dtype"] is torch.float16
    with zipfile.ZipFile(tmp_path / "x.ckpt") as saved:
        entries = {name: saved.read(name) for name in saved.namelist()}

    def written(more: dict[str, bytes], compression: int) -> Path:
        with zipfile.ZipFile(tmp_path / "y.ckpt", "w", compression) as archive:
            for name, content in (entries | more).items():
                archive.writestr(name, content)
        return tmp_path / "y.ckpt"

    with pytest.raises(UserError, match="compressed zip file"):
        read_checkpoint(written({}, zipfile.ZIP_DEFLATED))
    with pytest.raises(UserError, match="not one PyTorch wrote"):
        read_checkpoint(written({"other/data.pkl": b""}, zipfile.ZIP_STORED))
