"""Schedules as functions of the step, so that resumed runs need no state."""

import math


def cosine_schedule(step: int, total_steps: int, start: float, end: float) -> float:
    """Half a cosine wave from ``start`` towards ``end``.

    As in DINO, iBOT and SOP, step 0 has the value ``start``, and ``end`` would be reached at step ``total_steps``, one
    after the last; it stays from then on.

    Raises:
        ValueError: If there are no steps or the step is negative.
    """
    if total_steps < 1 or step < 0:
        raise ValueError(f'expected total_steps >= 1 and step >= 0, got {total_steps} and {step}')
    progress = min(step / total_steps, 1.0)
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def linear_schedule(step: int, duration: int, start: float, end: float) -> float:
    """Linear interpolation from ``start`` at step 0 to ``end`` at step ``duration - 1``, constant afterwards.

    With a duration below two steps the value is always ``end``.

    Raises:
        ValueError: If the step is negative.
    """
    if step < 0:
        raise ValueError(f'expected step >= 0, got {step}')
    if step >= duration - 1:
        return end
    return start + (end - start) * step / (duration - 1)
