"""The part of a picture that a network of fixed resolution works on, and the way back into the picture.

`choose_region` finds the part. `WorkingRegion.cut` and `cut_picture` scale it for the network, `paste` and
`paste_picture` put the network's output back, in bands: their memory does not grow with the picture.
"""

import math
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from harmony_diffusion.boxes import Box, bounding_box, box_around
from harmony_diffusion.errors import InputError, MaskError, SizeMismatchError
from harmony_diffusion.highres.color_map import apply_color_map, fit_color_map
from harmony_diffusion.highres.harmonize import render_maps, render_windows
from harmony_diffusion.highres.resize_bands import bicubic_windows, shrink_by_area
from harmony_diffusion.highres.thumbnail import fill_smoothly
from harmony_diffusion.highres.windows import BAND_PIXELS
from harmony_diffusion.images.picture import Picture
from harmony_diffusion.models.layers import blend
from harmony_diffusion.morphology import erode

# A part of a picture is enlarged at most this often, unless the picture itself is smaller.
_MOST_ENLARGED = 4
# Background that is left on every side where the picture has it, as a share of the region.
_LEAST_MARGIN = 1 / 16
# Half the side of the neighbourhoods whose colour and light are carried over, in working pixels, and the
# variance of colour from which on more than their mean is fitted.
_LIGHT_RADIUS, _LIGHT_EPS = 16, 1e-2
# A generated outline never matches the old one: pixels this close to it count little in the fit.
_RIM, _RIM_WEIGHT = 3, 0.05


