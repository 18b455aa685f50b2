"""Time profile of a training step."""

import contextlib
import time
from collections.abc import Iterator

import torch

WARM_UP_STEPS = 3  # left out of the profile


class StepClock:
    """Sum of the time that each part of a step takes.

    It waits for the device before each reading, which slows a GPU down, so it measures only on request.

    Args:
        device: Device of the run.
        steps: Number of steps to measure, after the warm-up; 0 for none.

    Attributes:
        step: Number of steps done; the loop counts it up.
    """

    def __init__(self, device: torch.device, steps: int) -> None:
        self.device, self.steps, self.step = device, steps, 0
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time one part of a step."""
        if not WARM_UP_STEPS <= self.step < WARM_UP_STEPS + self.steps:
            yield
            return
        begin = self._now()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + self._now() - begin

    def report(self, batch: int) -> str:
        """Return the share of each part, and the images per second."""
        total = sum(self.seconds.values())
        shares = ", ".join(f"{name} {100 * value / total:.1f} %" for name, value in self.seconds.items())
        steps = min(self.step - WARM_UP_STEPS, self.steps)
        return f"profile of {steps} steps: {shares}; {steps * batch / total:.1f} images/s"

    def is_complete(self, is_last: bool) -> bool:
        """Return True once, after the last measured step; `is_last` marks the end of the run."""
        end = WARM_UP_STEPS + self.steps
        return bool(self.seconds) and (self.step == end or (is_last and self.step < end))

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
