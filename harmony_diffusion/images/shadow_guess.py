"""Guess direction and density of a shadow from the shadows that a background shows."""

import math

import cv2
import numpy as np

from harmony_diffusion.boxes import bounding_box
from harmony_diffusion.images.arrays import size_mismatch
from harmony_diffusion.images.picture import Picture
from harmony_diffusion.images.shadow import Shadow

_SIDE = 256  # pixels of the small copy that is searched
_LUMA = (0.299, 0.587, 0.114)
_DARKER = math.log(1 / 0.85), math.log(1 / 0.25)  # logarithm of how much darker than its surroundings
_SAME_COLOR = 0.16  # largest change of log(red / green) and log(blue / green) in a shadow
_SPECK, _TOO_LARGE = 0.002, 0.15  # areas of one shadow, as shares of the ground that is searched
_ELONGATED = 1.8  # a shadow this much longer than wide has a direction
_EVEN = 0.35  # share of the ground that must have one colour and brightness
_LIT_AROUND = 0.6  # share of a shadow's surroundings that must be lit ground: the rest may be an object
_SEVERAL = 2  # long shadows with one direction; a single one may be a stripe
_AGREED = 0.75  # length of the mean of all directions, 1 if they are equal
_LEVEL = 0.1  # sine of the angle below which long dark areas are more often kerbs and steps than shadows
_SIDEWAYS = 0.25  # sine of the angle below which a shadow may fall away from the viewer as well
_SEEN = 0.006  # share of the ground in shadow below which nothing is concluded
_CAST_LENGTH, _CAST_SOFTNESS = 0.5, 0.3  # of a shadow whose direction was seen


def guess_shadow(background: Picture, mask: np.ndarray) -> Shadow:
    """Guess the shadow of a pasted object from the shadows on the ground around it.

    A shadow is an area that is darker than the ground around it but has its colour. The direction is that of
    at least two long shadows, taken to fall toward the viewer. The density is that of all shadows. Where
    none are found, the shadow is small and soft, and below the object.

    Args:
        background: The picture before pasting.
        mask: Where the object will be, float `(H, W)` in [0, 1].

    Raises:
        SizeMismatchError: The mask has another size.
    """
    if mask.shape != background.size:
        raise size_mismatch("mask", mask.shape, background.name, background.size)
    box = bounding_box(mask >= 0.5)
    if box is None:
        return Shadow()
    ground = _ground(background, box[0])
    if min(ground.shape[:2]) < 8:
        return Shadow()
    depth, parts = _shadows_on(ground)
    if sum(part.sum() for part in parts) < _SEEN * depth.size:
        return Shadow()
    # The edges of a shadow are brighter than its inside.
    density = 1 - math.exp(-float(np.quantile(np.concatenate([depth[part] for part in parts]), 0.75)))
    density = min(max(density, 0.2), 0.65)
    angle = _common_angle(depth, parts)
    if angle is None:
        return Shadow(density=density)
    return Shadow(angle, _CAST_LENGTH, _CAST_SOFTNESS, density)


def _ground(background: Picture, rows: slice) -> np.ndarray:
    """Return a small copy of the picture from the middle of the object downward."""
    height, width = background.size
    scale = min(1.0, _SIDE / max(height, width))
    small = background.thumbnail_srgb(
        max(1, round(height * scale)), max(1, round(width * scale)), antialias=True
    )
    return small[min(len(small) - 1, int((rows.start + rows.stop) / 2 * scale)) :]


def _shadows_on(ground: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Find areas that are darker than their surroundings and of the same colour.

    Returns:
        How much darker each pixel is, as a logarithm `(h, w)`, and the areas, boolean `(h, w)`.
    """
    logs = np.log(ground + 0.02)
    luma = cv2.GaussianBlur(logs @ np.array(_LUMA, np.float32), (0, 0), 1)
    # The lit ground: bright values nearby, without the brightest specks.
    side = 2 * (max(ground.shape[:2]) // 6) + 1
    opened = cv2.morphologyEx(luma, cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))
    lit = cv2.blur(cv2.dilate(opened, np.ones((side, side), np.uint8)), (side, side))
    depth = lit - luma
    color = np.stack((logs[..., 0] - logs[..., 1], logs[..., 2] - logs[..., 1]), 2)
    color = cv2.GaussianBlur(color, (0, 0), 1)
    bright = (depth < _DARKER[0]).astype(np.float32)
    amount = cv2.blur(bright, (side, side))
    around = cv2.blur(color * bright[..., None], (side, side)) / np.maximum(amount, 1e-6)[..., None]
    same = (np.abs(color - around).max(2) < _SAME_COLOR) & (amount > 0.1)
    lit_ground = (depth < _DARKER[0]) & same
    if lit_ground.mean() < _EVEN:
        return depth, []
    found = ((depth > _DARKER[0]) & (depth < _DARKER[1]) & same).astype(np.uint8)
    found = cv2.morphologyEx(found, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    count, labels, boxes, _ = cv2.connectedComponentsWithStats(found, connectivity=4)
    chosen = []
    for number in range(1, count):
        left, top, width, height, area = boxes[number].tolist()
        inside = left > 0 and top > 0 and left + width < found.shape[1] and top + height < found.shape[0]
        if inside and _SPECK <= area / found.size <= _TOO_LARGE:
            part = labels == number
            if _lies_on(lit_ground, part):
                chosen.append(part)
    return depth, chosen


def _lies_on(lit_ground: np.ndarray, part: np.ndarray) -> bool:
    """Return True if most of what surrounds an area is lit ground, so that its brightness falls sharply."""
    solid = part.astype(np.uint8)
    near, wide = (cv2.dilate(solid, np.ones((side, side), np.uint8)) > 0 for side in (5, 11))
    return bool(lit_ground[wide & ~near].mean() >= _LIT_AROUND)


def _common_angle(depth: np.ndarray, parts: list[np.ndarray]) -> float | None:
    """Return the direction of most shadows, in degrees; None if they have none in common."""
    total, weights, away, long = 0j, 0.0, np.zeros(2), 0
    for part in parts:
        rows, columns = np.nonzero(part)
        places = np.stack((columns, rows))
        values, vectors = np.linalg.eigh(np.cov(places))
        longer = math.sqrt(max(values[1], 1e-9) / max(values[0], 1e-9))
        if longer < _ELONGATED:
            continue
        long += 1
        weight = len(rows) * min(longer, 5.0)
        # Twice the angle: the two ends of an axis are the same direction.
        total += weight * complex(*vectors[:, 1]) ** 2
        weights += weight
        # A shadow is darkest beside the object that casts it.
        away += weight * (places.mean(1) - np.average(places, axis=1, weights=depth[part]))
    if long < _SEVERAL or abs(total) < _AGREED * weights:
        return None
    radians = math.atan2(total.imag, total.real) / 2 % math.pi
    slope = abs(math.sin(radians))
    if slope < _LEVEL:
        return None
    if slope < _SIDEWAYS and np.array([math.cos(radians), math.sin(radians)]) @ away < 0:
        radians -= math.pi
    return math.degrees(radians)
