"""Where the data of a trial lie while it trains, chosen from free memory, and how batches are made.

- on a GPU that has room, the whole store lies in its memory, and a batch is made there from a few
  kB of row numbers: of rows compressed as on disk (4 bytes a stored count), or with their zeros
  where that is hardly more (2 bytes a gene), which a batch is then copied from in order; log1p
  values take 2 bytes more;
- on a GPU without room, threads gather compressed rows into page-locked memory, and they
  are copied and made dense on the device without waiting;
- on a CPU, threads make dense rows from the mapped files.

`prepare` runs in reader threads, `finish` in the training loop and never waits for the
device. Control embeddings and perturbation features always lie on the device.
"""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from sesttune.data.rows import (
    Buffers,
    CsrRows,
    Kind,
    dense,
    expression,
    gather,
    signed,
    to_host,
    torch_dtype,
)
from sesttune.data.sampling import CellSets
from sesttune.data.trial_data import TrialData
from sesttune.errors import UserError
from sesttune.system.machine import free_memory
from sesttune.system.out_of_memory import give_back, is_out_of_memory

log = logging.getLogger(__name__)

Batch = dict[str, Tensor]
"""`control_emb` [sets, cells, embed_dim], `pert_emb` [sets, pert_dim], `target` [sets, cells,
genes] (log1p expression); float32."""

RESIDENT_SHARE = 0.6
"""Of a trial's device memory, what data may take; the head, Adam and activations need the rest."""
ZEROS_WORTH = 1.5
"""How much more memory rows with their zeros may take than compressed ones: at that density (a
third) a batch of them is half the bytes to read and write, and at a sixth no fewer."""
_ROWS, _PIECE_BYTES = 1_024, 256 * 2**20
"""Made dense, and copied, at a time while the data are uploaded."""
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
    kinds: list[tuple[Callable[..., Reader], int, str]]
    kinds = [(ResidentReader, data.store.nbytes, "resident")]
    if data.store.dense_nbytes <= ZEROS_WORTH * data.store.nbytes:
        kinds.insert(0, (DenseReader, data.store.dense_nbytes, "resident with its zeros"))
    free, total = torch.cuda.mem_get_info(device)
    room = RESIDENT_SHARE * min(free, share * total)
    for kind, size, how in kinds:
        need = size + data.controls.matrix.nbytes + data.features.nbytes
        rest = f"{need / GIB:.2f} GiB with embeddings, {room / GIB:.2f} GiB is free for data"
        if location != "host" and need <= room:
            reader = _if_it_fits(kind, data, device, f"{store} {how} on {device} ({rest})")
            if reader is not None:
                return reader
    if location == "device":
        raise UserError(
            f"data.kwargs.store_location=device: the data take {rest}; set it to auto or host"
        )
    told = f"{store} {_host_memory(data)}, streamed to {device}"
    reader = _if_it_fits(StreamingReader, data, device, told)
    if reader is None:
        raise UserError(
            f"{device} has too little free memory for the control embeddings: end what else uses it"
        )
    return reader


def _if_it_fits(
    kind: Callable[..., Reader], data: TrialData, device: torch.device, description: str
) -> Reader | None:
    """None where another process has taken the memory since it was found to be free."""
    try:
        return kind(data, device, description)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    give_back()  # outside of `except`, whose traceback holds what had been uploaded
    log.warning("no room any more for a %s", description)
    return None


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


class DenseReader:
    """The store in device memory with its zeros, values as stored."""

    def __init__(self, data: TrialData, device: torch.device, description: str = "") -> None:
        self.description, self.device = description, device
        store = data.store
        self._scale, self._inputs = store.scale, _DeviceInputs(data, device)
        shape, dtype = (store.n_cells, store.n_genes), torch_dtype(signed(store.values))
        self._rows = torch.zeros(shape, dtype=dtype, device=device)
        for first in range(0, store.n_cells, _ROWS):
            piece = self._rows[first : first + _ROWS]
            rows = gather(store, np.arange(first, first + len(piece)), pin=False).to(device)
            rows.scatter(piece)

    def prepare(self, sets: CellSets) -> tuple[_Inputs, Tensor, Tensor, Kind]:
        rows, pin = sets.pert_rows.ravel(), self._inputs.pin
        scale = self._scale[rows]
        return self._inputs.prepare(sets), to_host(rows, pin), to_host(scale, pin), Kind.of(scale)

    def finish(self, prepared: tuple[_Inputs, Tensor, Tensor, Kind]) -> Batch:
        inputs, *parts, kind = prepared
        rows, scale = (part.to(self._inputs.device, non_blocking=True) for part in parts)
        return self._inputs.finish(inputs, expression(self._rows[rows], scale[:, None], kind))


class ResidentReader:
    """The store in device memory, compressed."""

    def __init__(self, data: TrialData, device: torch.device, description: str = "") -> None:
        self.description, self.device = description, device
        self._store, self._inputs = data.store, _DeviceInputs(data, device)
        self._genes = _upload(signed(data.store.indices), device)
        self._values = _upload(signed(data.store.values), device)

    def prepare(self, sets: CellSets) -> tuple[_Inputs, Tensor, Tensor, Tensor, int, Kind]:
        rows, store, pin = sets.pert_rows.ravel(), self._store, self._inputs.pin
        starts, stops = store.indptr[rows], store.indptr[rows + 1]
        # Where each row's values begin in the store, less where they begin in the batch.
        shift = stops - np.cumsum(stops - starts)
        scale = store.scale[rows]
        lengths, shifts, factors = (to_host(p, pin) for p in (stops - starts, shift, scale))
        total = int((stops - starts).sum())
        return self._inputs.prepare(sets), lengths, shifts, factors, total, Kind.of(scale)

    def finish(self, prepared: tuple[_Inputs, Tensor, Tensor, Tensor, int, Kind]) -> Batch:
        inputs, *parts, total, kind = prepared
        device = self._inputs.device
        lengths, shifts, scale = (part.to(device, non_blocking=True) for part in parts)
        row = torch.repeat_interleave(lengths, output_size=total)
        place = shifts[row]
        place += torch.arange(total, device=device)
        genes, values = self._genes[place], self._values[place]
        target = dense(row, scale, genes, values, self._store.n_genes, kind)
        return self._inputs.finish(inputs, target)


def _upload(array: np.ndarray, device: torch.device) -> Tensor:
    """`array` on `device`, copied in pieces so that the host never holds it whole."""
    out = torch.empty(array.shape, dtype=torch_dtype(array), device=device)
    piece = max(_PIECE_BYTES // max(array[:1].nbytes, 1), 1)
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
