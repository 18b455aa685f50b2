"""The part of a picture that a network of fixed resolution works on, the way back, and what to make of it.

`choose_region` finds the part, `WorkingRegion.cut` scales it for the network, `WorkingRegion.paste` carries
the result back to the picture; `shadow_mask` leaves room for a shadow, `split_layers` takes the result apart.
"""

import math
from collections.abc import Iterator
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
from harmony_diffusion.highres.harmonize import upsample_window
from harmony_diffusion.highres.thumbnail import fill_smoothly, row_bands
from harmony_diffusion.models.layers import blend
from harmony_diffusion.morphology import erode

# A part of a picture is enlarged at most this often, unless the picture itself is smaller.
_MOST_ENLARGED = 4
# Background that is left on every side where the picture has it, as a share of the region.
_LEAST_MARGIN = 1 / 16
# Half the side of the neighbourhoods of which colour and light are carried over, in working pixels, and the
# variance of colour from which on more than their mean is.
_LIGHT_RADIUS, _LIGHT_EPS = 16, 1e-2
# A generated outline is never quite the old one: what lies this close to it says little about colour.
_RIM, _RIM_WEIGHT = 3, 0.05
# Objects are looked at in at most this many pixels to decide where their shadow may fall.
_SHADOW_SIDE = 128


