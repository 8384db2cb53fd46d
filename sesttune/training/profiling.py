"""Where the time of a step goes, on request (`training.profile=true`).

Leaves `profile/breakdown.json` (milliseconds a step in each part) and `profile/trace.json.gz`
(torch profiler, for chrome://tracing or Perfetto) with the trial. The device is waited for
between the parts, which makes these few steps slower and their parts true. Validating and saving
between two steps is of neither: it is in the trace alone.
"""

import json
import time
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor

from sesttune.config.schema import Config
from sesttune.system.atomic import replacing, write_text
from sesttune.training.module import TrialModule
from sesttune.training.records import PROFILE, note_facts

BREAKDOWN, TRACE = "breakdown.json", "trace.json.gz"
WARM_UP, STEPS = 3, 10
"""Passes left out (compiling, first allocations), and passes measured and traced."""
PARTS = ("data", "forward", "loss", "backward", "optimizer")


class StepProfiler(lightning.Callback):
    """Measures passes `WARM_UP` to `WARM_UP + STEPS` of a run, or as many as there are."""

    def __init__(self, module: TrialModule, folder: Path) -> None:
        self._folder, self._on_gpu = folder, False
        self._parts: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        self._passes = -WARM_UP
        self._last = 0.0
        self._trace: torch.profiler.profile | None = None
        self._predict, module.predict = module.predict, self._forward
        self._average = module.update_average
        module.update_average = self._end_of_step  # type: ignore[method-assign]

    @classmethod
    def if_wanted(cls, config: Config, module: TrialModule, folder: Path) -> "list[StepProfiler]":
        """The profiler, where the settings ask for one and the folder has no profile yet."""
        done = (folder / PROFILE / BREAKDOWN).exists()
        return [cls(module, folder)] if config.training.profile and not done else []

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self._on_gpu = module.device.type == "cuda"

    def on_train_batch_start(self, *_: Any) -> None:
        if self._trace is not None:
            self._mark("data")

    def _forward(self, control_emb: Tensor, pert_emb: Tensor) -> Tensor:
        predicted = self._predict(control_emb, pert_emb)
        self._mark("forward")
        return predicted

    def on_before_backward(self, *_: Any) -> None:
        self._mark("loss")

    def on_after_backward(self, *_: Any) -> None:
        self._mark("backward")

    def _end_of_step(self, step: int) -> None:
        self._average(step)
        self._mark("optimizer")

    def on_train_batch_end(self, *_: Any) -> None:
        if self._trace is not None:
            self._last = self._now()  # the trial has validated and saved, where that was due
        self._passes += 1
        if self._passes == 0:
            activities = [torch.profiler.ProfilerActivity.CPU]
            if self._on_gpu:
                activities.append(torch.profiler.ProfilerActivity.CUDA)
            self._trace = torch.profiler.profile(activities=activities)
            self._trace.start()
            self._last = self._now()
        elif self._passes == STEPS:
            self._write()

    def on_train_end(self, *_: Any) -> None:
        self._write()

    def _mark(self, part: str) -> None:
        """Count the time since the last mark for `part`."""
        if self._trace is not None:
            now = self._now()
            self._parts[part] += now - self._last
            self._last = now

    def _now(self) -> float:
        if self._on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    def _write(self) -> None:
        trace, self._trace = self._trace, None
        if trace is None or self._passes <= 0:
            return
        trace.stop()
        folder = self._folder / PROFILE
        folder.mkdir(exist_ok=True)
        with replacing(folder / TRACE) as draft:
            trace.export_chrome_trace(str(draft))
        total = sum(self._parts.values())
        each = {f"{part}_ms": 1e3 * s / self._passes for part, s in self._parts.items()}
        content = {"passes": self._passes, "total_ms": 1e3 * total / self._passes, **each}
        write_text(folder / BREAKDOWN, json.dumps(content, indent=2))
        shares = ", ".join(f"{part} {100 * s / total:.0f} %" for part, s in self._parts.items())
        note_facts(self._folder, step_time=f"{1e3 * total / self._passes:.3g} ms: {shares}")
