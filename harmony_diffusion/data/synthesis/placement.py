"""Placement of the object: in place, in front of its own mirrored or shifted background, or moved.

If an object is recoloured in place, the pixels at its border are related to its surroundings: mixed pixels, a
rim of the object outside a tight mask, ground that continues. A network learns to use these pixels, but a
real composite has none. If the object or its background is moved, mirrored or shifted within the same
photograph, the light still matches, so that the true colours are known, but pixels across the border are
unrelated.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from harmony_diffusion.data.keyed_random import KeyedDraws, weights_of
from harmony_diffusion.morphology import dilate

PLACEMENTS = ("in_place", "own_background", "moved")
DEFAULT_PLACEMENTS = {"in_place": 0.35, "own_background": 0.3, "moved": 0.35}
IN_PLACE = {"in_place": 1.0}
_FILL_MARGIN = (2, 6)  # margin around the object that is filled too, in pixels at `REFERENCE_SIZE`
_VERTICAL_REACH = 0.25  # largest vertical move, as a share of the height; light and scale vary beyond it
_LEAST_MOVE = 0.04  # smallest move, as a share of the width; otherwise the background is changed instead
REFERENCE_SIZE = 224  # image side, in pixels, at which distances are drawn; they scale with the image


class Layers(NamedTuple):
    """Foreground and background layers of a composite.

    Attributes:
        foreground: `(B, 3, H, W)`. Only pixels inside `mask` are meaningful.
        background: `(B, 3, H, W)`.
        mask: Mask of the object at its new position, `(B, 1, H, W)` in [0, 1].
        apart: True where foreground and background are different images, `(B,)` bool on the CPU.
    """

    foreground: Tensor
    background: Tensor
    mask: Tensor
    apart: Tensor


def placement_weights(shares: Mapping[str, float]) -> tuple[float, ...]:
    """Return the shares in the order of `PLACEMENTS`.

    Raises:
        InputError: A placement is unknown, a share is below 0, or no share is above 0.
    """
    return weights_of(shares, PLACEMENTS, "placements")


def place(image: Tensor, mask: Tensor, draws: KeyedDraws, weights: tuple[float, ...]) -> Layers:
    """Draw a placement for each sample and make its foreground and background layers.

    Args:
        image: Photographs, `(B, 3, H, W)` in [0, 1].
        mask: Masks of their objects, `(B, 1, H, W)` in [0, 1].
        draws: Random draws for B samples.
        weights: Shares from `placement_weights`.
    """
    kinds = draws.choice("placement/kind", weights)
    apart = kinds > 0
    rows = apart.nonzero()[:, 0]
    if not len(rows):
        return Layers(image, image, mask, apart)
    foreground, background, new_mask = image.clone(), image.clone(), mask.clone()
    where, drawn = rows.to(image.device), draws[rows]
    own, own_mask = image[where], mask[where]
    margins = drawn.uniform("placement/margin", low=_FILL_MARGIN[0], high=_FILL_MARGIN[1] + 1)
    filled = fill_background(own, _dilate_each(own_mask, scaled_pixels(margins, own)))
    moved, flips, shifts = _draw_moves(own_mask, drawn, kinds[rows] == 2)
    height, width = image.shape[-2:]
    columns, lines = torch.arange(width), torch.arange(height)
    back_columns = columns.expand(len(rows), -1)
    # "own_background": mirror (two thirds) or shift the background. "moved": keep or mirror the background.
    chance = drawn.uniform("placement/background")
    mirrored = torch.where(moved, chance < 0.5, chance < 2 / 3)
    reach = drawn.uniform("placement/shift", low=0.2, high=0.8) * width
    shifted = ~moved & ~mirrored
    back_columns = back_columns + (reach.long() * shifted)[:, None]
    back_columns = _reflect(back_columns, width)
    back_columns = torch.where(mirrored[:, None], width - 1 - back_columns, back_columns)
    background[where] = _take(filled, lines.expand(len(rows), -1), back_columns)
    object_columns = columns - shifts[:, 1:]
    object_columns = torch.where(flips[:, None], width - 1 - object_columns, object_columns) % width
    object_lines = (lines - shifts[:, :1]) % height
    foreground[where] = _take(own, object_lines, object_columns)
    new_mask[where] = _take(own_mask, object_lines, object_columns)
    return Layers(foreground, background, new_mask, apart)


def fill_background(image: Tensor, mask: Tensor) -> Tensor:
    """Fill the masked area with averages of the surrounding pixels, over wider areas farther from the border.

    Args:
        image: `(B, 3, H, W)`.
        mask: 1 on the pixels to fill, `(B, 1, H, W)`.

    Returns:
        `(B, 3, H, W)`, equal to `image` where the mask is 0.
    """
    known = 1 - mask
    sums = torch.cat((image * known, known), 1)
    levels = [sums]
    while min(levels[-1].shape[-2:]) > 1:
        levels.append(F.avg_pool2d(levels[-1], 2, ceil_mode=True, count_include_pad=False))
    result = levels[-1][:, :3] / levels[-1][:, 3:].clamp_min(1e-6)
    for level in levels[-2::-1]:
        coarse = F.interpolate(result, level.shape[-2:], mode="bilinear", align_corners=False)
        share = level[:, 3:]
        # The coarser level supplies the unknown share of a cell.
        result = level[:, :3] + (1 - share) * coarse
    return torch.where(mask > 0, result, image)


def scaled_pixels(pixels: Tensor, image: Tensor) -> list[int]:
    """Convert distances `(B,)` at `REFERENCE_SIZE` to pixels of an image, rounded to the nearest integer."""
    scale = min(image.shape[-2:]) / REFERENCE_SIZE
    return [int(value + 0.5) for value in (pixels.floor() * scale).tolist()]


def _draw_moves(mask: Tensor, draws: KeyedDraws, wanted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Draw moves: flags for moved `(B,)` and flipped `(B,)` samples, and shifts in pixels `(B, 2)`.

    An object that touches an edge of the image stays at that edge, because its cut would be visible
    elsewhere.
    """
    height, width = mask.shape[-2:]
    covered = (mask[:, 0] > 0.5).cpu()
    rows_any, columns_any = covered.any(2), covered.any(1)
    flips = (draws.chance("placement/flip", 0.5) > 0) & wanted
    columns_any = torch.where(flips[:, None], columns_any.flip(1), columns_any)
    top, bottom = _first_and_last(rows_any)
    left, right = _first_and_last(columns_any)
    limit = int(_VERTICAL_REACH * height)
    low_y, high_y = (-top).clamp_min(-limit), (height - 1 - bottom).clamp_max(limit)
    low_x, high_x = -left, width - 1 - right
    fixed_y, fixed_x = (top == 0) | (bottom == height - 1), (left == 0) | (right == width - 1)
    position = draws.uniform("placement/position", 2)
    shift_y = (low_y + position[:, 0] * (high_y - low_y + 1)).floor().long() * ~fixed_y
    shift_x = (low_x + position[:, 1] * (high_x - low_x + 1)).floor().long() * ~fixed_x
    far = shift_y.abs() + shift_x.abs() >= _LEAST_MOVE * width
    moved = wanted & covered.flatten(1).any(1) & (far | flips)
    shifts = torch.stack((shift_y, shift_x), 1).masked_fill(~moved[:, None], 0)
    return moved, flips & moved, shifts


def _first_and_last(flags: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first and last index of True in each row of `(B, N)`; 0 and N - 1 if there is none."""
    count = flags.shape[1]
    first = flags.long().argmax(1)
    return first, count - 1 - flags.flip(1).long().argmax(1)


def _reflect(index: Tensor, length: int) -> Tensor:
    """Reflect indices into `[0, length)`."""
    index = index % (2 * length)
    return torch.where(index < length, index, 2 * length - 1 - index)


def _take(image: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Gather pixels: `result[b, c, y, x] = image[b, c, rows[b, y], columns[b, x]]`."""
    rows, columns = rows.to(image.device), columns.to(image.device)
    parts = [
        one.index_select(1, row).index_select(2, column)
        for one, row, column in zip(image, rows, columns, strict=True)
    ]
    return torch.stack(parts)


def _dilate_each(mask: Tensor, pixels: list[int]) -> Tensor:
    """Dilate each mask of `(B, 1, H, W)` by its own number of pixels and round it up to 0 or 1."""
    return torch.cat([dilate(one[None], reach) for one, reach in zip(mask, pixels, strict=True)]).ceil()
