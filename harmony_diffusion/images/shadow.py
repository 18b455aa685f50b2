"""Draw the shadow of a pasted object from its mask: a soft cast shadow, and a dark line where it stands.

No network is used. The shadow is a layer that multiplies the background, as the blend mode "multiply" of an
image editor does.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from harmony_diffusion.boxes import bounding_box
from harmony_diffusion.images.arrays import note, size_mismatch
from harmony_diffusion.images.picture import Picture
from harmony_diffusion.numbers import check_number

# Shadows are soft: they are drawn with objects of at most this many pixels a side, then enlarged.
_SIDE = 160
_SLABS = 32  # horizontal parts of an object, each of one height above the ground
_LEVELS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4)  # blur, as shares of the object's size
_FADED = 0.45  # share of its density that the shadow loses up to its far end
_INVISIBLE = 0.006  # the faint end of a blur, which only makes the shadow's reach larger
_SMALLEST = 0.02  # parts of a mask below this share of the largest are specks


@dataclass(frozen=True)
class Shadow:
    """The shadow of an object that stands on the ground.

    Attributes:
        angle: Direction in the picture in which the shadow falls, in degrees: 0 right, 90 down (toward the
            viewer), 180 left, -90 behind the object.
        length: Length of the shadow as a share of the object's height, 0 to 3; 0 leaves the dark line where
            the object meets the ground.
        softness: 0 gives the sharpest edge, 1 the softest.
        density: 0 gives no shadow, 1 black.

    Raises:
        InputError: A value out of its range.
    """

    angle: float = 90.0
    length: float = 0.12
    softness: float = 0.5
    density: float = 0.4

    def __post_init__(self) -> None:
        """Check the numbers."""
        bounds = {"angle": (-360, 360), "length": (0, 3), "softness": (0, 1), "density": (0, 1)}
        for name, (low, high) in bounds.items():
            object.__setattr__(self, name, check_number(name, getattr(self, name), low, high))


def draw_shadow(mask: np.ndarray, shadow: Shadow) -> np.ndarray:
    """Return the shadow of what a mask shows, as the multiplier of the background.

    Each connected part of the mask stands on its own lowest pixels. A part that the lower border of the
    picture cuts has no visible foot, and no shadow.

    Args:
        mask: The object, float `(H, W)` in [0, 1].
        shadow: Its direction, length, softness and density.

    Returns:
        `(H, W)` float32 from 1 - density to 1, exactly 1 where the mask is 1, above the object, and out of
        the shadow's reach.

    Example:
        >>> mask = np.zeros((60, 60), np.float32)
        >>> mask[10:40, 20:40] = 1
        >>> layer = draw_shadow(mask, Shadow(angle=0, length=0.5))
        >>> bool(layer[38, 44] < 1), float(layer[5, 30]), float(layer[20, 30])
        (True, 1.0, 1.0)
    """
    layer = np.ones(mask.shape, np.float32)
    solid = (mask >= 0.5).astype(np.uint8)
    if shadow.density == 0 or not solid.any():
        return layer
    for part in _parts(solid):
        if part[-1].any():
            note("shadow", "an object that the lower border of the picture cuts has no foot, and no shadow")
            continue
        _darken(layer, part, shadow)
    layer[mask >= 1] = 1
    return layer


def lay_shadow(background: Picture, layer: np.ndarray) -> Picture:
    """Multiply the sRGB values of a picture by a layer.

    Args:
        background: The picture; its pixels where the layer is 1 stay as they are, to the bit.
        layer: Float `(H, W)` in [0, 1].

    Raises:
        SizeMismatchError: The layer has another size.
    """
    if layer.shape != background.size:
        raise size_mismatch("layer", layer.shape, background.name, background.size)
    window = bounding_box(layer < 1)
    if window is None:
        return background
    share = layer[window][..., None]
    darkened = background.write_srgb(background.read_srgb(*window) * share, *window)
    pixels = background.pixels.copy()
    # Rounding, and the tables of a profile, must not brighten a pixel.
    np.copyto(pixels[window], np.minimum(darkened, pixels[window]), where=share < 1)
    return background.with_pixels(pixels)


def _parts(solid: np.ndarray) -> Iterator[np.ndarray]:
    """Yield each connected part of a mask, boolean `(H, W)`, without specks."""
    count, labels, boxes, _ = cv2.connectedComponentsWithStats(solid, connectivity=8)
    areas = boxes[1:, cv2.CC_STAT_AREA]
    for number in range(1, count):
        if areas[number - 1] >= _SMALLEST * areas.max():
            yield labels == number


def _darken(layer: np.ndarray, part: np.ndarray, shadow: Shadow) -> None:
    """Multiply a layer by the shadow of one part, in place."""
    box = bounding_box(part)
    assert box is not None
    rows, columns = box
    height, width = rows.stop - rows.start, columns.stop - columns.start
    scale = min(1.0, _SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.resize(part[box].astype(np.float32), size, interpolation=cv2.INTER_AREA)
    margin = math.ceil((shadow.length + 0.5) * size[1] + 0.4 * max(size)) + 2
    dark = _draw(np.pad(small, margin), margin, shadow)

    # Enlarge: pixel centres of the small drawing to those of the picture.
    across, down = width / size[0], height / size[1]
    top, left = rows.start - margin * down, columns.start - margin * across
    first_row, last_row = rows.start, min(layer.shape[0], math.ceil(top + dark.shape[0] * down))
    first_column = max(0, math.floor(left))
    last_column = min(layer.shape[1], math.ceil(left + dark.shape[1] * across))
    matrix = np.array(
        [
            [1 / across, 0, (first_column + 0.5 - left) / across - 0.5],
            [0, 1 / down, (first_row + 0.5 - top) / down - 0.5],
        ]
    )
    wanted = (last_column - first_column, last_row - first_row)
    large = cv2.warpAffine(dark, matrix, wanted, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    layer[first_row:last_row, first_column:last_column] *= 1 - large.clip(0, 1)


def _draw(mask: np.ndarray, margin: int, shadow: Shadow) -> np.ndarray:
    """Return how much a small mask, padded by `margin`, darkens each pixel, in [0, density]."""
    tall, wide = mask.shape[0] - 2 * margin, mask.shape[1] - 2 * margin
    ground = _ground_line(mask >= 0.5)
    altitude = (ground[None] - np.arange(len(mask))[:, None]).clip(0) / tall
    altitude[:, mask.max(0) == 0] = 0
    contact = _contact(mask, altitude, tall, wide, shadow)
    cast = _cast(mask, altitude, tall, wide, shadow) if shadow.length else np.zeros_like(mask)
    # Nothing is cast above the object's highest row.
    cast[:margin] = contact[:margin] = 0
    dark = 1 - (1 - cast) * (1 - contact)
    return shadow.density * (dark - _INVISIBLE).clip(0) / (1 - _INVISIBLE)


def _cast(mask: np.ndarray, altitude: np.ndarray, tall: int, wide: int, shadow: Shadow) -> np.ndarray:
    """Lay the mask on the ground and blur it more the further it is from the foot, in [0, 1]."""
    radians = math.radians(shadow.angle)
    along, toward = shadow.length * math.cos(radians), shadow.length * math.sin(radians)
    solid, reach = np.zeros_like(mask), np.full_like(mask, np.inf)
    # Slabs overlap, which gives the object a thickness and leaves no gaps in a long shadow.
    half = 0.7 * max(1.0, shadow.length) / _SLABS
    for number in range(_SLABS):
        level = (number + 0.5) / _SLABS
        slab = mask * (np.abs(altitude - level) <= half)
        shift = np.array([[1, 0, along * level * tall], [0, 1, (1 + toward) * level * tall]], np.float64)
        moved = cv2.warpAffine(slab, shift, mask.shape[::-1], flags=cv2.INTER_LINEAR)
        solid = np.maximum(solid, moved)
        reach = np.where(moved > 0.3, np.minimum(reach, level), reach)
    size = math.sqrt(tall * min(wide, tall))
    known = np.isfinite(reach).astype(np.float32)
    spread = (0.05 + 0.3 * shadow.softness) * size
    weight = _blurred(known, spread)
    reach = _blurred(np.where(known > 0, reach, 0).astype(np.float32), spread) / np.maximum(weight, 1e-6)
    blur = shadow.softness * (0.06 + 0.5 * shadow.length * reach)
    return _blurred_by(solid, blur, size) * (1 - _FADED * reach)


def _contact(mask: np.ndarray, altitude: np.ndarray, tall: int, wide: int, shadow: Shadow) -> np.ndarray:
    """Darken the ground beside the lowest pixels of the object, in [0, 1]."""
    size = math.sqrt(tall * min(wide, tall))
    foot = mask * np.exp(-altitude * 20)
    spread = (0.012 + 0.05 * shadow.softness) * size
    # Wider than high, as a circle on the ground is.
    near = cv2.GaussianBlur(foot, (0, 0), max(0.6, 1.6 * spread), sigmaY=max(0.6, 0.7 * spread))
    return np.minimum(1.6 * near, 1)


def _ground_line(solid: np.ndarray) -> np.ndarray:
    """Return for each column the row on which the object stands: the lower convex hull of its pixels.

    Feet further back stand higher in the picture, but what is higher than a quarter of the object is no foot.
    """
    columns = np.flatnonzero(solid.any(0))
    lowest = len(solid) - 1 - np.argmax(solid[::-1, columns], axis=0)
    hull: list[tuple[int, int]] = []
    for column, row in zip(columns.tolist(), lowest.tolist(), strict=True):
        # Drop points above the straight line from the one before them to the new one.
        while len(hull) > 1 and _turns_down(hull[-2], hull[-1], (column, row)):
            hull.pop()
        hull.append((column, row))
    corners = np.array(hull)
    line = np.interp(np.arange(solid.shape[1]), corners[:, 0], corners[:, 1])
    height = lowest.max() - int(np.argmax(solid.any(1))) + 1
    return np.maximum(line, lowest.max() - 0.25 * height).astype(np.float32)


def _turns_down(first: tuple[int, int], middle: tuple[int, int], last: tuple[int, int]) -> bool:
    """Return True if `middle` is not below the straight line between the others."""
    (x0, y0), (x1, y1), (x2, y2) = first, middle, last
    return (y1 - y0) * (x2 - x0) <= (y2 - y0) * (x1 - x0)


def _blurred_by(values: np.ndarray, blur: np.ndarray, size: float) -> np.ndarray:
    """Blur each pixel by its own amount, between steps of equal blur."""
    blurred = [_blurred(values, level * size) for level in _LEVELS]
    result = blurred[-1]
    for low, high, first, second in zip(_LEVELS, _LEVELS[1:], blurred, blurred[1:], strict=False):
        share = (blur - low) / (high - low)
        inside = (share >= 0) & (share < 1)
        result = np.where(inside, first + (second - first) * share, result)
    return result.astype(np.float32)


def _blurred(values: np.ndarray, sigma: float) -> np.ndarray:
    return cv2.GaussianBlur(values, (0, 0), max(0.6, sigma), borderType=cv2.BORDER_CONSTANT)
