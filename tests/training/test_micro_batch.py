from pathlib import Path

import pytest
import torch
from helpers.tiny_data import MeanEncoder, TinyData, write_tiny

from sesttune.config.load import load_config
from sesttune.data.trial_data import prepare
from sesttune.errors import UserError
from sesttune.model.head_checkpoint import read_checkpoint
from sesttune.model.st_head import STHead
from sesttune.system.out_of_memory import is_out_of_memory
from sesttune.training import trial
from sesttune.training.micro_batch import MicroBatch
from sesttune.training.records import read_metrics, read_trial
from sesttune.training.trial import run_trial


@pytest.mark.parametrize(
    ("whole", "pieces"), [((16, 1), [8, 4, 2, 1]), ((6, 1), [3, 1]), ((5, 2), [2, 1])]
)
def test_pieces_get_smaller_and_the_batch_stays(whole: tuple[int, int], pieces: list[int]) -> None:
    micro, found = MicroBatch(*whole), []
    while micro.sets > 1:
        micro = micro.smaller()
        found.append(micro.sets)
        assert micro.sets * micro.accumulate == whole[0] * whole[1]
    assert found == pieces
    with pytest.raises(UserError, match="out of memory with a single cell set"):
        micro.smaller()


def test_the_machine_says_out_of_memory_in_a_way_that_is_understood() -> None:
    with pytest.raises(RuntimeError) as caught:  # more than any machine has
        torch.empty(2**50)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"))
    newer = "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"
    assert is_out_of_memory(RuntimeError(newer))
    assert is_out_of_memory(torch.AcceleratorError("CUDA error: out of memory"))
    assert not is_out_of_memory(RuntimeError("shapes do not match"))


def test_a_library_that_does_not_start_is_out_of_memory_where_the_gpu_is_full(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = (
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_NOT_INITIALIZED",
    )
    for words in said:
        for free, full in ((0.1, True), (20.0, False)):
            monkeypatch.setattr(
                torch.cuda, "mem_get_info", lambda free=free: (int(free * 2**30), 80 * 2**30)
            )
            assert is_out_of_memory(RuntimeError(words)) is full

    def failed() -> None:
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(torch.cuda, "mem_get_info", failed)
    assert not is_out_of_memory(RuntimeError(said[0]))


@pytest.mark.parametrize(("asked", "share"), [(1.0, None), (0.5, 0.5), ("auto", None)])
def test_a_trial_that_shares_a_gpu_is_kept_to_its_share_before_its_data_are_there(
    tiny: TinyData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    asked: float | str,
    share: float | None,
) -> None:
    limits: list[tuple[float, torch.device]] = []
    gpu = torch.device("cuda", 0)

    class ReaderWanted(Exception):
        pass

    def wanted(*_: object) -> None:
        raise ReaderWanted

    monkeypatch.setattr(trial, "pick_device", lambda _: gpu)
    monkeypatch.setattr(trial, "choose_reader", wanted)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (10 * 2**30, 70 * 2**30))
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda *limit: limits.append(limit)
    )
    config = load_config(base=tiny.settings(**{"sweep.gpus_per_trial": asked}))
    with pytest.raises(ReaderWanted):
        run_trial(config, prepare(config, MeanEncoder), tmp_path)
    if share is None:
        assert limits == []
    else:
        assert limits == [(pytest.approx(share - 0.01), gpu)]  # CUDA's own 0.7 of 70 GiB


def test_what_fails_while_a_full_gpu_is_cleaned_up_hides_nothing() -> None:
    def failed_over(memory: Exception, error: Exception) -> Exception:
        try:
            try:
                raise memory
            finally:
                raise error
        except type(error) as caught:
            return caught

    full = torch.OutOfMemoryError("CUDA out of memory")
    recording = RuntimeError("CUDA error: operation failed due to a previous error during capture")
    assert is_out_of_memory(failed_over(full, recording))
    assert not is_out_of_memory(failed_over(full, UserError("the disk is full")))
    assert not is_out_of_memory(failed_over(ValueError("no"), RuntimeError("no")))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyData:
    return write_tiny(tmp_path_factory.mktemp("tiny"))


