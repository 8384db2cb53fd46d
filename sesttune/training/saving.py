"""Write and restore a trial's checkpoints: best (weights), last and periodic (training state).

The loop only takes a copy of the state, on the device it is on; a thread moves it to the host
and to disk while training goes on. One write is under way at a time, each to a temporary
name that is renamed, and what must follow it (the metrics line) is written after it.
"""

import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from sesttune.config.load import to_dict
from sesttune.config.schema import Config
from sesttune.data.trial_data import TrialData
from sesttune.errors import UserError
from sesttune.model.head_checkpoint import load_state, read_checkpoint, save_checkpoint
from sesttune.system.atomic import replacing
from sesttune.training.module import TrialModule
from sesttune.training.progress import Progress
from sesttune.training.records import BEST, LAST, append_metrics

GB = 1e9


class Saver:
    """The checkpoint folder of one trial.

    The training state is a dict of plain values and tensors: step, sets drawn, weights (and
    their average), optimizer, RNG, patience, the running loss and the last report line.
    """

    def __init__(
        self, folder: Path, config: Config, data: TrialData, module: TrialModule, progress: Progress
    ) -> None:
        self.folder = folder
        self._budget = config.training.checkpoint_budget_gb * GB
        self._about = {
            "config": to_dict(config),
            "encoder": dict(data.encoder),
            "genes": data.genes_key,
            "data_fingerprint": data.fingerprint,
        }
        self._module, self._progress = module, progress
        self._thread = ThreadPoolExecutor(1, "saver")
        self._writing: Future[None] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        for draft in folder.glob(".*.ckpt"):  # of a process that was killed while it wrote
            draft.unlink()

    def training_state(
        self, step: int, sets_drawn: int, optimizer: torch.optim.Optimizer, report: dict[str, float]
    ) -> dict[str, Any]:
        """A copy of everything the trial needs to go on from here."""
        module, on_gpu = self._module, self._module.device.type == "cuda"
        state = {
            "step": step,
            "sets_drawn": sets_drawn,
            "model": module.head.state_dict(),
            "optimizer": optimizer.state_dict(),
            "rng": {
                "cpu": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state() if on_gpu else None,
            },
            "progress": self._progress.state_dict(),
            "loss": [float(module.loss_sum), module.loss_count],
            "report": report,
            **self._about,
        }
        if module.average is not None:
            state["average"] = module.average.state_dict()
        return {key: map_tensors(value, torch.clone) for key, value in state.items()}

    def save_validated(self, state: dict[str, Any], best: bool, periodic: bool) -> None:
        """`last.ckpt`, also as `best.ckpt` and `step=N.ckpt` if so, then the metrics line."""
        line = state["report"]

        def write(state: dict[str, Any]) -> None:
            save_checkpoint(self.folder / LAST, state)
            if best:
                self._write_best(state)
            if periodic:
                self._keep_last_as(_periodic(state["step"]))
            append_metrics(self.folder.parent, line)

        self._start(write, state)

    def complete(self, state: dict[str, Any], periodic: bool) -> None:
        """Write what `save_validated` did not, if it ended after `last.ckpt`: a kill, no room."""
        path, step = self.folder / BEST, state["step"]
        if self._progress.best_step == step and (
            not path.is_file() or read_checkpoint(path)["step"] != step
        ):
            self._write_best(state)
        if periodic and not (self.folder / _periodic(step)).exists():
            self._keep_last_as(_periodic(step))
            thin(self.folder, self._budget)

    def _write_best(self, state: dict[str, Any]) -> None:
        """After `last.ckpt`, or a full disk would leave a best that no metrics tell of."""
        weights, loss = state.get("average", state["model"]), state["report"]["val_loss"]
        content = {"step": state["step"], "val_loss": loss, "model": weights}
        save_checkpoint(self.folder / BEST, {**content, **self._about})

    def save_periodic(self, state: dict[str, Any]) -> None:
        """`step=N.ckpt` between two validations."""
        path = self.folder / _periodic(state["step"])
        self._start(lambda state: save_checkpoint(path, state), state)

    @property
    def writing(self) -> bool:
        """Whether a write is still under way."""
        return self._writing is not None and not self._writing.done()

    def settle(self) -> None:
        """Wait for the write that is under way. Raises what it raised, e.g. a full disk."""
        if self._writing is not None:
            self._writing.result()
            self._writing = None

    def close(self) -> None:
        """End the thread, after its last write."""
        self._thread.shutdown()

    def _start(self, write: Callable[[dict[str, Any]], None], state: dict[str, Any]) -> None:
        self.settle()
        gpu = self._module.device.type == "cuda"
        copied = torch.cuda.current_stream().record_event() if gpu else None

        def work() -> None:
            write(_to_host(state, copied))
            thin(self.folder, self._budget)

        self._writing = self._thread.submit(work)

    def _keep_last_as(self, name: str) -> None:
        """A second name for the file that is `last.ckpt` now, for the room of one."""
        path = self.folder / name
        path.unlink(missing_ok=True)
        try:
            os.link(self.folder / LAST, path)
        except OSError:  # a file system without links
            with replacing(path) as draft:
                shutil.copyfile(self.folder / LAST, draft)


