"""The learning-rate factor of every optimizer step: a pure function of the step's number.

The optimizer's learning rates are multiplied by it, so that no scheduler object has to be saved or resumed.
"""

from __future__ import annotations

import math

from distmoe.engine.config import ScheduleConfig


def lr_factor(step: int, config: ScheduleConfig) -> float:
    """Returns the factor for optimizer step ``step`` (0-based), in [0, 1].

    Warm-up is linear and never 0: its first step has factor ``1 / warmup_steps``, its last one 1. Decay then runs
    from 1 towards ``final_scale``, which step ``num_steps`` (one after the last) would reach.
    """
    warmup_steps = round(config.warmup * config.num_steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if config.kind == "constant":
        return 1.0
    progress = min(1.0, (step - warmup_steps) / max(1, config.num_steps - warmup_steps))
    remaining = 1.0 - progress if config.kind == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return config.final_scale + (1.0 - config.final_scale) * remaining
