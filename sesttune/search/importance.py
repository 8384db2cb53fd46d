"""Which searched key mattered, by Optuna's fANOVA over the trials that a sweep has run.

fANOVA (Hutter et al., ICML 2014) fits a random forest to the losses and says what share of their
variance each key explains alone. Optuna's present default, PED-ANOVA, asks what the best tenth of
the trials have in common; that is one trial or two of sixteen, and gave the share of a key without
any effect 0.4 and 0.6 where fANOVA gave it 0.1 and 0.2 (8 trials, one key of three).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import optuna
from optuna.importance import FanovaImportanceEvaluator, get_param_importances

from sesttune.search.axis import axis_of
from sesttune.search.searcher import Observed
from sesttune.search.space import SearchSpace

FEWEST = 6
"""Trials with a result below which a forest sees nothing."""
MOST = 500
"""Of more, every n-th is taken: the time grows with the square (1,000 trials: 15 s)."""
_ALIKE = 1e-6
"""Losses that differ by a smaller share are one loss: rounding is not to be explained."""
_SEED = 0


@dataclass(frozen=True)
class Importance:
    """`shares` by key, largest first, summing to 1; empty where `why_not` says why."""

    shares: Mapping[str, float] = field(default_factory=dict)
    why_not: str | None = None


def importance(space: SearchSpace, seen: Sequence[Observed]) -> Importance:
    """The importance of the keys that every trial of `seen` has, if there are two or more.

    `seen`: trials with their best val_loss; one outside of the space (a remedy) is left out.
    """
    axes = {key: axis_of(parameter) for key, parameter in space.parameters.items()}
    always = [key for key, parameter in space.parameters.items() if not parameter.when]
    varied = [key for key in always if not axes[key].distribution.single()]
    if len(varied) < 2:
        return Importance(why_not="fewer than two keys were searched in every trial")
    inside = [trial for trial in seen if trial.value is not None and space.holds(trial.params)]
    if len(inside) < FEWEST:
        return Importance(why_not=f"{len(inside)} trials have a result, it takes {FEWEST}")
    losses = [trial.value for trial in inside if trial.value is not None]
    if math.isclose(min(losses), max(losses), rel_tol=_ALIKE):
        return Importance(why_not="all trials have the same loss")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study()
    for trial in inside[:: math.ceil(len(inside) / MOST)]:
        study.add_trial(
            optuna.trial.create_trial(
                params={key: axes[key].coded(trial.params[key]) for key in varied},
                distributions={key: axes[key].distribution for key in varied},
                value=trial.value,
            )
        )
    found = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=_SEED))
    return Importance({key: float(share) for key, share in found.items()})
