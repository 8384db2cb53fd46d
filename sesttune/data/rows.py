"""Rows of the cell store made dense: log1p expression, float32.

On the host in blocks: `BLOCK` rows are converted and scaled at once, `IN_CACHE` rows zeroed and
scattered while they stay in the processor's cache: seven times as fast as indexing the whole
batch at once. For a device the rows are only gathered here (4 bytes a value instead of 4 a gene)
and made dense there.
"""

import sys
import threading
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import numpy as np
import torch
from scipy.sparse import _sparsetools
from torch import Tensor

BLOCK, IN_CACHE = 32, 16
"""Rows; of the second, 18,080 genes take 1.2 MB. Smaller ones cost more calls than they save."""


class CsrArrays(Protocol):
    """What is read of a cell store: CSR arrays, and a factor a cell (0: values are log1p)."""

    indptr: np.ndarray
    indices: np.ndarray
    values: np.ndarray
    scale: np.ndarray
    n_genes: int


class Buffers:
    """Arrays that are used again once nobody holds them or a part of them.

    A batch at the default sizes is 148 MB; fresh from the system its pages cost three times what
    filling them does.
    """

    def __init__(self) -> None:
        self._arrays: list[np.ndarray] = [np.empty(0, np.float32)]
        # What an array shows that the list alone holds; not the same in every Python.
        self._free = sys.getrefcount(self._arrays[0])
        self._lock = threading.Lock()

    def take(self, shape: tuple[int, ...]) -> np.ndarray:
        """An array of float32, its content left over; safe from several threads."""
        with self._lock:
            held = [sys.getrefcount(self._arrays[i]) for i in range(len(self._arrays))]
            for number, holders in enumerate(held):
                # A tensor made of an array holds it too.
                if holders == self._free and self._arrays[number].shape == shape:
                    return self._arrays[number]
            fresh = np.empty(shape, np.float32)
            used = [i for i, holders in enumerate(held) if holders > self._free]
            self._arrays = [self._arrays[i] for i in used] + [fresh]
            return fresh


