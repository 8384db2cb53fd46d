"""Whether compiling the head pays (`training.compile=auto`), found out by training with it.

The most demanding trial of the space runs for some hundred steps as it is, and again in each
mode; what fails, trains otherwise or gains nothing is not used.
"""

import math
from collections.abc import Callable
from pathlib import Path

from sesttune.config.schema import Config
from sesttune.search.calibrate import Sample, measure
from sesttune.search.measuring import Place, in_a_process
from sesttune.search.space import SearchSpace

GAIN = 1.05
"""Less than a twentieth more steps is not worth compiling each size of head and batch anew."""
ALIKE = 0.1
"""How far val_loss may be off after some hundred steps: dropout draws other numbers."""
MODES = ("default", "reduce-overhead")


def modes_to_try(config: Config, gpus: float) -> tuple[str, ...]:
    """The modes that may pay for trials on `gpus` GPUs: none without one.

    On a CPU trials were slower for it (docs/performance.md).
    """
    if not gpus:
        return ()
    return MODES if config.training.accumulate_grad_batches == 1 else MODES[:1]


def fastest_mode(
    config: Config,
    space: SearchSpace,
    manifest: Path,
    folder: Path,
    threads: int,
    modes: tuple[str, ...],
    interval: int = 100,
    place: Place = in_a_process,
) -> tuple[str, str]:
    """(`training.compile` to use, what was found in words); arguments as of `measure`."""

    def train(mode: str) -> Sample:
        point = {"training.compile": mode}
        [sample] = measure(config, space, manifest, folder, threads, [point], interval, place)
        return sample

    plain = train("none")
    return choose(plain, {mode: _attempt(train, mode) for mode in modes})


def choose(plain: Sample, compiled: dict[str, Sample | str]) -> tuple[str, str]:
    """The fastest mode by its sample; instead of a sample, why there is none."""
    found = [f"not compiled {1 / plain.step_s:.4g}"]
    best, fastest = "none", plain.step_s / GAIN
    for mode, sample in compiled.items():
        if isinstance(sample, str):
            found.append(f"{mode} failed ({sample})")
        elif not _alike(plain, sample):
            found.append(f"{mode} trains otherwise, not used")
        else:
            found.append(f"{mode} {1 / sample.step_s:.4g}")
            if sample.step_s <= fastest:
                best, fastest = mode, sample.step_s
    return best, f"training.compile={best} (steps/s: {', '.join(found)})"


def _attempt(train: Callable[[str], Sample], mode: str) -> Sample | str:
    try:
        return train(mode)
    except Exception as error:  # whatever a compiler and a driver may come up with
        return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:120]}"


def _alike(plain: Sample, other: Sample) -> bool:
    """Whether the losses after the last step that both have made are close."""
    step = max(plain.val_losses.keys() & other.val_losses.keys())
    return math.isclose(plain.val_losses[step], other.val_losses[step], rel_tol=ALIKE)