def limit_memory(monkeypatch: pytest.MonkeyPatch, sets: int, from_pass: int = 0) -> list[int]:
    """Make a training pass of more than `sets` sets fail; returns the passes that were tried."""
    forward, passes = STHead.forward, []

    def limited(self: STHead, control_emb: torch.Tensor, pert_emb: torch.Tensor) -> torch.Tensor:
        if self.training:
            passes.append(len(control_emb))
            if len(control_emb) > sets and len(passes) > from_pass:
                raise torch.OutOfMemoryError("CUDA out of memory (injected)")
        return forward(self, control_emb, pert_emb)

    monkeypatch.setattr(STHead, "forward", limited)
    return passes


def test_out_of_memory_keeps_the_batch_and_goes_on_from_the_last_good_state(
    tiny: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(base=tiny.settings(**{"model.kwargs.dropout": 0.0}))
    manifest = prepare(config, MeanEncoder)
    run_trial(config, manifest, tmp_path / "roomy")
    reports: list[float] = []
    passes = limit_memory(monkeypatch, 1, from_pass=8)  # fails in step 9, after the first report
    folder = tmp_path / "tight"
    result = run_trial(config, manifest, folder, lambda line: reports.append(line["step"]))
    assert result.step == 20
    assert passes[8:11] == [4, 2, 1]
    assert reports == [0, 5, 10, 15, 20]  # nothing is reported twice
    record = read_trial(folder)
    assert record is not None
    assert record.facts["micro_batch"] == 1
    one, two = (
        read_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt")
        for name in ("roomy", "tight")
    )
    assert one["sets_drawn"] == two["sets_drawn"] == 80
    for line, other in zip(read_metrics(tmp_path / "roomy"), read_metrics(folder), strict=True):
        assert line["val_loss"] == pytest.approx(other["val_loss"], rel=1e-3)


def test_a_resumed_trial_remembers_what_fitted(
    tiny: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(base=tiny.settings())
    manifest = prepare(config, MeanEncoder)
    passes = limit_memory(monkeypatch, 2)
    run_trial(load_config(base=tiny.settings(**{"training.max_steps": 10})), manifest, tmp_path)
    del passes[:]
    run_trial(config, manifest, tmp_path)
    assert passes == [2] * 20  # ten steps of the whole batch


def test_below_one_set_the_trial_says_what_would_help(
    tiny: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(base=tiny.settings())
    passes = limit_memory(monkeypatch, 0)
    with pytest.raises(UserError, match="single cell set a pass: lower model.kwargs"):
        run_trial(config, prepare(config, MeanEncoder), tmp_path)
    assert passes == [4, 2, 1]
    assert [line["step"] for line in read_metrics(tmp_path)] == [0]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_no_gradient_of_the_last_step_is_there_while_the_next_one_predicts(
    tiny: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulate: int
) -> None:
    """A pass recorded as a CUDA graph overwrites them: moving one off a full GPU would fail."""
    forward, held = STHead.forward, []

    def noted(self: STHead, control_emb: torch.Tensor, pert_emb: torch.Tensor) -> torch.Tensor:
        if self.training:
            held.append(any(p.grad is not None for p in self.parameters()))
        return forward(self, control_emb, pert_emb)

    monkeypatch.setattr(STHead, "forward", noted)
    more = {"training.max_steps": 5, "training.accumulate_grad_batches": accumulate}
    config = load_config(base=tiny.settings(**more))
    run_trial(config, prepare(config, MeanEncoder), tmp_path)
    assert held == 5 * [False, True][:accumulate]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_that_is_really_full_makes_the_pieces_smaller(tiny: TinyData, tmp_path: Path) -> None:
    total = torch.cuda.get_device_properties(0).total_memory
    more = {
        "training.device": "cuda",
        "training.batch_size": 512,
        "training.max_steps": 4,
        "training.val_check_interval": 2,
        "model.kwargs.hidden_dim": 512,
        "model.kwargs.n_layers": 4,
    }
    config = load_config(base=tiny.settings(**more))
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.7 * 2**30 / total)  # a GPU of 0.7 GiB
    try:
        run_trial(config, prepare(config, MeanEncoder), tmp_path)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    record = read_trial(tmp_path)
    assert record is not None
    assert record.facts["micro_batch"] < 512
    assert [line["step"] for line in read_metrics(tmp_path)] == [0, 2, 4]
