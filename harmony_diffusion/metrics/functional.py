"""Pixel metrics, one value per image, accumulated in float64.

Images are on the 0-255 scale, as every published table of the field has it.
"""

import torch
from torch import Tensor

PSNR_CAP = 100.0


def mse(harmonized: Tensor, real: Tensor) -> Tensor:
    """Mean squared error over all pixels and channels.

    Args:
        harmonized: Result in [0, 255], `(B, 3, H, W)`.
        real: Ground truth in [0, 255], `(B, 3, H, W)`.

    Returns:
        `(B,)` float64.

    Example:
        >>> mse(torch.full((1, 3, 2, 2), 5.0), torch.full((1, 3, 2, 2), 3.0))
        tensor([4.], dtype=torch.float64)
    """
    _check(harmonized, real)
    return (harmonized.double() - real.double()).square().mean((1, 2, 3))


def psnr(harmonized: Tensor, real: Tensor, peak: float = 255.0) -> Tensor:
    """Peak signal-to-noise ratio in dB over all pixels, capped at 100 dB for identical images.

    Args:
        harmonized: Result in [0, 255], `(B, 3, H, W)`.
        real: Ground truth in [0, 255], `(B, 3, H, W)`.
        peak: Largest possible value.

    Returns:
        `(B,)` float64, at most 100.

    Example:
        >>> psnr(torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), 25.5))
        tensor([20.], dtype=torch.float64)
    """
    return (10 * torch.log10(peak**2 / mse(harmonized, real))).clamp_max(PSNR_CAP)


def fmse(harmonized: Tensor, real: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error over the foreground: `sum(M d^2) / (3 sum(M))` (iDIH, Sofiiuk et al. 2021).

    Args:
        harmonized: Result in [0, 255], `(B, 3, H, W)`.
        real: Ground truth in [0, 255], `(B, 3, H, W)`.
        mask: 1 on the foreground, soft values weigh, `(B, 1, H, W)`.

    Returns:
        `(B,)` float64; NaN where the mask is empty, since there is nothing to average.

    Example:
        >>> mask = torch.tensor([1.0, 0.0]).view(1, 1, 1, 2)
        >>> fmse(torch.full((1, 3, 1, 2), 5.0), torch.full((1, 3, 1, 2), 3.0), mask)
        tensor([4.], dtype=torch.float64)
    """
    _check(harmonized, real)
    squared_error = (harmonized.double() - real.double()).square() * mask.double()
    return squared_error.sum((1, 2, 3)) / (3 * mask.double().sum((1, 2, 3)))


def fpsnr(harmonized: Tensor, real: Tensor, mask: Tensor, peak: float = 255.0) -> Tensor:
    """Peak signal-to-noise ratio in dB over the foreground, capped at 100 dB; arguments as `fmse`."""
    return (10 * torch.log10(peak**2 / fmse(harmonized, real, mask))).clamp_max(PSNR_CAP)


def _check(harmonized: Tensor, real: Tensor) -> None:
    if harmonized.shape != real.shape or harmonized.ndim != 4:
        raise ValueError(
            f"`harmonized` and `real` must both be (B, 3, H, W), got {tuple(harmonized.shape)} and "
            f"{tuple(real.shape)}."
        )