@dataclass(frozen=True)
class WorkingRegion:
    """A box of a picture, and the size at which a network works on it.

    Attributes:
        top: First row of the box in the picture.
        left: First column.
        height: Rows of the box.
        width: Columns.
        working_height: Rows of the network's input.
        working_width: Columns of it.
    """

    top: int
    left: int
    height: int
    width: int
    working_height: int
    working_width: int

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns of the box."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)

    @property
    def working_size(self) -> tuple[int, int]:
        """Height and width of the network's input."""
        return self.working_height, self.working_width

    def cut(self, image: Tensor, *, mode: Literal["area", "bilinear", "nearest"] = "area") -> Tensor:
        """Cut the box out of a tensor and scale it to the working size.

        Args:
            image: Picture, mask or any other map, `(1, C, H, W)`.
            mode: "area" averages all pixels under each new one, "bilinear" interpolates with antialiasing (as
                "area" does where it must enlarge), "nearest" takes values as they are.

        Returns:
            `(1, C, working_height, working_width)`, with its own memory.

        Raises:
            SizeMismatchError: The box does not lie inside the picture.
        """
        self._check_inside(image)
        part = image[..., *self.window]
        if part.shape[-2:] == self.working_size:
            return part.clone()
        if mode == "nearest":
            return F.interpolate(part, self.working_size, mode="nearest-exact")
        if mode == "area" and self._shrinks:
            return _area(part, self.working_size)
        # Half precision has no antialiasing on CPUs.
        scaled = F.interpolate(
            part.float(), self.working_size, mode="bilinear", align_corners=False, antialias=True
        )
        return scaled.to(image.dtype)

    def cut_picture(self, picture: Picture) -> Tensor:
        """Cut the box out of a picture and scale it to the working size, as `cut` does with mode "area".

        Returns:
            sRGB values in [0, 1], `(1, 3, working_height, working_width)`.
        """
        part = picture.cut(self.window)
        if self._shrinks and part.size != self.working_size:
            return shrink_by_area(part, self.working_size)
        whole = WorkingRegion(0, 0, *part.size, *self.working_size)
        return whole.cut(part.to_tensor()[None])

    def paste_picture(
        self,
        picture: Picture,
        mask: np.ndarray,
        generated: Tensor,
        *,
        detail: Literal["generated", "preserve"] = "generated",
        feather: float = 8.0,
        match_surroundings: bool = False,
        reference: Tensor | None = None,
        opacity: float = 1.0,
    ) -> Picture:
        """Put the network's output back into a picture.

        Args:
            picture: The composite, `(H, W)`.
            mask: Where to replace, 1 = wholly, soft values allowed, `(H, W)` float32, 0 outside the box.
            generated: Output of the network in [0, 1], `(1, 3, working_height, working_width)`.
            detail: "generated" takes the generated pixels, and fades them out beyond the mask. "preserve"
                takes only their colour and light, and keeps texture and lettering of the composite; it uses
                the mask as it is.
            feather: Width of the fading in working pixels.
            match_surroundings: Subtract the change of colour around the mask from the output, continued
                smoothly into the mask. Networks drift in colour, and the drift shows as a seam.
            reference: The composite as the network reproduces it, like `generated`. With "preserve", the
                change of colour is measured from it, so that errors of the reproduction do not count as
                changes. Default: the composite itself.
            opacity: Share of the change that is kept, in [0, 1].

        Returns:
            The picture, equal to `picture` to the bit beyond the feathered mask and where alpha is 0.
        """
        part, share = picture.cut(self.window), mask[self.window]
        if match_surroundings or detail == "preserve":
            seen, small_mask = self.cut_picture(picture), self.cut(torch.from_numpy(mask)[None, None])
        if match_surroundings:
            generated = _without_drift(generated, seen, small_mask)
        if detail == "preserve":
            weight = _without_rim(small_mask)
            before = seen if reference is None else reference.to(seen)
            wanted = blend(generated.to(seen), before, weight)
            color_map = fit_color_map(before, wanted, weight, radius=_LIGHT_RADIUS, eps=_LIGHT_EPS)
            pasted = render_maps(
                part, _visible(part, opacity * share), color_map, "bilinear", apply_color_map
            )
        else:
            scale = math.sqrt(self.height * self.width / (self.working_height * self.working_width))
            weights = _visible(part, opacity * _feathered(share, feather * scale))
            pasted = render_windows(part, weights, bicubic_windows(generated.float(), part.size), _replace)
        pixels = picture.pixels.copy()
        pixels[self.window] = pasted.pixels
        return picture.with_pixels(pixels)

    def paste(
        self,
        generated: Tensor,
        composite: Tensor,
        mask: Tensor,
        *,
        detail: Literal["generated", "preserve"] = "generated",
        feather: float = 8.0,
        match_surroundings: bool = False,
    ) -> Tensor:
        """Put the network's output back into a tensor; see `paste_picture`.

        Args:
            generated: Output of the network in [0, 1], `(1, 3, working_height, working_width)`.
            composite: The picture in [0, 1], `(1, 3, H, W)`.
            mask: Where to replace, 1 = wholly, soft values allowed, `(1, 1, H, W)`.
            detail: See `paste_picture`.
            feather: See `paste_picture`.
            match_surroundings: See `paste_picture`.

        Returns:
            `(1, 3, H, W)` in [0, 1], equal to `composite` to the bit beyond the feathered mask.

        Raises:
            SizeMismatchError: Shapes that do not fit together.
            InputError: The mask reaches beyond the box, or `feather` is negative.
        """
        self._check_paste(generated, composite, mask, feather)
        pixels = composite[0].permute(1, 2, 0).float().cpu().numpy()
        pasted = self.paste_picture(
            Picture(pixels),
            mask[0, 0].float().cpu().numpy(),
            generated.cpu(),
            detail=detail,
            feather=feather,
            match_surroundings=match_surroundings,
        )
        return torch.from_numpy(pasted.pixels.copy()).permute(2, 0, 1)[None].contiguous().to(composite)

    @property
    def _shrinks(self) -> bool:
        return self.height >= self.working_height and self.width >= self.working_width

    def _check_inside(self, image: Tensor) -> None:
        height, width = image.shape[-2:]
        if image.ndim != 4 or self.top + self.height > height or self.left + self.width > width:
            raise SizeMismatchError(
                "image",
                f"has shape {tuple(image.shape)} and does not hold the region {self}",
                "Choose the region of this image.",
            )

    def _check_paste(self, generated: Tensor, composite: Tensor, mask: Tensor, feather: float) -> None:
        self._check_inside(composite)
        height, width = composite.shape[-2:]
        for name, tensor, expected in (
            ("generated", generated, (1, 3, *self.working_size)),
            ("composite", composite, (1, 3, height, width)),
            ("mask", mask, (1, 1, height, width)),
        ):
            if tensor.shape != expected:
                raise SizeMismatchError(name, f"has shape {tuple(tensor.shape)}, expected {expected}")
        if not (math.isfinite(feather) and feather >= 0):
            raise InputError("feather", f"is {feather}, expected a number of pixels, 0 or more")
        if torch.count_nonzero(mask) != torch.count_nonzero(mask[..., *self.window]):
            raise InputError("mask", f"reaches beyond {self}", "Choose the region of this mask.")


