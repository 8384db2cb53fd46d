from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import sparse
from torch._subclasses.fake_tensor import FakeTensorMode

from sesttune.data.rows import BLOCK, Buffers, CsrRows, dense_rows, gather, signed, unsigned


def store(values: np.dtype, genes: np.dtype, kind: str, n: int = 3 * BLOCK + 5) -> SimpleNamespace:
    """CSR arrays with empty rows; `kind` of the values is raw, log1p or both."""
    rng = np.random.default_rng(0)
    x = sparse.random(n, 300, 0.2, "csr", random_state=rng)
    x.data = rng.integers(1, 60_000, len(x.data)).astype(np.float32)
    raw = {"raw": np.full(n, True), "log1p": np.full(n, False), "both": rng.random(n) < 0.5}[kind]
    scale = np.where(raw, rng.random(n) + 0.1, 0.0).astype(np.float32)
    return SimpleNamespace(
        indptr=x.indptr.astype(np.int64),
        indices=x.indices.astype(genes),
        values=x.data.astype(values),
        scale=scale,
        n_genes=300,
        expected=np.where(
            raw[:, None], np.log1p(x.toarray().astype(np.float64) * scale[:, None]), x.toarray()
        ),
    )


KINDS = [
    (np.uint16, np.uint16, "raw"),
    (np.uint16, np.uint32, "both"),
    (np.float32, np.uint16, "log1p"),
    (np.float32, np.uint32, "both"),
]


@pytest.mark.parametrize(("values", "genes", "kind"), KINDS)
def test_host_and_device_give_the_same_rows(values: np.dtype, genes: np.dtype, kind: str) -> None:
    cells = store(values, genes, kind)
    rows = np.random.default_rng(1).integers(0, len(cells.scale), 2 * BLOCK + 3)
    on_host = dense_rows(cells, rows)
    assert on_host.dtype == np.float32
    assert np.allclose(on_host, cells.expected[rows], rtol=1e-6)
    moved = gather(cells, rows, pin=False).to(torch.device("cpu")).dense(300)
    assert np.allclose(moved.numpy(), on_host, rtol=1e-6)


def test_making_rows_dense_asks_the_device_for_no_value() -> None:
    """Tensors without values raise where one is asked for, as a GPU would make the host wait."""
    rows = gather(store(np.uint16, np.uint16, "both"), np.arange(9), pin=False)
    with FakeTensorMode() as mode:
        parts = (mode.from_tensor(t) for t in (rows.lengths, rows.scale, rows.genes, rows.values))
        assert CsrRows(*parts, kind=rows.kind).dense(300).shape == (9, 300)


@pytest.mark.parametrize("kind", ["raw", "log1p", "both"])
def test_only_cells_of_both_kinds_are_compared_value_by_value(kind: str) -> None:
    rows = gather(store(np.uint16, np.uint16, kind), np.arange(40), pin=False)
    assert rows.kind.name.lower() == kind
    with torch.profiler.profile() as profile:
        rows.dense(300)
    ran = {event.name for event in profile.events()}
    assert ("aten::where" in ran) == (kind == "both")
    assert ("aten::log1p_" in ran) == (kind != "log1p")


def test_rows_without_values_are_zero() -> None:
    cells = store(np.uint16, np.uint16, "raw", 4)
    cells.indptr[:] = 0
    assert not dense_rows(cells, np.array([2, 0])).any()
    assert not gather(cells, np.array([2, 0]), pin=False).dense(300).any()


def test_the_largest_unsigned_numbers_survive_the_journey() -> None:
    for dtype in (np.uint16, np.uint32):
        numbers = np.array([0, 1, np.iinfo(dtype).max // 2 + 1, np.iinfo(dtype).max], dtype)
        assert unsigned(torch.from_numpy(signed(numbers))).tolist() == numbers.tolist()


def test_a_buffer_is_used_again_when_the_last_tensor_over_it_is_gone() -> None:
    buffers = Buffers()
    first = buffers.take((6, 5))
    where = first.ctypes.data
    view = torch.from_numpy(first).view(2, 3, 5)
    weight = torch.ones(5, requires_grad=True)
    kept = (view * weight).sum()  # the graph needs `view` for the gradient
    del first, view
    second = buffers.take((6, 5))
    assert second.ctypes.data != where
    kept.backward()
    del kept
    assert buffers.take((6, 5)).ctypes.data == where
    assert buffers.take((4, 5)).shape == (4, 5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("values", "genes", "kind"), KINDS)
def test_a_gpu_makes_the_same_rows(values: np.dtype, genes: np.dtype, kind: str) -> None:
    cells = store(values, genes, kind)
    rows = np.random.default_rng(1).integers(0, len(cells.scale), 70)
    compressed: CsrRows = gather(cells, rows, pin=True).to(torch.device("cuda"))
    assert np.allclose(compressed.dense(300).cpu().numpy(), dense_rows(cells, rows), rtol=1e-5)
