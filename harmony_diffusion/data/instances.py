"""Selection of segmentation masks that make good foregrounds: measures of a mask, and their limits."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from harmony_diffusion.errors import InputError
from harmony_diffusion.images.quick_decoding import read_mask
from harmony_diffusion.images.sources import Source

# Long side, in pixels, at which the connected parts of a mask are counted.
_PARTS_SIDE = 400


class Measure(NamedTuple):
    """Measures of a mask.

    Attributes:
        area: Foreground area as a share of the image.
        sides: Number of image sides that the foreground touches, 0 to 4.
        largest_part: Share of the foreground in its largest connected part.
    """

    area: float
    sides: int
    largest_part: float


@dataclass(frozen=True)
class Limits:
    """Limits on the measures of a mask.

    Attributes:
        least_area: Smallest area, as a share of the image.
        most_area: Largest area, as a share of the image.
        most_sides: Largest number of image sides that the foreground may touch.
        least_largest_part: Smallest share of the largest connected part. A lower share means fragments or
            several objects.
    """

    least_area: float = 0.01
    most_area: float = 0.6
    most_sides: int = 2
    least_largest_part: float = 0.8

    def fault(self, measure: Measure) -> str:
        """Return the first limit that a mask violates as one word, or an empty string."""
        if measure.area < self.least_area:
            return "small"
        if measure.area > self.most_area:
            return "large"
        if measure.sides > self.most_sides:
            return "border"
        return "scattered" if measure.largest_part < self.least_largest_part else ""


def measure_mask(mask: np.ndarray) -> Measure:
    """Measure a mask, `(H, W)` uint8, foreground above 127.

    Example:
        >>> mask = np.zeros((10, 10), np.uint8)
        >>> mask[:4, 2:7] = 255
        >>> measure_mask(mask)
        Measure(area=0.2, sides=1, largest_part=1.0)
    """
    inside = (mask > 127).astype(np.uint8)
    total = int(inside.sum())
    if not total:
        return Measure(0.0, 0, 0.0)
    sides = sum(int(edge.any()) for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))
    scale = min(1.0, _PARTS_SIDE / max(inside.shape))
    # Area averaging keeps thin parts. Counting at this size is ten times as fast as at full size.
    small = cv2.resize(mask, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else mask
    parts = cv2.connectedComponentsWithStats((small > 127).astype(np.uint8))[2][1:, cv2.CC_STAT_AREA]
    return Measure(total / inside.size, sides, float(parts.max() / parts.sum()) if len(parts) else 0.0)


def measure_file(mask: Source) -> Measure | str:
    """Measure the mask in a file, or return the reason why it cannot be read."""
    try:
        return measure_mask(read_mask(mask))
    except InputError as error:
        return error.reason


def in_random_order(names: Iterable[str], seed: int) -> list[str]:
    """Shuffle names by a hash, so that the order of two names does not depend on the other names.

    The first N names are a random sample that changes little when a few names are added or removed.
    """
    return sorted(names, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
