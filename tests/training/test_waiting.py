"""No step of training waits for the device: on a GPU, and by the operations it consists of."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_data import MeanEncoder, TinyData, write_tiny
from helpers.waits import Waits
from torch.optim import SGD

from sesttune.config.load import load_config
from sesttune.data.readers import ResidentReader
from sesttune.data.sampling import fixed_sets
from sesttune.data.trial_data import TrialData, prepare
from sesttune.model.st_head import STHead
from sesttune.training.callbacks import TrialCallback
from sesttune.training.head_size import head_config
from sesttune.training.module import TrialModule
from sesttune.training.saving import Saver
from sesttune.training.trial import run_trial


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyData:
    return write_tiny(tmp_path_factory.mktemp("tiny"))


def watch_steps(
    monkeypatch: pytest.MonkeyPatch, before: Callable[[], object], after: Callable[[], object]
) -> list[int]:
    """Have both called around each step but the first, which makes the optimizer's state."""
    start, end, watched = TrialCallback.on_train_batch_start, TrialCallback.on_train_batch_end, []

    def watched_start(self, trainer, module, batch, index):  # type: ignore[no-untyped-def]
        start(self, trainer, module, batch, index)
        if self.step > 0:
            watched.append(self.step)
            before()

    def watched_end(self, *args):  # type: ignore[no-untyped-def]
        if self.step > 0:
            after()
        end(self, *args)

    monkeypatch.setattr(TrialCallback, "on_train_batch_start", watched_start)
    monkeypatch.setattr(TrialCallback, "on_train_batch_end", watched_end)
    return watched


@pytest.mark.parametrize("loss", ["energy", "sinkhorn", "mse"])
def test_no_step_asks_for_a_value(
    tiny: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: str
) -> None:
    waits = Waits()
    watched = watch_steps(monkeypatch, waits.__enter__, lambda: waits.__exit__(None, None, None))
    more: dict[str, object] = {
        "model.kwargs.loss": loss,
        "training.gradient_clip_val": 1.0,
        "training.ema_decay": 0.99,
        "training.lr_schedule": "cosine",
        "training.precision": "bf16",
    }
    config = load_config(base=tiny.settings(**more))
    run_trial(config, prepare(config, MeanEncoder), tmp_path)
    assert (len(watched), waits.found) == (19, [])
    assert waits.operations > 19 * 200  # a whole step was seen, forward and backward


@pytest.mark.parametrize("loss", ["energy", "sinkhorn", "mse"])
def test_a_step_lies_on_the_device_as_a_whole(
    tiny: TinyData, monkeypatch: pytest.MonkeyPatch, loss: str
) -> None:
    """The meta device has no values and refuses the host's tensors; no GPU is needed."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # it has none
    more = {"model.kwargs.loss": loss, "training.ema_decay": 0.99}
    config = load_config(base=tiny.settings(**more))
    data, device = TrialData(prepare(config, MeanEncoder)), torch.device("meta")
    module = TrialModule(config, STHead(head_config(config, data))).to(device)
    reader = ResidentReader(data, device)
    batch = reader.finish(reader.prepare(fixed_sets(data, "train", 8, 0)))
    module.measure_grad_norm = True
    module.training_step(batch, 0).backward()
    module.on_before_optimizer_step(SGD(module.parameters()))
    module.configure_gradient_clipping(SGD(module.parameters()), 1.0)
    module.update_average(1)
    with torch.inference_mode():
        found = module.set_losses(batch)
    everything = (
        found,
        module.loss_sum,
        module.grad_norm,
        *(p.grad for p in module.head.parameters()),
    )
    assert {tensor.device for tensor in everything} == {device}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_no_step_waits_for_the_gpu(
    tiny: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = watch_steps(
        monkeypatch,
        lambda: torch.cuda.set_sync_debug_mode("error"),
        lambda: torch.cuda.set_sync_debug_mode("default"),
    )
    # The mode is the process's, and the saver's thread, which may wait, would be stopped as well.
    start = Saver._start

    def save_at_once(self: Saver, *args: Any) -> None:
        start(self, *args)
        self._writing.result()

    monkeypatch.setattr(Saver, "_start", save_at_once)
    more = {"training.device": "cuda", "training.gradient_clip_val": 1.0}
    config = load_config(base=tiny.settings(**more))
    run_trial(config, prepare(config, MeanEncoder), tmp_path)
    assert len(watched) == 19
