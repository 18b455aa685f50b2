"""Resize in bands of rows, in memory that does not grow with the picture."""

from collections.abc import Callable

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from harmony_diffusion.boxes import Box
from harmony_diffusion.highres.windows import BAND_PIXELS, row_bands
from harmony_diffusion.images.picture import Picture


def shrink_by_area(picture: Picture, size: tuple[int, int]) -> Tensor:
    """Shrink a picture by averaging the area under each new pixel.

    Args:
        picture: `(H, W)`, read as sRGB.
        size: Height and width of the result, neither larger than the picture's.

    Returns:
        `(1, 3, height, width)` float32.
    """
    bands = row_bands(picture.size)
    if len(bands) == 1:
        return torch.from_numpy(_by_area(picture.read_srgb(), size)).permute(2, 0, 1)[None].contiguous()
    # The average over an area is the average over its columns, and then over its rows.
    narrow = [_by_area(picture.read_srgb(rows), (rows.stop - rows.start, size[1])) for rows in bands]
    small = _by_area(np.concatenate(narrow), size)
    return torch.from_numpy(small).permute(2, 0, 1)[None].contiguous()


def _by_area(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    planes = [
        cv2.resize(np.ascontiguousarray(pixels[..., channel]), size[::-1], interpolation=cv2.INTER_AREA)
        for channel in range(pixels.shape[2])
    ]
    return np.stack(planes, 2)


def bicubic_windows(image: Tensor, size: tuple[int, int]) -> Callable[[Box], Tensor]:
    """Prepare an antialiased bicubic resize that is computed window by window.

    Args:
        image: `(1, C, h, w)`.
        size: Height and width of the whole result.

    Returns:
        A function from rows and columns to that window of
        `F.interpolate(image, size, mode="bicubic", antialias=True)`.
    """
    if image.shape[-2:] == size:
        return lambda window: image[..., window[0], window[1]]
    if size[0] * size[1] <= BAND_PIXELS:
        whole = _bicubic(image, size)
        return lambda window: whole[..., window[0], window[1]]
    height = image.shape[2]
    wide = _bicubic(image, (height, size[1]))
    weights = _bicubic(torch.eye(height)[None, None], (size[0], height))[0, 0].to(image)

    def resize(window: Box) -> Tensor:
        rows, columns = window
        used = (weights[rows] != 0).any(0).nonzero()
        span = slice(int(used.min()), int(used.max()) + 1)
        return weights[rows, span] @ wide[:, :, span, columns]

    return resize


def _bicubic(image: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(image, size, mode="bicubic", align_corners=False, antialias=True)
