"""Where the data of a trial lie while it trains, chosen from free memory, and how batches are made.

- on a GPU that has room, the whole store lies in its memory (4 bytes a stored value), and a
  batch is gathered and made dense there from a few kB of row numbers;
- on a GPU without room, threads gather compressed rows into page-locked memory, and they
  are copied and made dense on the device without waiting;
- on a CPU, threads make dense rows from the mapped files.

`prepare` runs in reader threads, `finish` in the training loop and never waits for the
device. Control embeddings and perturbation features always lie on the device.
"""

import os
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from sesttune.data.rows import Buffers, CsrRows, dense, gather, signed, to_host, torch_dtype
from sesttune.data.sampling import CellSets
from sesttune.data.trial_data import TrialData
from sesttune.errors import UserError
from sesttune.machine import free_memory

Batch = dict[str, Tensor]
"""`control_emb` [sets, cells, embed_dim], `pert_emb` [sets, pert_dim], `target` [sets, cells,
genes] (log1p expression); float32."""

RESIDENT_SHARE = 0.6
"""Of a trial's device memory, what data may take; the head, Adam and activations need the rest."""
GIB = 2**30


class Reader(Protocol):
    """Makes batches; `description` says where from, in one line."""

    description: str
    device: torch.device

    def prepare(self, sets: CellSets) -> Any:
        """The part that a reader thread does."""

    def finish(self, prepared: Any) -> Batch:
        """The part that is queued on the device, in the training loop."""


def choose_reader(
    data: TrialData, device: torch.device, location: str = "auto", share: float = 1.0
) -> Reader:
    """The fastest reader there is room for.

    `location` is `auto`, `device` or `host`; `share` of the device's memory is the trial's. Raises
    UserError where the store is to lie on the device and there is no room.
    """
    store = f"store of {data.store.nbytes / GIB:.2f} GiB"
    if device.type == "cpu":
        if location == "device":
            raise UserError("data.kwargs.store_location=device needs a GPU; set it to auto")
        return HostReader(data, f"{store} {_host_memory(data)}")
    free, total = torch.cuda.mem_get_info(device)
    room = RESIDENT_SHARE * min(free, share * total)
    need = data.store.nbytes + data.controls.matrix.nbytes + data.features.nbytes
    rest = f"{need / GIB:.2f} GiB with embeddings, {room / GIB:.2f} GiB is free for data"
    if location == "device" and need > room:
        raise UserError(
            f"data.kwargs.store_location=device: the data take {rest}; set it to auto or host"
        )
    if location == "device" or (location == "auto" and need <= room):
        return ResidentReader(data, device, f"{store} resident on {device} ({rest})")
    return StreamingReader(data, device, f"{store} {_host_memory(data)}, streamed to {device}")


class HostReader:
    """Whole batches on the host, for a trial that computes there."""

    def __init__(self, data: TrialData, description: str = "") -> None:
        self._data, self.description = data, description
        self.device = torch.device("cpu")
        self._buffers = Buffers()

    def prepare(self, sets: CellSets) -> Batch:
        count, length = sets.pert_rows.shape
        controls = self._data.controls
        embeddings = controls.matrix[controls.row_of_cell[sets.control_rows.ravel()]]
        target = self._buffers.take((count * length, self._data.n_genes))
        self._data.store.dense(sets.pert_rows.ravel(), target)
        return {
            "control_emb": torch.from_numpy(embeddings).view(count, length, -1),
            "pert_emb": torch.from_numpy(self._data.features[sets.pert_codes]),
            "target": torch.from_numpy(target).view(count, length, -1),
        }

    def finish(self, prepared: Batch) -> Batch:
        return prepared


@dataclass(frozen=True)
class _Inputs:
    """Which embeddings and features a batch takes: int64 [sets x cells] and [sets]."""

    controls: Tensor
    features: Tensor


