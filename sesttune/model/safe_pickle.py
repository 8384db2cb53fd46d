"""Read a PyTorch checkpoint without running any of the code its pickle names.

Lightning checkpoints name classes of the program that wrote them. Here a class is
never imported: tensors are rebuilt by this file, plain values by pickle itself,
and everything else becomes an inert `Stub` that only keeps what it was given. So
a hostile pickle runs nothing, and a file of a missing package still opens.
Tensors are views of the memory-mapped file: what is not touched is not read.
"""

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sesttune.errors import UserError, check_file

STORAGE_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}
LOCAL_HEADER_BYTES = 30
"""Fixed part of a zip entry's local header; name and extra field follow."""
_WINDOWS, _LEAST_WINDOW = 128, 16 << 20
_LARGE, _LEAST_LARGE = 512, 1 << 18
"""A map takes a file descriptor until no tensor views it, and a process has 1,024. So the small
tensors of a window share a map, and the larger have their own, which their memory goes with: at
most 512, which are as large as that part of the file, and 128 on the borders of windows."""


class Stub:
    """Stands in for a class that is not imported; keeps its state and does nothing."""

    def __new__(cls, *args: object, **kwargs: object) -> "Stub":
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        self.stub_state = state

    def __setitem__(self, key: object, value: object) -> None:
        """Accept what a pickled dict subclass would."""

    def __call__(self, *args: object, **kwargs: object) -> "Stub":
        return self

    def append(self, item: object) -> None:
        """Accept what a pickled list subclass would."""

    def extend(self, items: object) -> None:
        """Accept what a pickled list subclass would."""


def read_checkpoint(path: Path) -> Any:
    """The checkpoint's content, tensors as views of the file, foreign objects as `Stub`.

    Raises UserError for a missing, truncated or foreign file.
    """
    check_file(path, "checkpoint ")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {info.filename: info for info in archive.infolist()}
            pickles = [name for name in entries if name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise UserError(f"checkpoint {path} is a zip file, but not one PyTorch wrote")
            folder = pickles[0].removesuffix("data.pkl")
            with archive.open(pickles[0]) as stream:
                return _Unpickler(stream, path, entries, folder).load()
    except zipfile.BadZipFile:
        raise UserError(
            f"checkpoint {path} is truncated, or not in PyTorch's zip format: "
            "copy it again, or save it again with a PyTorch of 1.6 or later"
        ) from None
    except UserError:
        raise
    except Exception as error:  # a damaged or hostile pickle can raise anything, MemoryError too
        raise UserError(f"checkpoint {path} cannot be read: {error!r}") from None


def plain(value: object) -> object:
    """Plain values out of a stubbed OmegaConf node (or anything plain already)."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, Stub):
        state = getattr(value, "stub_state", None)
        if isinstance(state, dict):
            for key in ("_content", "_val"):
                if key in state:
                    return plain(state[key])
        return None
    return value


class _Maps:
    """Bytes of a file by memory maps; mode "c": torch gets writable memory, the file stays."""

    def __init__(self, path: Path) -> None:
        self._path, self._size = path, path.stat().st_size
        self._window = max(_LEAST_WINDOW, -(-self._size // _WINDOWS))
        self._large = max(_LEAST_LARGE, self._size // _LARGE)
        self._maps: dict[int, np.ndarray] = {}

    def view(self, offset: int, count: int) -> np.ndarray:
        """uint8 [count], a view that keeps its map."""
        first, last = offset // self._window, (offset + count - 1) // self._window
        if first != last or count >= self._large:
            return np.memmap(self._path, np.uint8, "c", offset, (count,))
        start = first * self._window
        if first not in self._maps:
            width = min(self._window, self._size - start)
            self._maps[first] = np.memmap(self._path, np.uint8, "c", start, (width,))
        return self._maps[first][offset - start : offset - start + count]


class _Storage:
    """A storage of the archive: dtype and where its bytes lie."""

    def __init__(self, path: Path, maps: _Maps, info: zipfile.ZipInfo, dtype: torch.dtype) -> None:
        if info.compress_type != zipfile.ZIP_STORED:
            raise UserError(f"checkpoint {path} is a compressed zip file: save it with torch.save")
        header = maps.view(info.header_offset, LOCAL_HEADER_BYTES).tobytes()
        name, extra = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
        self._maps, self._bytes = maps, info.file_size
        self._offset = info.header_offset + LOCAL_HEADER_BYTES + name + extra
        self.dtype = dtype

    def tensor(self, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> torch.Tensor:
        if not self._bytes:
            if 0 not in size:
                raise pickle.UnpicklingError("a tensor without its values")
            return torch.empty(size, dtype=self.dtype)
        raw = self._maps.view(self._offset, self._bytes)
        if self._offset % self.dtype.itemsize:
            raw = np.array(raw)
        flat = torch.from_numpy(raw).view(self.dtype)
        return flat.as_strided(size, stride, offset)


class _StorageType:
    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype


class _Unpickler(pickle.Unpickler):
    def __init__(
        self, stream: Any, path: Path, entries: dict[str, zipfile.ZipInfo], folder: str
    ) -> None:
        super().__init__(stream)
        self._path, self._entries, self._folder = path, entries, folder
        self._maps, self._storages = _Maps(path), dict[str, _Storage]()

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch._utils" and name in _REBUILDERS:
            return _REBUILDERS[name]
        if module in ("torch", "torch.storage") and name in STORAGE_DTYPES:
            return _StorageType(STORAGE_DTYPES[name])
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        return type(name, (Stub,), {})

    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage_type, key, _location, _numel = pid
        if kind != "storage" or not isinstance(storage_type, _StorageType):
            raise pickle.UnpicklingError(f"unknown storage {kind!r}")
        if key not in self._storages:
            info = self._entries[f"{self._folder}data/{key}"]
            self._storages[key] = _Storage(self._path, self._maps, info, storage_type.dtype)
        return self._storages[key]


def _tensor(storage: _Storage, offset: int, size: Any, stride: Any, *rest: object) -> torch.Tensor:
    return storage.tensor(offset, tuple(size), tuple(stride))


def _parameter(data: torch.Tensor, *rest: object) -> torch.Tensor:
    return data


_REBUILDERS = {
    "_rebuild_tensor": _tensor,
    "_rebuild_tensor_v2": _tensor,
    "_rebuild_parameter": _parameter,
    "_rebuild_parameter_with_state": _parameter,
}
