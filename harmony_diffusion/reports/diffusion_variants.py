"""Scores of a diffusion result in every variant. `diffusion_tables` explains the variants and prints them."""

import torch
from torch import Tensor

from harmony_diffusion.metrics.functional import fab, fmse, fpsnr, mse, psnr
from harmony_diffusion.reports.diffusion_tables import LEGACY, PASTED, RAW


def variant_scores(raw: Tensor, pasted: Tensor, real: Tensor, mask: Tensor) -> dict[str, dict[str, Tensor]]:
    """Score an image in every variant, for the rows of `rows.csv`.

    Args:
        raw: Output of the autoencoder, in [0, 255], `(B, 3, H, W)`.
        pasted: The same with the original background, in [0, 255], `(B, 3, H, W)`.
        real: Ground truth in [0, 255], `(B, 3, H, W)`.
        mask: 1 on the foreground, `(B, 1, H, W)`.

    Returns:
        Values by protocol and metric, `(B,)` each. The protocols are `raw`, `pasted`, and `legacy_uint8` of
        the raw output (see `legacy_uint8_mse`).
    """
    scores = {
        name: {
            "mse": mse(image, real),
            "psnr": psnr(image, real),
            "fmse": fmse(image, real, mask),
            "fpsnr": fpsnr(image, real, mask),
            "fab": fab(image, real, mask),
        }
        for name, image in ((RAW, raw), (PASTED, pasted))
    }
    wrapped = legacy_uint8_mse(raw, real)
    scores[LEGACY] = {"mse": wrapped, "psnr": (10 * torch.log10(255**2 / wrapped)).clamp_max(100)}
    return scores


def legacy_uint8_mse(harmonized: Tensor, real: Tensor) -> Tensor:
    """Compute the mean squared error in 8-bit arithmetic, where differences and squares wrap around.

    This is not a valid error measure. It exists for comparison with a paper that reports an MSE of about 50
    at a PSNR of about 31 dB for images with a replaced object. Such values are comparable only with this
    computation; the paper does not state how it computed them.

    Args:
        harmonized: Result in [0, 255], `(B, 3, H, W)`. Values are rounded to integers.
        real: Ground truth in [0, 255], `(B, 3, H, W)`. Values are rounded to integers.

    Returns:
        `(B,)` float64 in [0, 255].

    Example:
        >>> legacy_uint8_mse(torch.full((1, 3, 2, 2), 20.0), torch.zeros(1, 3, 2, 2))  # 400 - 256
        tensor([144.], dtype=torch.float64)
    """
    difference = harmonized.round().to(torch.int64) - real.round().to(torch.int64)
    return (difference.square() % 256).double().mean((1, 2, 3))
