"""Room for the foreground's shadow, and results taken apart into foreground and shadow."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from harmony_diffusion.boxes import Box, bounding_box
from harmony_diffusion.errors import InputError, SizeMismatchError
from harmony_diffusion.highres.thumbnail import fill_smoothly

# Objects are shrunk to at most this many pixels to decide where their shadow may fall.
_SHADOW_SIDE = 128


def shadow_mask(mask: Tensor, *, below: float = 0.15, beside: float = 0.5) -> Tensor:
    """Widen the mask where the foreground's shadow may fall: below it, and beside its lower part.

    Each connected object has a shadow of its own; specks have none.

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
            # The frame cuts off the rest.
            above, before = max(-start, 0), max(-left, 0)
            window = one[0, start + above : start + len(shadow), left + before : left + shadow.shape[1]]
            shadow = shadow[above:, before:][: window.shape[0], : window.shape[1]]
            torch.maximum(window, torch.from_numpy(shadow).to(window), out=window)
    return widened


def _shadows(solid: np.ndarray, below: float, beside: float) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Yield rows, columns and mask of each object's shadow, counted from the corner of `solid`."""
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
        # The lower third of the object is near the ground that the shadow falls on.
        third = max(1, round(height / 3))
        foot = inside[top + height - third : top + height, left : left + width].astype(np.float32)
        foot = np.pad(foot, ((down, down), (aside, aside)))
        start = top + height - third - down
        rows, columns = slice(start, start + len(foot)), slice(left - aside, left + width + aside)
        yield rows, columns, _dilate(foot, down, aside)


def _dilate(plane: np.ndarray, down: int, aside: int) -> np.ndarray:
    """Dilate by an ellipse, on a small copy."""
    scale = min(1.0, _SHADOW_SIDE / max(plane.shape))
    size = [max(1, round(side * scale)) for side in plane.shape[::-1]]
    small = cv2.resize(plane, size, interpolation=cv2.INTER_AREA)
    kernel_size = (2 * round(aside * scale) + 1, 2 * round(down * scale) + 1)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, kernel_size)
    wide = cv2.dilate((small > 0).astype(np.float32), kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return cv2.resize(wide, plane.shape[::-1], interpolation=cv2.INTER_LINEAR)


def _bounds(inside: Tensor) -> Box | None:
    return bounding_box(inside.flatten(0, -3).any(0).cpu().numpy())


@dataclass
class Layers:
    """A result as layers for an image editor.

    `alpha * colour + (1 - alpha) * shadow * background` gives `composite`, over the old composite as
    background.

    Attributes:
        foreground: Colour, not multiplied by alpha, and alpha, in [0, 1], `(1, 4, H, W)`.
        shadow: Multiplier of the background, in [0, 1], `(1, 1, H, W)`.
        composite: The result itself, `(1, 3, H, W)`.
    """

    foreground: Tensor
    shadow: Tensor
    composite: Tensor


def split_layers(result: Tensor, composite: Tensor, mask: Tensor, generation_mask: Tensor) -> Layers:
    """Split a result into a foreground layer and a shadow layer.

    Args:
        result: The harmonized picture, in [0, 1], `(1, 3, H, W)`.
        composite: The picture before, in [0, 1], `(1, 3, H, W)`.
        mask: 1 on the foreground, soft values allowed, `(1, 1, H, W)`.
        generation_mask: Where a shadow may be, `(1, 1, H, W)`; elsewhere the multiplier is 1.

    Returns:
        The layers. Over the composite they give the result. Exception: a grey multiplier cannot express a
        background outside the mask that changed its hue or became lighter.

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
    # Alpha is the mask, and more only where no colour could give the result otherwise.
    change = result - below
    room = torch.where(change > 0, 1 - below, below).clamp_min(1e-6)
    needed = (change.abs() / room).amax(1, keepdim=True).clamp(0, 1)
    alpha = torch.where(mask > 0, torch.maximum(mask, needed), mask)
    color = torch.where(alpha > 0, below + change / alpha.clamp_min(1e-6), 0).clamp(0, 1)
    return torch.cat((color, alpha), 1), shadow


def _shadow_of(result: Tensor, composite: Tensor, mask: Tensor, generation_mask: Tensor) -> Tensor:
    """Fit the multiplier of each background pixel (least squares), and continue it below the foreground."""
    eps = 1e-4  # About (2.5 / 255)^2: darker pixels have no reliable ratio.
    product = (result * composite).sum(1, keepdim=True) + eps
    multiplier = (product / (composite.square().sum(1, keepdim=True) + eps)).clamp(0, 1)
    multiplier = torch.where(generation_mask > 0, multiplier, torch.ones_like(multiplier))
    bare = (mask <= 0).to(multiplier)
    if not bare.any():
        return torch.ones_like(multiplier)
    return torch.where(mask > 0, fill_smoothly(multiplier, bare).clamp(0, 1), multiplier)
