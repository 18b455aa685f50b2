"""Losses of image harmonization, one value per image; averaging over the batch is the trainer's business.

Images are in [0, 1]. Losses are computed in float32, also under autocast.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from harmony_diffusion.errors import InputError

_CHARBONNIER_EPS = 1e-6


def fn_mse(harmonized: Tensor, real: Tensor, mask: Tensor, min_area: float = 100.0) -> Tensor:
    """Foreground-normalised MSE: `sum d^2 / (3 max(A_min, sum M))` (iDIH, Sofiiuk et al., WACV 2021).

    The error is summed over the whole frame: where the background is pasted back it adds nothing, and where
    a network renders it too, it counts.

    Args:
        harmonized: Result in [0, 1], `(B, 3, H, W)`.
        real: Ground truth in [0, 1], `(B, 3, H, W)`.
        mask: 1 on the foreground, soft values allowed, `(B, 1, H, W)`.
        min_area: A_min, the least area in pixels to divide by, so that tiny objects do not rule the batch;
            100 at 256x256, 1000 at full resolution.

    Returns:
        `(B,)`.

    Example:
        >>> mask = torch.tensor([1.0, 0.0]).view(1, 1, 1, 2)
        >>> fn_mse(mask.expand(1, 3, 1, 2) / 2, torch.zeros(1, 3, 1, 2), mask, min_area=1)
        tensor([0.2500])
    """
    squared_error = (harmonized.float() - real.float()).square().sum((1, 2, 3))
    return squared_error / (3 * mask.float().sum((1, 2, 3)).clamp_min(min_area))


def harmonizer_stage_loss(harmonized: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Loss of one filter stage of Harmonizer: Charbonnier plus ten times squared error on the foreground.

    As in the official code both are sums over the channels, divided by the area alone.

    Args:
        harmonized: Image after the stage, `(B, 3, H, W)`.
        target: What it should be, `(B, 3, H, W)`.
        mask: 1 on the foreground, `(B, 1, H, W)`.

    Returns:
        `(B,)`.
    """
    mask = mask.float()
    squared = (harmonized.float() - target.float()).square()
    area = mask.sum((1, 2, 3)) + 1e-6
    charbonnier = ((squared + _CHARBONNIER_EPS).sqrt() * mask).sum((1, 2, 3)) / area
    return charbonnier + 10 * (squared * mask).sum((1, 2, 3)) / area


def harmonizer_fine_loss(stages: Sequence[Tensor], targets: Sequence[Tensor], mask: Tensor) -> Tensor:
    """Harmonizer's dynamic loss of the fine stream, whose stages have a target each.

    A stage after the first is charged only with what it adds to the loss of the stage before it, and all
    terms are divided by their sum, so that easy and hard images weigh alike: with `S = sg(L_0 + sum_k
    max(L_k - L_(k-1), 0))`, the loss is `L_0 / S + sum_k max(L_k - sg(L_(k-1)), 0) / S`, where `sg` stops
    the gradient. (Ke et al., ECCV 2022; the form of the official code, which is not that of the paper.)

    Args:
        stages: Images after each filter, K of `(B, 3, H, W)`.
        targets: Ground truth of each stage, K of `(B, 3, H, W)`.
        mask: 1 on the foreground, `(B, 1, H, W)`.

    Returns:
        `(B,)`, 1 up to rounding: only the gradient carries information.

    Raises:
        InputError: There is no stage, or not one target for each.
    """
    if not stages or len(stages) != len(targets):
        raise InputError("targets", f"are {len(targets)} for {len(stages)} stages", "Give one for each.")
    losses = torch.stack(
        [harmonizer_stage_loss(*pair, mask) for pair in zip(stages, targets, strict=True)]
    )  # (K, B)
    added = (losses[1:] - losses[:-1].detach()).relu()
    scale = (losses[0] + added.sum(0) + 1e-9).detach()
    return (losses[0] + added.sum(0)) / scale


def harmonizer_coarse_loss(harmonized: Tensor, real: Tensor, mask: Tensor) -> Tensor:
    """Harmonizer's loss of the coarse stream, where only the result has a ground truth: ten stage losses.

    Args:
        harmonized: Image after the last filter, `(B, 3, H, W)`.
        real: Ground truth, `(B, 3, H, W)`.
        mask: 1 on the foreground, `(B, 1, H, W)`.

    Returns:
        `(B,)`.
    """
    return 10 * harmonizer_stage_loss(harmonized, real, mask)


def parameter_smoothness(filters: Tensor) -> Tensor:
    """Mean Sobel gradient magnitude of parameter maps (PCT-Net, Guerreiro et al., CVPR 2023).

    Args:
        filters: Parameter maps, `(B, F, h, w)`.

    Returns:
        `(B,)`; 0.001 and not 0 for constant maps, since the root is kept differentiable.

    Raises:
        InputError: `filters` are no maps.
    """
    if filters.ndim != 4:
        raise InputError(
            "filters", f"have shape {tuple(filters.shape)}", "Smoothness is defined on maps (B, F, h, w)."
        )
    maps = filters.float().flatten(0, 1)[:, None]  # (B * F, 1, h, w)
    across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]], device=maps.device) / 8
    kernels = torch.stack((across, across.T))[:, None]
    gradient = F.conv2d(F.pad(maps, (1, 1, 1, 1), mode="replicate"), kernels)
    magnitude = (gradient.square().sum(1) + 1e-6).sqrt()  # (B * F, h, w)
    return magnitude.mean((1, 2)).unflatten(0, filters.shape[:2]).mean(1)