class _DeviceInputs:
    """Control embeddings and features, resident on a device."""

    def __init__(self, data: TrialData, device: torch.device) -> None:
        self.pin = device.type == "cuda"
        self.device = device
        self._rows = data.controls.row_of_cell
        self._controls = _upload(data.controls.matrix, device)
        self._features = _upload(data.features, device)

    def prepare(self, sets: CellSets) -> _Inputs:
        controls = self._rows[sets.control_rows.ravel()]
        return _Inputs(to_host(controls, self.pin), to_host(sets.pert_codes, self.pin))

    def finish(self, inputs: _Inputs, target: Tensor) -> Batch:
        controls, features = (
            index.to(self.device, non_blocking=True) for index in (inputs.controls, inputs.features)
        )
        count = len(features)
        return {
            "control_emb": self._controls[controls].view(
                count, len(controls) // count, self._controls.shape[1]
            ),
            "pert_emb": self._features[features],
            "target": target.view(count, len(controls) // count, target.shape[1]),
        }


class StreamingReader:
    """Compressed rows from the host, made dense on the device."""

    def __init__(self, data: TrialData, device: torch.device, description: str = "") -> None:
        self.description, self.device = description, device
        self._store, self._inputs = data.store, _DeviceInputs(data, device)

    def prepare(self, sets: CellSets) -> tuple[_Inputs, CsrRows]:
        rows = gather(self._store, sets.pert_rows.ravel(), self._inputs.pin)
        return self._inputs.prepare(sets), rows

    def finish(self, prepared: tuple[_Inputs, CsrRows]) -> Batch:
        inputs, rows = prepared
        return self._inputs.finish(inputs, rows.to(self._inputs.device).dense(self._store.n_genes))


class ResidentReader:
    """The store in device memory."""

    def __init__(self, data: TrialData, device: torch.device, description: str = "") -> None:
        self.description, self.device = description, device
        self._store, self._inputs = data.store, _DeviceInputs(data, device)
        self._genes = _upload(signed(data.store.indices), device)
        self._values = _upload(signed(data.store.values), device)

    def prepare(self, sets: CellSets) -> tuple[_Inputs, Tensor, Tensor, Tensor, int]:
        rows, store, pin = sets.pert_rows.ravel(), self._store, self._inputs.pin
        starts, stops = store.indptr[rows], store.indptr[rows + 1]
        # Where each row's values begin in the store, less where they begin in the batch.
        shift = stops - np.cumsum(stops - starts)
        parts = (to_host(part, pin) for part in (stops - starts, shift, store.scale[rows]))
        lengths, shifts, scale = parts
        return self._inputs.prepare(sets), lengths, shifts, scale, int((stops - starts).sum())

    def finish(self, prepared: tuple[_Inputs, Tensor, Tensor, Tensor, int]) -> Batch:
        inputs, *parts, total = prepared
        device = self._inputs.device
        lengths, shifts, scale = (part.to(device, non_blocking=True) for part in parts)
        row = torch.repeat_interleave(lengths, output_size=total)
        place = shifts[row]
        place += torch.arange(total, device=device)
        genes, values = self._genes[place], self._values[place]
        return self._inputs.finish(inputs, dense(row, scale, genes, values, self._store.n_genes))


def _upload(array: np.ndarray, device: torch.device, piece: int = 64 * 2**20) -> Tensor:
    """`array` on `device`, copied in pieces so that the host never holds it whole."""
    out = torch.empty(array.shape, dtype=torch_dtype(array), device=device)
    for first in range(0, len(array), piece):
        out[first : first + piece] = torch.from_numpy(np.array(array[first : first + piece]))
    return out


def _host_memory(data: TrialData) -> str:
    """Whether the page cache can hold the store; if so, the kernel is asked to read it now."""
    free = free_memory()
    if data.store.nbytes > free:
        return f"streamed from disk ({free / GIB:.1f} GiB of memory is free)"
    for name in ("indices.npy", "values.npy"):
        file = os.open(data.store.folder / name, os.O_RDONLY)
        try:
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(file)
    return "in memory (page cache)"