def dense_rows(store: CsrArrays, rows: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """log1p expression of `rows` (int64 [n]) on the host, float32 [n, genes].

    `out`, where given, is C-contiguous and is what is returned.
    """
    if out is None:
        out = np.empty((len(rows), store.n_genes), np.float32)
    bytes_of_out = out.view(np.uint8)
    for first in range(0, len(rows), BLOCK):
        block = rows[first : first + BLOCK]
        starts, stops = store.indptr[block], store.indptr[block + 1]
        genes = _joined(store.indices, starts, stops).astype(np.int32)
        values = _log1p(_joined(store.values, starts, stops), store.scale[block], stops - starts)
        indptr = np.concatenate(([0], np.cumsum(stops - starts))).astype(np.int32)
        for part in range(0, len(block), IN_CACHE):
            here = slice(first + part, first + min(part + IN_CACHE, len(block)))
            bytes_of_out[here].fill(0)  # of single bytes this is memset, of floats a slower loop
            # What `csr_matrix.toarray` does after it has zeroed.
            pointers = indptr[part : part + IN_CACHE + 1]
            _sparsetools.csr_todense(
                len(pointers) - 1, store.n_genes, pointers, genes, values, out[here]
            )
    return out


def _joined(array: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """The slices of a vector one after another, read-only.

    In one call that keeps the interpreter's lock: numpy lets go of it at every slice, and the
    threads spend their time handing it over.
    """
    view = array.data
    pieces = [view[a:b] for a, b in zip(starts.tolist(), stops.tolist(), strict=True)]
    return np.frombuffer(b"".join(pieces), array.dtype)


def _log1p(values: np.ndarray, scale: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """log1p(value * scale) float32, the value itself where scale is 0.

    By numpy with AVX-512, where it takes 0.4 ns a value and torch 0.7; without, 12 and 2.
    """
    raw = scale > 0
    factor = np.repeat(np.where(raw, scale, np.float32(1)), lengths)
    scaled = np.multiply(values, factor, out=factor, dtype=np.float32, casting="unsafe")
    logs = scaled if raw.all() else np.empty_like(scaled)
    if torch.backends.cpu.get_cpu_capability() == "AVX512":
        np.log1p(scaled, out=logs)
    else:
        torch.log1p(torch.from_numpy(scaled), out=torch.from_numpy(logs))
    return logs if raw.all() else np.where(np.repeat(raw, lengths), logs, scaled)


class Kind(Enum):
    """What the values of some cells are: the host knows, so a device need not look at each."""

    RAW = "raw"
    LOG1P = "log1p"
    BOTH = "some of each"

    @classmethod
    def of(cls, scale: np.ndarray) -> "Kind":
        """By the cells' factors (0: values are log1p)."""
        raw = scale > 0
        return cls.RAW if raw.all() else cls.BOTH if raw.any() else cls.LOG1P


@dataclass(frozen=True)
class CsrRows:
    """Some rows on their way to a device.

    `lengths` int64 [n], `scale` float32 [n] of `kind`; `genes` and `values` [nnz] are bit patterns:
    torch can convert uint16 and uint32, but not index them, so they travel as int16 and int32.
    """

    lengths: Tensor
    scale: Tensor
    genes: Tensor
    values: Tensor
    kind: Kind

    def to(self, device: torch.device) -> "CsrRows":
        """The same on `device`, copied without waiting where the memory is pinned."""
        tensors = (self.lengths, self.scale, self.genes, self.values)
        lengths, scale, genes, values = (t.to(device, non_blocking=True) for t in tensors)
        return CsrRows(lengths, scale, genes, values, self.kind)

    def dense(self, n_genes: int) -> Tensor:
        """log1p expression float32 [n, genes], on the device the rows are on."""
        row = torch.repeat_interleave(self.lengths, output_size=len(self.genes))
        return dense(row, self.scale, self.genes, self.values, n_genes, self.kind)

    def scatter(self, out: Tensor) -> None:
        """Write the values as they are into `out` [n, genes], of their type and zero."""
        row = torch.repeat_interleave(self.lengths, output_size=len(self.genes))
        out[row, unsigned(self.genes).long()] = self.values


def dense(
    row: Tensor, scale: Tensor, genes: Tensor, values: Tensor, n_genes: int, kind: Kind
) -> Tensor:
    """log1p expression float32 [n, genes]; `row` int64 [nnz], the rest as in `CsrRows`.

    A batch of the VCC data has 17 million values, and a GPU's time goes with the bytes that they
    are read and written as: nothing but what addresses memory is made int64.
    """
    values = expression(values, scale if kind is Kind.LOG1P else scale[row], kind)
    out = torch.zeros(len(scale), n_genes, device=row.device)
    out[row, unsigned(genes).long()] = values
    return out


def expression(values: Tensor, factor: Tensor, kind: Kind) -> Tensor:
    """log1p expression float32 of stored values; `factor` is that of each one's cell, if raw."""
    values = unsigned(values)
    if kind is Kind.LOG1P:
        return values.float()
    logs = (values * factor).log1p_()  # of counts times float32, float32
    return logs if kind is Kind.RAW else torch.where(factor > 0, logs, values.float())


def gather(store: CsrArrays, rows: np.ndarray, pin: bool) -> CsrRows:
    """`rows` of the store in host memory, page-locked with `pin`."""
    starts, stops = store.indptr[rows], store.indptr[rows + 1]
    taken = [slice(a, b) for a, b in zip(starts.tolist(), stops.tolist(), strict=True)]

    def joined(array: np.ndarray) -> Tensor:
        source, count = signed(array), int((stops - starts).sum())
        out = torch.empty(count, dtype=torch_dtype(source), pin_memory=pin)
        np.concatenate([source[t] for t in taken], out=out.numpy())
        return out

    return CsrRows(
        to_host(stops - starts, pin),
        to_host(store.scale[rows], pin),
        joined(store.indices),
        joined(store.values),
        Kind.of(store.scale[rows]),
    )


def to_host(array: np.ndarray, pin: bool) -> Tensor:
    """A tensor of a small array, page-locked with `pin`, so that its copy does not wait."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.pin_memory() if pin else tensor


def torch_dtype(array: np.ndarray) -> torch.dtype:
    """torch's name for the type of `array`."""
    return torch.from_numpy(np.empty(0, array.dtype)).dtype


def signed(array: np.ndarray) -> np.ndarray:
    """Unsigned integers seen as signed ones of the same size; others as they are."""
    return array.view(array.dtype.str.replace("u", "i")) if array.dtype.kind == "u" else array


def unsigned(tensor: Tensor) -> Tensor:
    """`signed` bit patterns seen as unsigned, which torch can convert; floating point as it is."""
    types = {torch.int16: torch.uint16, torch.int32: torch.uint32}
    return tensor.view(types.get(tensor.dtype, tensor.dtype))