def thin(folder: Path, budget: float) -> None:
    """Remove periodic checkpoints until `folder` takes no more than `budget` bytes.

    Best and last always stay. The one goes whose going leaves the smallest gap in steps, so
    that those that stay are spread over the training; the newest goes only as the last.
    """
    steps = sorted(int(path.stem[5:]) for path in folder.glob("step=*.ckpt"))
    while steps and _bytes_in(folder) > budget:
        # The gap that each would leave, the newest left out.
        gaps = [b - a for a, b in zip([0, *steps], steps[1:], strict=False)] or [0]
        (folder / _periodic(steps.pop(gaps.index(min(gaps))))).unlink()


def _periodic(step: int) -> str:
    return f"step={step}.ckpt"


def _bytes_in(folder: Path) -> int:
    """Bytes of the folder's files; one with two names counts once."""
    stats = [path.stat() for path in folder.glob("[!.]*.ckpt")]
    return sum({stat.st_ino: stat.st_size for stat in stats}.values())


def map_tensors(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """`value` with every tensor in its dicts and lists changed."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: map_tensors(part, change) for key, part in value.items()}
    if isinstance(value, list):
        return [map_tensors(part, change) for part in value]
    return value


def _to_host(state: dict[str, Any], copied: torch.cuda.Event | None) -> dict[str, Any]:
    """The state in host memory, moved beside what the training loop computes."""
    if copied is None:
        return state
    stream = torch.cuda.Stream()
    stream.wait_event(copied)
    with torch.cuda.stream(stream):
        moved: dict[str, Any] = map_tensors(state, torch.Tensor.cpu)
    return moved


def read_training_state(path: Path) -> dict[str, Any]:
    """A checkpoint a training can continue from; raises UserError where it cannot."""
    state = read_checkpoint(path)
    if "optimizer" not in state:
        raise UserError(
            f"model.checkpoint: {path} holds weights alone; continue from last.ckpt or "
            "step=N.ckpt of the same folder"
        )
    return state


def restore_weights(module: TrialModule, state: dict[str, Any], path: Path) -> None:
    """Weights and running loss; the optimizer comes later, when Lightning has made it."""
    load_state(module.head, state["model"], path)
    if module.average is not None:  # a run without one is continued with one: it begins here
        load_state(module.average, state.get("average", state["model"]), path)
    module.loss_sum.fill_(state["loss"][0])
    module.loss_count = int(state["loss"][1])


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Moments from the checkpoint; learning rate and decay stay those of this run's settings."""
    wanted = [{key: g[key] for key in ("lr", "weight_decay")} for g in optimizer.param_groups]
    optimizer.load_state_dict(state["optimizer"])
    for group, settings in zip(optimizer.param_groups, wanted, strict=True):
        group.update(settings)
    torch.set_rng_state(state["rng"]["cpu"])
    if state["rng"]["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["rng"]["cuda"])
