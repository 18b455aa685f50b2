"""Exponential moving average of the weights of a model."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


class MovingAverage:
    """Exponential moving average of the weights and running statistics of a model (EMA).

    The decay starts low, `(1 + n) / (10 + n)` after `n` updates, so that the start is forgotten quickly.

    Args:
        model: Model to follow.
        decay: Decay that is approached.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.average = {key: value.detach().clone() for key, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, updates: int) -> None:
        """Move towards the model; `updates` is the number of updates before this one."""
        weight = 1 - min(self.decay, (1 + updates) / (10 + updates))
        averages, values = [], []
        for key, value in model.state_dict().items():
            if value.is_floating_point():
                averages.append(self.average[key])
                values.append(value)
            else:
                self.average[key].copy_(value)
        # In one call, as diffusers' own average does: there are hundreds of small tensors.
        torch._foreach_lerp_(averages, values, weight)

    @contextlib.contextmanager
    def in_place_of(self, model: nn.Module) -> Iterator[None]:
        """Give the model the averaged weights within a `with` block."""
        own = {key: value.clone() for key, value in model.state_dict().items()}
        model.load_state_dict(self.average)
        try:
            yield
        finally:
            model.load_state_dict(own)
