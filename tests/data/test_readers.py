from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiny_data import MeanEncoder, write_tiny

from sesttune.config.load import load_config
from sesttune.data import readers
from sesttune.data.loader import TrainingBatches
from sesttune.data.readers import (
    DenseReader,
    HostReader,
    ResidentReader,
    StreamingReader,
    choose_reader,
)
from sesttune.data.sampling import CellSetSampler
from sesttune.data.trial_data import TrialData, prepare
from sesttune.errors import UserError

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
        ],
    ),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TrialData:
    tiny = write_tiny(tmp_path_factory.mktemp("tiny"))
    return TrialData(prepare(load_config(base=tiny.settings()), MeanEncoder))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", [StreamingReader, ResidentReader, DenseReader])
def test_every_reader_gives_the_batches_of_the_host(
    data: TrialData, kind: type, device: str
) -> None:
    plain = TrainingBatches(CellSetSampler(data, 8, 0), HostReader(data), 4)
    moved = TrainingBatches(
        CellSetSampler(data, 8, 0), kind(data, torch.device(device)), 4, num_workers=2
    )
    for _ in range(30):  # more than an epoch
        one, two = next(plain), next(moved)
        assert {name: t.shape for name, t in one.items()} == {n: t.shape for n, t in two.items()}
        assert all(tensor.device.type == device for tensor in two.values())
        for name in one:
            assert torch.allclose(one[name], two[name].cpu(), rtol=1e-6, atol=0), name
    plain.close()
    moved.close()


@pytest.mark.parametrize("kind", [StreamingReader, ResidentReader, DenseReader])
def test_a_batch_on_a_device_is_made_without_asking_it_for_a_value(
    data: TrialData, kind: type
) -> None:
    """The meta device has no values, and refuses most operations that mix in the host's tensors."""
    reader = kind(data, torch.device("meta"))
    batch = reader.finish(reader.prepare(CellSetSampler(data, 8, 0).next_sets(4)))
    assert all(tensor.device.type == "meta" for tensor in batch.values())
    assert batch["target"].shape == (4, 8, data.n_genes)


def test_a_cpu_reads_from_the_page_cache_and_says_so(data: TrialData) -> None:
    reader = choose_reader(data, torch.device("cpu"))
    assert isinstance(reader, HostReader)
    assert reader.description == "store of 0.00 GiB in memory (page cache)"


def test_a_store_larger_than_memory_is_streamed_and_said_so(
    data: TrialData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(data.store), "nbytes", 2**60)
    reader = choose_reader(data, torch.device("cpu"))
    assert "streamed from disk" in reader.description


def test_a_device_is_asked_for_where_there_is_none(data: TrialData) -> None:
    with pytest.raises(UserError, match="store_location=device needs a GPU"):
        choose_reader(data, torch.device("cpu"), "device")


def chosen(
    data: TrialData, monkeypatch: pytest.MonkeyPatch, room: float, location: str = "auto"
) -> type:
    """By what a GPU with `room` bytes for data takes; the meta device has no memory to fill."""
    free = int(room / readers.RESIDENT_SHARE) + 1
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, free))
    return type(choose_reader(data, torch.device("meta"), location))


def test_a_gpu_takes_rows_with_their_zeros_where_those_are_hardly_more(
    data: TrialData, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = data.controls.matrix.nbytes + data.features.nbytes
    compressed = data.store.nbytes
    for whole, ample in ((1.5 * compressed, DenseReader), (1.51 * compressed, ResidentReader)):
        monkeypatch.setattr(type(data.store), "dense_nbytes", whole)
        assert chosen(data, monkeypatch, 2 * compressed + beside) is ample
        assert chosen(data, monkeypatch, compressed + beside) is ResidentReader
        assert chosen(data, monkeypatch, compressed + beside - 1e3) is StreamingReader
        assert chosen(data, monkeypatch, 2 * compressed + beside, "host") is StreamingReader
    monkeypatch.undo()
    assert data.store.dense_nbytes == data.store.dense(np.arange(data.store.n_cells)).nbytes / 2


def test_a_trial_takes_data_of_its_share_of_a_gpu_and_of_what_is_free_there(
    data: TrialData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(data.store), "dense_nbytes", 2**60)
    need = data.store.nbytes + data.controls.matrix.nbytes + data.features.nbytes
    fits = int(need / readers.RESIDENT_SHARE) + 1
    for free, total, share, kind in (
        (fits, fits, 1.0, ResidentReader),
        (fits, fits, 0.5, StreamingReader),
        (fits, 2 * fits, 0.5, ResidentReader),
        (fits // 2, 2 * fits, 1.0, StreamingReader),
    ):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, m=(free, total): m)
        assert type(choose_reader(data, torch.device("meta"), share=share)) is kind


def test_memory_that_another_process_took_first_is_done_without(
    data: TrialData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(data.store), "dense_nbytes", data.store.nbytes)
    asked = []

    def full(kind: type) -> None:
        def fails(*_: object) -> None:
            asked.append(kind)
            raise torch.OutOfMemoryError("CUDA out of memory (injected)")

        monkeypatch.setattr(kind, "__init__", fails)

    full(DenseReader)
    assert chosen(data, monkeypatch, 2**40) is ResidentReader
    full(ResidentReader)
    assert chosen(data, monkeypatch, 2**40) is StreamingReader
    assert asked == [DenseReader, DenseReader, ResidentReader]
    with pytest.raises(UserError, match="store_location=device: the data take"):
        chosen(data, monkeypatch, 2**40, "device")
    full(StreamingReader)
    with pytest.raises(UserError, match="meta has too little free memory for the control embed"):
        chosen(data, monkeypatch, 2**40)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_takes_the_store_where_there_is_room(
    data: TrialData, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cuda = torch.device("cuda", 0)
    assert isinstance(choose_reader(data, cuda), DenseReader | ResidentReader)
    assert isinstance(choose_reader(data, cuda, "host"), StreamingReader)
    for size in ("nbytes", "dense_nbytes"):
        monkeypatch.setattr(type(data.store), size, 2**60)
    assert isinstance(choose_reader(data, cuda), StreamingReader)
    with pytest.raises(UserError, match="GiB is free for data; set it to auto or host"):
        choose_reader(data, cuda, "device")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", [StreamingReader, ResidentReader, DenseReader])
def test_a_gpu_is_never_waited_for(data: TrialData, kind: type) -> None:
    reader = kind(data, torch.device("cuda"))
    batches = TrainingBatches(CellSetSampler(data, 8, 0), reader, 4, num_workers=2)
    next(batches)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(10):
            next(batches)
    finally:
        torch.cuda.set_sync_debug_mode("default")
        batches.close()
