"""Distillation (Hinton et al., arXiv:1503.02531): a model learns the mean result of several others.

The mean of models with different errors is nearer to the truth than each of them, but takes the time of all.
One model that learns their mean takes the time of one. As targets come from the teachers, pictures need no
ground truth, and the true colours of the training photographs are not learned by heart.
"""

import os
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from harmony_diffusion.models import load_model
from harmony_diffusion.models.contract import HarmonyModel
from harmony_diffusion.models.layers import blend, clamp_unit


class Teachers:
    """Frozen models whose mean result is the target.

    Args:
        sources: Folders or names for `load_model`; a model that is given twice counts twice.
        device: Device to compute on.
    """

    def __init__(self, sources: Sequence[str | os.PathLike[str]], device: torch.device | str = "cpu") -> None:
        counts = Counter(os.fspath(source) for source in sources)
        self.models = [load_model(source).eval().requires_grad_(False) for source in counts]
        nn.ModuleList(self.models).to(device)
        self.shares = [count / len(sources) for count in counts.values()]
        for model in self.models:
            model.average_mirrored = False  # half the time; the mean over training pictures is the same

    @torch.no_grad()
    def __call__(self, composite: Tensor, mask: Tensor, opacity: Tensor) -> Tensor:
        """Return the mean result of the teachers.

        Args:
            composite: `(B, 3, H, W)` in [0, 1].
            mask: The mask given to the models, `(B, 1, H, W)`.
            opacity: The exact mask, `(B, 1, H, W)`. Filters act on all of it; where it is 0, nothing changes.
        """
        mean = torch.zeros_like(composite)
        for model, share in zip(self.models, self.shares, strict=True):
            mean += share * clamp_unit(_frame(model, composite, mask, opacity))
        return blend(mean, composite, (opacity > 0).to(mask.dtype))


def _frame(model: HarmonyModel, composite: Tensor, mask: Tensor, opacity: Tensor) -> Tensor:
    if not model.predicts_filters:
        return model.predict_frame(composite, mask)
    return model.transform(composite, model.predict_filters(composite, mask), opacity)
