"""Judge a learning curve as a careful person does: what it shows, by which numbers, what to do.

The labels and remedies are those of the plan that people follow by hand; its example numbers are
this module's test cases. Rules look at recorded validations only, so a verdict can be made again
from the files of any trial. docs/verdicts.md has the table.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from sesttune.config.schema import Config
from sesttune.training.records import NAN, PATIENCE, Line

HEALTHY, CONVERGED, OVERFIT = "healthy", "converged", "overfit"
UNDERFIT, UNSTABLE, SLOW = "underfit", "unstable", "slow"

CHANGE = 0.01
"""Smaller relative changes of val_loss over the patience window count as none (the plan's 1 %)."""
RISE = 0.05
"""How far val_loss must be above its best to have turned: validations are noisier than 1 %."""
NOISES = 2.0
"""And how many times what one validation scatters by; at 5 % of noise, 4 of 100 flat curves rise
as far (of those that scatter by 3 % the last one alone is 5 % above the best in 73)."""
GAP = 2.0
"""val_loss / train_loss from which they have come apart; the plan's example is 3.5 / 1.2."""
TOGETHER = 0.1
"""Train and validation loss within this share of each other; the plan's 4.5 and 4.6 are 2 %."""
LITTLE = 0.1
"""Without a baseline to beat, a loss that fell by less than this share has learnt little."""
SWING, SWINGS = 0.25, 2
"""Turns of val_loss by a quarter or more; two make it unstable (2.1, 5.3, 1.8, 4.2 turns twice)."""
_FEW = 4
"""Validations of which a curve is judged at least, however short the window."""
_BENDS = 20
"""Of the last validations, from which their noise is told."""
STEPS_PER_S = 1.0
"""Below this a training is slow (the plan's 1 it/s)."""
WAITING = 0.1
"""Share of a step spent waiting for data from which data are the bottleneck."""
LONGEST_EXTENSION = 3
"""Times a trial's budget; more is another training, not the end of this one."""


@dataclass(frozen=True)
class Verdict:
    """`remedy`: settings to paste after a command, None where nothing is to be changed.

    `still_falling`: more steps would pay. `slow`: what holds a step up, None where it is fast.
    """

    label: str
    evidence: str
    remedy: str | None = None
    still_falling: bool = False
    slow: str | None = None


def judge(
    lines: Sequence[Line],
    config: Config,
    stop_reason: str | None = None,
    baseline: float | None = None,
) -> Verdict:
    """The verdict on a trial with the settings `config`.

    `lines`: its report lines in order, at least one. `stop_reason`: why it ended; patience spent
    is converged by the plan's definition, unless it overfits. `baseline`: val_loss of the best
    prediction without a model (`evaluation/baselines.py`).
    """
    training = config.training
    window = training.patience * training.val_check_interval
    best = _best(lines)
    fell, moved = _fall(lines, window)
    slow = _bottleneck(lines)
    if (swings := _swings(lines, window, stop_reason)) is not None:
        return Verdict(UNSTABLE, swings, _calmer(config), slow=slow)
    if (turned := _turned(lines, best, fell)) is not None:
        return Verdict(
            OVERFIT, turned, f"training.max_steps={max(1, int(best['step']))}", slow=slow
        )
    if stop_reason != PATIENCE and fell >= CHANGE:
        label = HEALTHY if slow is None else SLOW
        more = more_steps(config) if lines[-1]["step"] >= training.max_steps else None
        evidence = f"still falling: {moved}" + ("" if slow is None else f"; {slow}")
        return Verdict(label, evidence, more, still_falling=True, slow=slow)
    if (little := _learnt_little(lines, best, baseline)) is not None:
        return Verdict(UNDERFIT, little, _stronger(config), slow=slow)
    if stop_reason == PATIENCE:
        moved = f"patience is spent: best val_loss {best['val_loss']:.4g} at step {_at(best)}"
    else:
        moved += f" (less than {100 * CHANGE:.0f} %)"
    return Verdict(CONVERGED, moved, slow=slow)


def _best(lines: Sequence[Line]) -> Line:
    """The line that best.ckpt is of: gains below `training.min_delta` make no new best."""
    recorded = [line for line in lines if line["step"] == lines[-1].get("best_step")]
    return recorded[0] if recorded else min(lines, key=lambda line: line["val_loss"])


def next_budget(max_steps: int, extend_to: Sequence[int]) -> int | None:
    """The next larger budget that is still the end of the same training."""
    larger = [steps for steps in extend_to if steps > max_steps]
    if not larger or larger[0] > LONGEST_EXTENSION * max_steps:
        return None
    return larger[0]


def more_steps(config: Config) -> str:
    """The override that gives a trial that is still falling what it lacks."""
    max_steps = config.training.max_steps
    longer = next_budget(max_steps, config.sweep.extend_to) or math.ceil(1.5 * max_steps)
    return f"training.max_steps={longer}"


def _fall(lines: Sequence[Line], window: int) -> tuple[float, str]:
    """How far the best val_loss fell over the last `window` steps (a share), and that in words."""
    last = lines[-1]
    early = [line for line in lines if line["step"] <= last["step"] - window] or [lines[0]]
    before = min(line["val_loss"] for line in early)
    best = min(line["val_loss"] for line in lines)
    steps = last["step"] - max(line["step"] for line in early)
    fell = (before - best) / abs(before) if before else 0.0
    return fell, f"val_loss fell {100 * fell:.1f} % over the last {steps:,.0f} steps, to {best:.4g}"


def _swings(lines: Sequence[Line], window: int, stop_reason: str | None) -> str | None:
    """The evidence that the loss jumps up and down, or None."""
    last = lines[-1]
    if stop_reason == NAN:
        norm = last.get("grad_norm", math.nan)
        known = f", grad_norm {norm:.3g}" if math.isfinite(norm) else ""
        value = f"val_loss {last['val_loss']:.4g}{known}"
        return f"the loss is not a number after step {_at(last)} ({value})"
    recent = [line["val_loss"] for line in lines if line["step"] >= last["step"] - window]
    if len(recent) < _FEW:  # as the plan's four numbers are
        recent = [line["val_loss"] for line in lines[-_FEW:]]
    large = [b - a for a, b in pairwise(recent) if abs(b - a) >= SWING * min(abs(a), abs(b))]
    turns = sum((a > 0) != (b > 0) for a, b in pairwise(large))
    if turns < SWINGS:
        return None
    shown = ", ".join(f"{loss:.3g}" for loss in recent[-5:])
    return f"val_loss turned {turns} times by a quarter or more: {shown}"


def _turned(lines: Sequence[Line], best: Line, fell: float) -> str | None:
    """The evidence that validation got worse while training went on, or None."""
    last = lines[-1]
    level, rose = _rise(lines, best)
    # Not ">": train_loss is nan at step 0, where there is nothing to compare with.
    train_fell = not last["train_loss"] > (1 - CHANGE) * best["train_loss"]
    if rose and train_fell:
        risen = level / best["val_loss"] - 1 if best["val_loss"] else math.inf
        return (
            f"val_loss rose {100 * risen:.1f} % from its best {best['val_loss']:.4g} at step "
            f"{_at(best)} to {level:.4g}, train_loss is {last['train_loss']:.4g}"
        )
    if fell < CHANGE and last["val_loss"] >= GAP * last["train_loss"]:
        return (
            f"train_loss {last['train_loss']:.4g}, but val_loss {last['val_loss']:.4g}; "
            f"the best is that of step {_at(best)}"
        )
    return None


def _rise(lines: Sequence[Line], best: Line) -> tuple[float, bool]:
    """The val_loss at the end, and whether it is above that around the best by more than noise.

    Medians of up to five validations: the best of many is the luckiest, and the last one is one.
    """
    losses = [line["val_loss"] for line in lines]
    place = lines.index(best)
    half = min(2, (len(losses) - 1 - place) // 3)
    around = statistics.median(losses[max(0, place - half) : place + half + 1])
    level = statistics.median(losses[-2 * half - 1 :])
    # A bend is a - 2b + c, which no steady fall has; of noise its median is 1.65 deviations.
    recent = losses[-_BENDS - 2 :]
    bends = [abs(a - 2 * b + c) for a, b, c in zip(recent, recent[1:], recent[2:], strict=False)]
    noise = statistics.median(bends) / 1.65 if bends else 0.0
    return level, level - around > max(RISE * abs(around), NOISES * noise)


def _learnt_little(lines: Sequence[Line], best: Line, baseline: float | None) -> str | None:
    last, first = lines[-1], lines[0]
    together = abs(last["val_loss"] - last["train_loss"]) <= TOGETHER * last["train_loss"]
    both = f"train_loss {last['train_loss']:.4g} and val_loss {last['val_loss']:.4g} are both high"
    if not together:
        return None
    if baseline is not None:
        worse = best["val_loss"] >= baseline
        return f"{both}: no better than the {baseline:.4g} without a model" if worse else None
    if len(lines) > 1 and best["val_loss"] > (1 - LITTLE) * first["val_loss"]:
        return f"{both}: {first['val_loss']:.4g} at the start"
    return None


def _bottleneck(lines: Sequence[Line]) -> str | None:
    trained = [line for line in lines if line.get("steps_per_s", 0.0) > 0]
    if not trained:
        return None
    rate = statistics.median(line["steps_per_s"] for line in trained)
    if rate >= STEPS_PER_S:
        return None
    waits = statistics.median(line.get("data_wait_frac", 0.0) for line in trained)
    slow = f"{rate:.2g} steps/s"
    if waits >= WAITING:
        return (
            f"{slow}, {100 * waits:.0f} % of it waiting for data: raise data.kwargs.num_workers, "
            "or free GPU memory so that the cells fit (data.kwargs.store_location=device)"
        )
    if not any(line.get("gpu_mem_gib", 0.0) for line in trained):
        return f"{slow}, all of it computing on the CPU: a GPU is what it lacks"
    return (
        f"{slow}, all of it computing: a smaller training.batch_size or model.kwargs.hidden_dim, "
        "or fewer trials a GPU (sweep.gpus_per_trial); training.profile=true shows the parts"
    )


def _calmer(config: Config) -> str:
    """A tenth of the rate; clipping where the rate is the plan's smallest already."""
    training = config.training
    if training.lr <= 1e-5 and training.gradient_clip_val is None:
        return "training.gradient_clip_val=1.0"
    return f"training.lr={training.lr / 10:.3g}"


def _stronger(config: Config) -> str:
    """Three times the rate while that is in the plan's range, then a wider head."""
    if config.training.lr < 1e-3:
        return f"training.lr={min(3 * config.training.lr, 1e-3):.3g}"
    wider = 2 * config.model.kwargs.hidden_dim
    return f"model.kwargs.hidden_dim={wider}"


def _at(line: Line) -> str:
    return f"{line['step']:,.0f}"
