"""Learning rate schedules."""

import math
from collections.abc import Sequence

from harmony_diffusion.errors import InputError

SCHEDULES = ("constant", "step", "linear", "cosine")


def learning_rate_factor(
    schedule: str,
    step: int,
    total: int,
    *,
    warmup: int = 0,
    milestones: Sequence[int] = (),
    gamma: float = 0.1,
    hold: int = 0,
) -> float:
    """Return what the learning rate is multiplied by at a step.

    Args:
        schedule: `"constant"`; `"step"`: times `gamma` at each milestone; `"linear"` and `"cosine"`: constant
            for `hold` steps, then down to 0 at `total`.
        step: Number of steps done before this one.
        total: Number of steps of the run.
        warmup: Steps over which the rate rises linearly, from `1 / warmup` on.
        milestones: Steps from which on the rate is multiplied by `gamma` once more.
        gamma: See `milestones`.
        hold: See `schedule`.

    Raises:
        InputError: An unknown schedule.

    Example:
        >>> [learning_rate_factor("step", step, 9, milestones=(3, 6), gamma=0.5) for step in (2, 3, 6)]
        [1.0, 0.5, 0.25]
    """
    if schedule not in SCHEDULES:
        raise InputError("lr_scheduler", f"is {schedule!r}", f"Choose one of {', '.join(SCHEDULES)}.")
    rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
    if schedule == "step":
        return rise * gamma ** sum(step >= milestone for milestone in milestones)
    done = min(1.0, max(0, step - hold) / max(1, total - hold))
    if schedule == "linear":
        return rise * (1 - done)
    return rise * (0.5 + 0.5 * math.cos(math.pi * done)) if schedule == "cosine" else rise
