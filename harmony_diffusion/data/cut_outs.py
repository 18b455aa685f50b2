"""Foregrounds cut out of their photographs, as pictures for image encoders and captioners."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from harmony_diffusion.boxes import bounding_box


def cut_out(picture: np.ndarray, mask: np.ndarray, fill: Sequence[float]) -> Image.Image:
    """Cut out the foreground, centred in the smallest square that holds it.

    Args:
        picture: `(H, W, 3)` uint8.
        mask: 255 on the foreground, `(H, W)` uint8; soft values are kept.
        fill: Colour around it, in [0, 1]; its mean colour is neutral to an image encoder.

    Returns:
        An RGB square; a pixel of that colour if there is no foreground.
    """
    window = bounding_box(mask > 127)
    color = 255 * np.asarray(fill, np.float32)
    if window is None:
        return Image.fromarray(color.round().astype(np.uint8)[None, None])
    alpha = mask[window][..., None].astype(np.float32) / 255
    foreground = alpha * picture[window] + (1 - alpha) * color
    height, width = foreground.shape[:2]
    side = max(height, width)
    square = np.broadcast_to(color, (side, side, 3)).copy()
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = foreground
    return Image.fromarray(square.round().astype(np.uint8))