def choose_region(
    mask: Tensor, *, working_size: int = 512, context: float = 0.5, multiple: int = 64
) -> WorkingRegion:
    """Choose the box around the foreground that a network works on.

    The box is square where the picture has room for it; otherwise the working size takes its shape, with
    about the same number of pixels.

    Args:
        mask: 1 where the network may change the picture, `(1, 1, H, W)`.
        working_size: Side of the square that the network was trained on.
        context: Background on each side of the foreground, as a share of its longer side.
        multiple: Both working sides are multiples of this.

    Returns:
        The region; it holds the whole foreground.

    Raises:
        MaskError: The mask is empty.
        InputError: `context` is negative, or `working_size` no multiple of `multiple`.

    Example:
        >>> mask = torch.zeros(1, 1, 1000, 1500)
        >>> mask[..., 200:600, 700:800] = 1
        >>> choose_region(mask)
        WorkingRegion(top=0, left=350, height=800, width=800, working_height=512, working_width=512)
    """
    if not (math.isfinite(context) and context >= 0):
        raise InputError("context", f"is {context}, expected 0 or more")
    if multiple < 1 or working_size < 1 or working_size % multiple:
        raise InputError("working_size", f"is {working_size}, expected a multiple of {multiple}")
    spans = _bounds(mask > 0)
    if spans is None:
        raise MaskError("mask", "is empty: there is nothing to work on", "Mark the foreground.")
    sides = [span.stop - span.start for span in spans]
    # Room for the fading, whatever the context, and a limit to the enlargement.
    wanted = max(max(sides) * (1 + 2 * max(context, _LEAST_MARGIN)), working_size / _MOST_ENLARGED)
    picture = (mask.shape[-2], mask.shape[-1])
    box = [min(math.ceil(wanted), length) for length in picture]
    working = _working_sides(box, working_size, multiple)
    box = _fit_shape(box, sides, picture, working)
    rows, columns = box_around(spans, box, picture)
    return WorkingRegion(rows.start, columns.start, box[0], box[1], *working)


def _bounds(inside: Tensor) -> Box | None:
    return bounding_box(inside.flatten(0, -3).any(0).cpu().numpy())


def _working_sides(box: list[int], working_size: int, multiple: int) -> tuple[int, int]:
    """Multiples of about the area of the square and the shape of the box."""
    shape = math.sqrt(box[0] / box[1])
    height, width = (
        max(round(side / multiple), 1) * multiple for side in (working_size * shape, working_size / shape)
    )
    return height, width


def _fit_shape(
    box: list[int], sides: list[int], picture: tuple[int, int], working: tuple[int, int]
) -> list[int]:
    """Give the box the working size's shape: extend it where the picture allows, else cut context off."""
    for long, short in ((0, 1), (1, 0)):
        right = box[long] * working[short] / working[long]
        if right > box[short]:
            box[short] = min(round(right), picture[short])
            fitting = round(box[short] * working[long] / working[short])
            box[long] = min(box[long], max(fitting, sides[long]))
            break
    return box


def _area(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Shrink by averaging the area under each new pixel."""
    planes = image[0].detach().float().cpu().numpy()
    small = [cv2.resize(plane, size[::-1], interpolation=cv2.INTER_AREA) for plane in planes]
    return torch.from_numpy(np.stack(small))[None].to(image)


def _without_drift(generated: Tensor, seen: Tensor, mask: Tensor) -> Tensor:
    """Subtract the change of colour around the mask, continued smoothly into it."""
    confidence = (mask <= 0).float()
    drift = torch.cat(((generated.to(seen) - seen).float() * confidence, confidence), 1)
    # Averaged over the pixels of one latent: detail that the decoder lost is no change of colour.
    drift, confidence = F.avg_pool2d(drift, 8, ceil_mode=True).split((3, 1), 1)
    drift = fill_smoothly(drift / confidence.clamp_min(1e-6), confidence)
    drift = F.interpolate(drift, seen.shape[-2:], mode="bilinear", align_corners=False)
    return (generated.to(seen) - drift.to(seen)).clamp(0, 1)


def _replace(image: Tensor, generated: Tensor, weight: Tensor) -> Tensor:
    """Blend generated pixels into an image; bicubic weights overshoot, hence the clamp."""
    return blend(generated.clamp(0, 1), image, weight)


def _visible(part: Picture, weights: np.ndarray) -> np.ndarray:
    """Set weights to 0 where the picture is hidden."""
    visible = part.visible
    return weights if visible is None else np.where(visible > 0, weights, np.float32(0))


def _without_rim(mask: Tensor) -> Tensor:
    """Lower the mask near its outline, but not so far that thin parts vanish."""
    return mask * (_RIM_WEIGHT + (1 - _RIM_WEIGHT) * erode(mask, _RIM))


def _feathered(mask: np.ndarray, width: float) -> np.ndarray:
    """Widen a mask by half of `width` and fade it out over as much: not less than it, 0 beyond `width`."""
    reach = round(width / 2)
    if reach == 0:
        return mask
    side = (2 * reach + 1, 2 * reach + 1)
    # Dilation and blur look `reach` rows far each; higher bands compute fewer rows twice.
    height, step, result = len(mask), max(BAND_PIXELS // mask.shape[1], 8 * reach), np.zeros_like(mask)
    for top in range(0, height, step):
        start, bottom = max(top - 2 * reach, 0), min(top + step, height)
        plane = np.ascontiguousarray(mask[start : bottom + 2 * reach])
        if not plane.any():
            continue
        wide = cv2.dilate(plane, np.ones(side, np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0)
        faded = cv2.GaussianBlur(wide, side, reach / 2, borderType=cv2.BORDER_REPLICATE)
        inside = slice(top - start, bottom - start)
        # A Gaussian sum rounds: values of 1 stay 1.
        result[top:bottom] = np.maximum(plane[inside], faded[inside]).clip(max=1)
    return result