@dataclass(frozen=True)
class WorkingRegion:
    """A box of a picture, and the size at which a network works on it.

    Attributes:
        top: First row of the box in the picture.
        left: First column.
        height: Rows of the box.
        width: Columns.
        working_height: Rows of what the network sees of it.
        working_width: Columns.
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

    def cut(self, image: Tensor, *, mode: Literal["area", "bilinear", "nearest"] = "area") -> Tensor:
        """Cut the box out and scale it to the working size.

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
        size = (self.working_height, self.working_width)
        if part.shape[-2:] == size:
            return part.clone()
        if mode == "nearest":
            return F.interpolate(part, size, mode="nearest-exact")
        if mode == "area" and self.height >= size[0] and self.width >= size[1]:
            return _area(part, size)
        # Half precision has no antialiasing on CPUs.
        scaled = F.interpolate(part.float(), size, mode="bilinear", align_corners=False, antialias=True)
        return scaled.to(image.dtype)

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
        """Put what the network made back into the picture.

        Args:
            generated: Output of the network in [0, 1], `(1, 3, working_height, working_width)`.
            composite: The picture in [0, 1], `(1, 3, H, W)`.
            mask: What to replace, 1 = wholly, soft values allowed, `(1, 1, H, W)`.
            detail: "generated" takes the generated pixels, faded out beyond the mask. "preserve" takes only
                their colour and light, and keeps texture and lettering of the composite; the mask is then
                used as it is.
            feather: Width of the fading in working pixels.
            match_surroundings: Where the network changed the colour of what surrounds the mask, take that
                change back, and continue it smoothly into the mask: networks drift in colour, and the drift
                shows as a seam.

        Returns:
            `(1, 3, H, W)` in [0, 1], equal to `composite` to the bit beyond the feathered mask.

        Raises:
            SizeMismatchError: Shapes that do not fit together.
            InputError: The mask reaches beyond the box, or `feather` is negative.
        """
        self._check_paste(generated, composite, mask, feather)
        window = (..., *self.window)
        part, share = composite[window], mask[window]
        if match_surroundings:
            generated = _without_drift(generated, self.cut(composite), self.cut(mask))
        if detail == "preserve":
            seen, weight = self.cut(composite), _without_rim(self.cut(mask))
            wanted = blend(generated.to(seen), seen, weight)
            color_map = fit_color_map(seen, wanted, weight, radius=_LIGHT_RADIUS, eps=_LIGHT_EPS)
            changed = _recolor(part, color_map.to(part.dtype), share)
        else:
            scale = math.sqrt(self.height * self.width / (self.working_height * self.working_width))
            changed = blend(_enlarge(generated, part), part, _feathered(share, feather * scale))
        result = composite.clone()
        result[window] = changed
        return result

    def _check_inside(self, image: Tensor) -> None:
        height, width = image.shape[-2:]
        if image.ndim != 4 or self.top + self.height > height or self.left + self.width > width:
            raise SizeMismatchError(
                "image", f"of shape {tuple(image.shape)} does not hold the region {self}", "Choose it anew."
            )

    def _check_paste(self, generated: Tensor, composite: Tensor, mask: Tensor, feather: float) -> None:
        self._check_inside(composite)
        size = (self.working_height, self.working_width)
        height, width = composite.shape[-2:]
        for name, tensor, expected in (
            ("generated", generated, (1, 3, *size)),
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
        mask: What will change, `(1, 1, H, W)`.
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
    # Room for the fading, whatever the context, and never so small a part that it is all enlargement.
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


def shadow_mask(mask: Tensor, *, below: float = 0.15, beside: float = 0.5) -> Tensor:
    """Widen the mask where the foreground's shadow may fall: below it, and beside its lower part.

    Each connected object casts its own; specks are left out.

    Args:
        mask: 1 on the foreground, soft values allowed, `(B, 1, H, W)`.
        below: How far below an object's foot, as a share of its height.
        beside: How far to each side of its lower part, as a share of its width.

    Returns:
        `(B, 1, H, W)` in [0, 1], nowhere less than `mask`, with a soft edge.

    Raises:
        InputError: `below` or `beside` is negative.
    """
    for name, share in (("below", below), ("beside", beside)):
        if not (math.isfinite(share) and share >= 0):
            raise InputError(name, f"is {share}, expected 0 or more")
    widened = mask.clone()
    for one in widened:
        bounds = _bounds(one >= 0.5)
        if bounds is None:
            continue
        solid = np.ascontiguousarray((one[0][bounds] >= 0.5).cpu().numpy(), np.uint8)
        for rows, columns, shadow in _shadows(solid, below, beside):
            start, left = rows.start + bounds[0].start, columns.start + bounds[1].start
            # What lies beyond the frame is cut off.
            above, before = max(-start, 0), max(-left, 0)
            window = one[0, start + above : start + len(shadow), left + before : left + shadow.shape[1]]
            shadow = shadow[above:, before:][: window.shape[0], : window.shape[1]]
            torch.maximum(window, torch.from_numpy(shadow).to(window), out=window)
    return widened


def _shadows(solid: np.ndarray, below: float, beside: float) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Yield where the shadow of each object of a mask may fall, rows and columns counted from its corner."""
    # Parts of an object that a strap or a thin mask edge separates belong together.
    joint = 2 * (max(solid.shape) // 50) + 1
    _, labels, boxes, _ = cv2.connectedComponentsWithStats(
        cv2.dilate(solid, np.ones((joint, joint), np.uint8))
    )
    largest = max(int(box[cv2.CC_STAT_AREA]) for box in boxes[1:])
    for index in (i for i, box in enumerate(boxes) if i and box[cv2.CC_STAT_AREA] >= 0.05 * largest):
        inside = ((labels == index) & (solid > 0)).astype(np.uint8)
        left, top, width, height = cv2.boundingRect(inside)
        down, aside = math.ceil(below * height), math.ceil(beside * width)
        # The lower third of the object stands on, or near, what the shadow falls on.
        third = max(1, round(height / 3))
        foot = inside[top + height - third : top + height, left : left + width].astype(np.float32)
        foot = np.pad(foot, ((down, down), (aside, aside)))
        start = top + height - third - down
        rows, columns = slice(start, start + len(foot)), slice(left - aside, left + width + aside)
        yield rows, columns, _dilate(foot, down, aside)


def _dilate(plane: np.ndarray, down: int, aside: int) -> np.ndarray:
    """Dilate by an ellipse, computed at a size at which that is cheap."""
    scale = min(1.0, _SHADOW_SIDE / max(plane.shape))
    size = [max(1, round(side * scale)) for side in plane.shape[::-1]]
    small = cv2.resize(plane, size, interpolation=cv2.INTER_AREA)
    kernel_size = (2 * round(aside * scale) + 1, 2 * round(down * scale) + 1)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, kernel_size)
    wide = cv2.dilate((small > 0).astype(np.float32), kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return cv2.resize(wide, plane.shape[::-1], interpolation=cv2.INTER_LINEAR)


@dataclass
class Layers:
    """A result taken apart for an image editor.

    `alpha * colour + (1 - alpha) * shadow * background` is the composite, where the background is what was
    there before.

    Attributes:
        foreground: Colour, not multiplied by alpha, and alpha, in [0, 1], `(1, 4, H, W)`.
        shadow: What the background is multiplied by, in [0, 1], `(1, 1, H, W)`.
        composite: The result itself, `(1, 3, H, W)`.
    """

    foreground: Tensor
    shadow: Tensor
    composite: Tensor


def split_layers(result: Tensor, composite: Tensor, mask: Tensor, generation_mask: Tensor) -> Layers:
    """Take a result apart into foreground and shadow.

    Args:
        result: What was made of the composite, in [0, 1], `(1, 3, H, W)`.
        composite: What was there before, in [0, 1], `(1, 3, H, W)`.
        mask: 1 on the foreground, soft values allowed, `(1, 1, H, W)`.
        generation_mask: Where a shadow may be, `(1, 1, H, W)`; elsewhere the multiplier is 1.

    Returns:
        The layers. Laid over the composite they give the result, but where the background outside the mask
        changed its hue or became lighter, which a grey multiplier cannot.

    Raises:
        SizeMismatchError: Shapes that do not fit together.
    """
    size = result.shape[-2:]
    for name, tensor, channels in (
        ("result", result, 3),
        ("composite", composite, 3),
        ("mask", mask, 1),
        ("generation_mask", generation_mask, 1),
    ):
        if tensor.shape != (1, channels, *size):
            expected = (1, channels, *size)
            raise SizeMismatchError(name, f"has shape {tuple(tensor.shape)}, expected {expected}")
    foreground = result.new_zeros(1, 4, *size)
    shadow = torch.ones_like(mask)
    bounds = _bounds((mask > 0) | (generation_mask > 0))
    if bounds is not None:
        window = (..., *bounds)
        parts = (tensor[window] for tensor in (result, composite, mask, generation_mask))
        foreground[window], shadow[window] = _split(*parts)
    return Layers(foreground, shadow, result)


def _split(result: Tensor, composite: Tensor, mask: Tensor, generation_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return foreground and shadow of `split_layers`."""
    shadow = _shadow_of(result, composite, mask, generation_mask)
    below = composite * shadow
    # As much alpha as the mask says, and more only where no colour could give the result otherwise.
    change = result - below
    room = torch.where(change > 0, 1 - below, below).clamp_min(1e-6)
    needed = (change.abs() / room).amax(1, keepdim=True).clamp(0, 1)
    alpha = torch.where(mask > 0, torch.maximum(mask, needed), mask)
    color = torch.where(alpha > 0, below + change / alpha.clamp_min(1e-6), 0).clamp(0, 1)
    return torch.cat((color, alpha), 1), shadow


def _shadow_of(result: Tensor, composite: Tensor, mask: Tensor, generation_mask: Tensor) -> Tensor:
    """Least squares multiplier at each pixel of the background, continued smoothly below the foreground."""
    eps = 1e-4  # About (2.5 / 255)^2: what is darker has no ratio worth the name.
    product = (result * composite).sum(1, keepdim=True) + eps
    multiplier = (product / (composite.square().sum(1, keepdim=True) + eps)).clamp(0, 1)
    multiplier = torch.where(generation_mask > 0, multiplier, torch.ones_like(multiplier))
    bare = (mask <= 0).to(multiplier)
    if not bare.any():
        return torch.ones_like(multiplier)
    return torch.where(mask > 0, fill_smoothly(multiplier, bare).clamp(0, 1), multiplier)


def _area(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Shrink by averaging the area under each new pixel."""
    planes = image[0].detach().float().cpu().numpy()
    small = [cv2.resize(plane, size[::-1], interpolation=cv2.INTER_AREA) for plane in planes]
    return torch.from_numpy(np.stack(small))[None].to(image)


def _enlarge(generated: Tensor, part: Tensor) -> Tensor:
    """Scale what was generated to the part of the picture it belongs to."""
    if generated.shape[-2:] == part.shape[-2:]:
        return generated.to(part)
    scaled = F.interpolate(
        generated.to(part.device).float(),
        part.shape[-2:],
        mode="bicubic",
        align_corners=False,
        antialias=True,
    )
    return scaled.clamp(0, 1).to(part.dtype)


def _without_drift(generated: Tensor, seen: Tensor, mask: Tensor) -> Tensor:
    """Subtract the change of colour around the mask, continued smoothly into it."""
    confidence = (mask <= 0).float()
    drift = torch.cat(((generated.to(seen) - seen).float() * confidence, confidence), 1)
    # Averaged over what one latent decodes to, for detail that the decoder lost is no change of colour.
    drift, confidence = F.avg_pool2d(drift, 8, ceil_mode=True).split((3, 1), 1)
    drift = fill_smoothly(drift / confidence.clamp_min(1e-6), confidence)
    drift = F.interpolate(drift, seen.shape[-2:], mode="bilinear", align_corners=False)
    return (generated.to(seen) - drift.to(seen)).clamp(0, 1)


def _recolor(part: Tensor, color_map: Tensor, mask: Tensor) -> Tensor:
    """Apply a colour map of the working size, in bands, for it is four times as large as the picture."""
    result = part.clone()
    size = (part.shape[-2], part.shape[-1])
    for rows in row_bands(size):
        if mask[..., rows, :].any():
            band = upsample_window(color_map, size, (rows, slice(0, size[1])), "bilinear")
            result[..., rows, :] = apply_color_map(part[..., rows, :], band, mask[..., rows, :])
    return result


def _without_rim(mask: Tensor) -> Tensor:
    """Lower the mask near its outline, but not so far that thin parts vanish."""
    return mask * (_RIM_WEIGHT + (1 - _RIM_WEIGHT) * erode(mask, _RIM))


def _feathered(mask: Tensor, width: float) -> Tensor:
    """Widen a mask by half of `width` and fade it out over as much: not less than it, 0 beyond `width`."""
    reach = round(width / 2)
    if reach == 0:
        return mask
    plane = mask[0, 0].detach().float().cpu().numpy()
    side = (2 * reach + 1, 2 * reach + 1)
    wide = cv2.dilate(plane, np.ones(side, np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0)
    faded = cv2.GaussianBlur(wide, side, reach / 2, borderType=cv2.BORDER_REPLICATE)
    # A Gaussian sum rounds: what was covered wholly stays so.
    return torch.maximum(mask, torch.from_numpy(faded)[None, None].to(mask)).clamp_max(1)
