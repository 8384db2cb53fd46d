"""The end of a sweep: repeat the finalists with other seeds, and name the winner by their means.

One training's val_loss moves with its seed; a sweep that picks the best of many single runs picks
luck, too. All draws share the validation sets, so their losses are comparable.
"""

import math
import statistics
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from sesttune.search.trial_state import TrialState
from sesttune.training.records import NAN

REPLICATE = "training.replicate"
SURE = 0.05
"""Below this p-value (Welch's t-test, two-sided) a difference of means is called one."""


@dataclass(frozen=True)
class Standing:
    """A finalist over its draws: `values` are best val_losses, the trial's own first.

    A draw that diverged is `math.inf`, and so is the mean.
    """

    trial: str
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def sd(self) -> float:
        """Sample standard deviation; nan of one draw, and where one diverged."""
        if len(self.values) < 2 or self.diverged:
            return math.nan
        return statistics.stdev(self.values)

    @property
    def diverged(self) -> int:
        """How many of the draws diverged."""
        return self.values.count(math.inf)

    def __str__(self) -> str:
        """The mean with its deviation, or how many of the draws diverged."""
        if self.diverged:
            return f"diverged with {self.diverged} of {len(self.values)} seeds"
        spread = "" if math.isnan(self.sd) else f" ± {self.sd:.2g}"
        return f"{self.mean:.4g}{spread}"


def finalists(
    trials: Iterable[TrialState], count: int, training: Callable[[TrialState], Hashable]
) -> list[TrialState]:
    """The best `count` that were trained to their end, one of each training, best first."""
    best: dict[Hashable, TrialState] = {}
    ended = [t for t in trials if t.complete and not t.shares and t.repeats is None]
    for trial in sorted(ended, key=lambda t: (t.settled, t.id)):
        if math.isfinite(trial.settled):
            best.setdefault(training(trial), trial)
    return list(best.values())[:count]


def missing_draw(
    finals: Sequence[TrialState], trials: Iterable[TrialState], seeds: int
) -> tuple[TrialState, int] | None:
    """The next finalist and replicate to train; a single finalist needs no comparison."""
    if len(finals) < 2:
        return None
    drawn = {(t.repeats, t.point[REPLICATE]) for t in trials if t.repeats is not None}
    for replicate in range(1, seeds):
        for trial in finals:
            if (trial.id, replicate) not in drawn:
                return trial, replicate
    return None


def standings(finals: Sequence[TrialState], trials: Iterable[TrialState]) -> list[Standing]:
    """The finalists by their means over the draws that were trained to their end, best first.

    One that diverges with another seed comes after all that do not, however good it is with some.
    """
    draws: dict[str, list[float]] = {trial.id: [trial.settled] for trial in finals}
    for trial in trials:
        if trial.repeats in draws and trial.reason == NAN:
            draws[trial.repeats].append(math.inf)
        elif trial.repeats in draws and trial.complete and math.isfinite(trial.settled):
            draws[trial.repeats].append(trial.settled)
    ranked = [Standing(trial, tuple(values)) for trial, values in draws.items()]
    return sorted(ranked, key=lambda s: (s.diverged, s.mean, s.values[0], s.trial))


def difference(first: Standing, second: Standing) -> str:
    """In words: whether the best mean is better than the next, or it may be chance."""
    if min(len(first.values), len(second.values)) < 2:
        return f"{first.trial} leads {second.trial}, but a single training may be luck"
    if second.diverged:  # the ranking puts it second
        own = f" ({first.trial} {first})" if first.diverged else ""
        return f"{first.trial} leads {second.trial}, which {second}{own}"
    from scipy.stats import ttest_ind

    p_value = 1.0  # of draws that are all alike, where the test divides by zero
    if {*first.values, *second.values} != {first.values[0]}:
        p_value = float(ttest_ind(first.values, second.values, equal_var=False).pvalue)
    gap = f"{first} and {second}"
    if p_value < SURE:
        return (
            f"{first.trial} is better than {second.trial} beyond noise ({gap}, p = {p_value:.2g})"
        )
    return f"{first.trial} and {second.trial} differ by noise only ({gap}, p = {p_value:.2g})"


def untried_remedy(
    trials: Mapping[str, TrialState], remedy: Callable[[TrialState], dict[str, object] | None]
) -> tuple[TrialState, dict[str, object]] | None:
    """The unstable leader and what to change, once a sweep; NaN leads where nothing else ended."""
    searched = [t for t in trials.values() if t.repeats is None and not t.shares]
    if any(trial.remedies for trial in trials.values()) or not searched:
        return None
    leader = min(searched, key=lambda t: (not t.complete, t.settled, t.id))
    change = remedy(leader)
    return None if change is None else (leader, change)
