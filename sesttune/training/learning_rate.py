"""The learning rate as a function of the step, and of nothing else.

So a resumed trial, whatever it was cut at, has the rate it would have had.
"""

import math

from sesttune.config.schema import TrainingConfig


def learning_rate(step: int, settings: TrainingConfig) -> float:
    """The rate of the optimizer step that follows `step` finished ones.

    Any schedule rises linearly from 0 over `warmup_steps`. `constant` then stays at `lr`;
    `cosine` falls along half a cosine until `max_steps` (Loshchilov and Hutter, arXiv:1608.03983);
    `wsd` stays at `lr` and falls linearly over the last `lr_decay_frac` of `max_steps`
    (Hu et al., arXiv:2404.06395). Both end at `lr_final_frac` x `lr`.
    """
    warm = settings.warmup_steps
    rise = min(1.0, (step + 1) / (warm + 1))
    if settings.lr_schedule == "cosine":
        done = (step - warm) / max(settings.max_steps - warm, 1)
        left = (1 + math.cos(math.pi * min(max(done, 0.0), 1.0))) / 2
    elif settings.lr_schedule == "wsd":
        left = (settings.max_steps - step) / (settings.lr_decay_frac * settings.max_steps)
        left = min(max(left, 0.0), 1.0)
    else:
        left = 1.0
    final = settings.lr_final_frac
    return settings.lr * rise * (final + (1 - final) * left)
