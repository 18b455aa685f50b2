"""Dilation and erosion of masks by a square; beyond the frame nothing counts, so its border is spared."""

import torch.nn.functional as F
from torch import Tensor


def dilate(mask: Tensor, pixels: int) -> Tensor:
    """Replace each value by the largest within a square of `2 * pixels + 1` pixels a side.

    Args:
        mask: `(B, C, H, W)`, soft values allowed.
        pixels: Reach of the square, at least 0.

    Returns:
        `(B, C, H, W)`.

    Example:
        >>> import torch
        >>> mask = torch.zeros(1, 1, 1, 5)
        >>> mask[..., 2] = 1
        >>> dilate(mask, 1).flatten().tolist(), erode(dilate(mask, 1), 1).flatten().tolist()
        ([0.0, 1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 1.0, 0.0, 0.0])
    """
    side = 2 * pixels + 1
    # Rows and columns apart: 2 * side comparisons a pixel instead of side * side.
    return F.max_pool2d(F.max_pool2d(mask, (side, 1), 1, (pixels, 0)), (1, side), 1, (0, pixels))


def erode(mask: Tensor, pixels: int) -> Tensor:
    """Replace each value by the smallest within a square; see `dilate`."""
    return -dilate(-mask, pixels)
