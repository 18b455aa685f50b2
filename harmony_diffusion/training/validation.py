"""Scores and pictures of a model in training."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from harmony_diffusion.metrics.functional import fmse, mse, psnr


class Triple(NamedTuple):
    """A batch with ground truth, all in [0, 1]: `(B, 3, H, W)`, `(B, 1, H, W)` and `(B, 3, H, W)`."""

    composite: Tensor
    mask: Tensor
    real: Tensor


class Validation(NamedTuple):
    """Result of a validation.

    Attributes:
        scores: Means over the images: `mse`, `psnr` and `fmse` of the model, and with the prefix
            `composite_` those of the untouched composites.
        pictures: A row an image of composite, mask, harmonized and real, `(3, N * H, 4 * W)` in [0, 1].
    """

    scores: dict[str, float]
    pictures: Tensor


@torch.no_grad()
def validate(model: nn.Module, batches: Iterable[Triple], rows: int = 4) -> Validation:
    """Score a model, in evaluation mode, at the size of the batches.

    Args:
        model: Registry model; its mode is put back afterwards.
        batches: What to score on, on the device of the model.
        rows: Show so many of the first images.
    """
    was_training = model.training
    model.eval()
    values: dict[str, list[Tensor]] = {}
    shown: list[Tensor] = []
    try:
        for composite, mask, real in batches:
            harmonized = model(composite, mask).float()
            for prefix, image in (("", harmonized), ("composite_", composite)):
                for name, value in _scores(image, real, mask).items():
                    values.setdefault(prefix + name, []).append(value.cpu())
            left = max(0, rows - len(shown))
            columns = composite, mask.expand_as(composite), harmonized, real
            shown += list(torch.cat(columns, 3)[:left].cpu())
    finally:
        model.train(was_training)
    # An empty mask leaves no foreground to average: its fMSE is not a number, and is left out.
    scores = {name: torch.cat(parts).nanmean().item() for name, parts in values.items()}
    return Validation(scores, torch.cat(shown, 1) if shown else torch.zeros(3, 0, 0))


def _scores(image: Tensor, real: Tensor, mask: Tensor) -> dict[str, Tensor]:
    levels = (image * 255).round(), (real * 255).round()
    return {"mse": mse(*levels), "psnr": psnr(*levels), "fmse": fmse(*levels, mask)}
