"""Make the input of a model: the whole picture at a small size, without the parts that are hidden from it."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from harmony_diffusion.errors import MaskError
from harmony_diffusion.highres.offload import device_and_dtype
from harmony_diffusion.highres.windows import row_bands
from harmony_diffusion.images.picture import Picture
from harmony_diffusion.models.contract import HarmonyModel

# Statistics of a classical method are no better on more pixels than this.
_CLASSICAL_SIDE = 1024
_SMALLEST_SIDE = 32


@dataclass(frozen=True)
class Thumbnail:
    """Input of a model, on its device and in its dtype.

    Attributes:
        composite: `(1, 3, h, w)` in [0, 1].
        mask: `(1, 1, h, w)` in [0, 1].
        reference: Weight of the background pixels, `(1, 1, h, w)` in [0, 1]; None = equal weights.
    """

    composite: Tensor
    mask: Tensor
    reference: Tensor | None

    def arguments(self, model: HarmonyModel) -> tuple[Tensor, ...]:
        """Return the arguments of `forward` and `predict_filters` of `model`."""
        if model.takes_reference and self.reference is not None:
            return self.composite, self.mask, self.reference
        return self.composite, self.mask


def make_thumbnail(
    model: HarmonyModel, picture: Picture, mask: np.ndarray, allowed: np.ndarray | None = None
) -> Thumbnail:
    """Make the input of a model from a picture of any size, in memory that does not grow with it.

    Args:
        model: Any registry model. Networks that predict filters get the frame squashed to the square of their
            `working_size` (with antialiasing if they say `antialias`), other networks, and those that say
            `keeps_shape`, a frame of that area in its own shape, classical methods that predict filters
            (`takes_reference`) one of at most 1024 px on the long side.
        picture: Composite, `(H, W)`.
        mask: 1 on the foreground, `(H, W)` float32; 0 where the picture is hidden.
        allowed: Weight with which a background pixel may be seen, `(H, W)` float32 in [0, 1]; None = all may.
            The rest is filled smoothly from the allowed pixels.

    Raises:
        MaskError: There is a foreground, and no background is allowed.
    """
    height, width = thumbnail_size(model, picture.size)
    reference: Tensor | None = None
    if allowed is not None:
        composite, small_mask, reference = _restricted(picture, mask, allowed, height, width)
    else:
        # Published networks that predict filters were trained on frames sampled without antialiasing.
        antialias = model.antialias or model.keeps_shape or model.takes_reference
        small_mask = _resize(torch.from_numpy(mask)[None, None], (height, width), antialias)
        if antialias:
            (composite,) = _shrink(picture, (height, width), lambda rgb, rows: (rgb,))
        else:
            composite = torch.from_numpy(picture.thumbnail_srgb(height, width)).permute(2, 0, 1)[None]

    device, dtype = device_and_dtype(model)

    def ready(image: Tensor) -> Tensor:
        return image.clamp(0, 1).contiguous().to(device, dtype)

    return Thumbnail(ready(composite), ready(small_mask), None if reference is None else ready(reference))


def thumbnail_size(model: HarmonyModel, size: tuple[int, int]) -> tuple[int, int]:
    """Return height and width at which `model` sees a picture of `size`, each at least 32."""
    height, width = size
    if model.keeps_shape:
        scale = min(1.0, model.working_size / math.sqrt(height * width))
    elif model.takes_reference:
        scale = min(1.0, _CLASSICAL_SIDE / max(height, width))
    else:
        return model.working_size, model.working_size
    return max(round(height * scale), _SMALLEST_SIDE), max(round(width * scale), _SMALLEST_SIDE)


def fill_smoothly(image: Tensor, confidence: Tensor) -> Tensor:
    """Replace pixels without confidence by a smooth continuation of those with it (push-pull pyramid).

    Gortler et al., "The Lumigraph", SIGGRAPH 1996, section 3.4.

    Args:
        image: `(B, C, h, w)`.
        confidence: `(B, 1, h, w)` in [0, 1]; 1 keeps the pixel, 0 replaces it.

    Returns:
        `(B, C, h, w)`; zeros where an image has no confidence anywhere.
    """
    size = (image.shape[2], image.shape[3])
    if max(size) == 1:
        return image * (confidence > 0)
    total = F.avg_pool2d(confidence, 2, ceil_mode=True)
    coarse = F.avg_pool2d(image * confidence, 2, ceil_mode=True) / total.clamp_min(1e-12)
    # One sure pixel in four makes the pixel above them sure.
    coarse = fill_smoothly(coarse, (4 * total).clamp_max(1))
    return torch.lerp(_resize(coarse, size, antialias=False), image, confidence)


def _restricted(
    picture: Picture, mask: np.ndarray, allowed: np.ndarray, height: int, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Shrink foreground and allowed background separately, fill the background, and join them."""

    def layers(rgb: Tensor, rows: slice) -> tuple[Tensor, ...]:
        front = torch.from_numpy(mask[rows])[None, None]
        weight = torch.from_numpy(allowed[rows])[None, None]
        back = (1 - front) * weight
        return rgb * front, front, rgb * back, back, weight

    size = (height, width)
    front, front_share, back, back_share, reference = _shrink(picture, size, layers)
    if mask.any() and not (back_share > 0).any():
        raise MaskError(picture.name, "no background is left to harmonize to", "Allow some in `reference`.")
    confidence = (back_share / (1 - front_share).clamp_min(1e-6)).clamp(0, 1)
    back = fill_smoothly(back / back_share.clamp_min(1e-6), confidence)
    return front + (1 - front_share) * back, front_share, reference


def _shrink(
    picture: Picture, size: tuple[int, int], layers: Callable[[Tensor, slice], tuple[Tensor, ...]]
) -> tuple[Tensor, ...]:
    """Resize the layers made from the sRGB values, antialiased, reading the picture in bands of rows."""
    narrow: list[Tensor] = []
    for rows in row_bands(picture.size):
        rgb = torch.from_numpy(picture.read_srgb(rows)).permute(2, 0, 1)[None].contiguous()
        parts = [_resize(t, (t.shape[2], size[1]), True) for t in layers(rgb, rows)]
        # Collected in place: small results between the large blocks of each band would leave holes.
        narrow = narrow or [t.new_empty(1, t.shape[1], picture.size[0], size[1]) for t in parts]
        for whole, part in zip(narrow, parts, strict=True):
            whole[:, :, rows] = part
    return tuple(_resize(whole, size, True) for whole in narrow)


def _resize(image: Tensor, size: tuple[int, int], antialias: bool) -> Tensor:
    if image.shape[2:] == size:
        return image
    return F.interpolate(image, size, mode="bilinear", align_corners=False, antialias=antialias)
