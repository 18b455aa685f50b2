"""A shadow that a flat object casts on level ground, from its mask alone."""

import math

import cv2
import numpy as np

from harmony_diffusion.errors import InputError
from harmony_diffusion.numbers import check_number

# The ground is seen from the side, so that a way on it looks half as long in depth.
_FORESHORTENING = 0.5
_FLATTEST = 0.2
_VISIBLE = 0.5


def cast_shadow(
    mask: np.ndarray,
    *,
    direction: float = 30.0,
    length: float = 0.8,
    softness: float = 0.3,
    density: float = 0.6,
) -> np.ndarray:
    """Draw the shadow of an object that stands on its lowest row.

    The mask is laid on the ground by a shear. The shadow grows softer with its distance from the object.

    Args:
        mask: 1 on the object, `(H, W)` in [0, 1].
        direction: Where it falls, in degrees: 0 to the right, 90 away from the viewer, 180 to the left, 270
            towards the viewer.
        length: Length in heights of the object, from 0 to 10.
        softness: Blur of the far end, in [0, 1].
        density: Share of the light that the shadow takes, in [0, 1].

    Returns:
        Factor of the light of each pixel, `(H, W)` float32 in [1 - density, 1]; 1 where the mask is 1.

    Raises:
        InputError: An argument out of its range.

    Example:
        >>> mask = np.zeros((40, 60), np.float32)
        >>> mask[10:30, 20:26] = 1
        >>> cast_shadow(mask, direction=0).shape
        (40, 60)
    """
    if mask.ndim != 2:
        raise InputError("mask", f"has the shape {mask.shape}", "Give (height, width).")
    direction = check_number("direction", direction, -360, 360)
    length, softness = check_number("length", length, 0, 10), check_number("softness", softness, 0, 1)
    density = check_number("density", density, 0, 1)
    mask = np.ascontiguousarray(mask, np.float32)
    rows = np.flatnonzero((mask >= _VISIBLE).any(1))
    if not len(rows) or density == 0 or length == 0:
        return np.ones_like(mask)
    foot, height = float(rows[-1]), float(rows[-1] - rows[0] + 1)
    aside = length * math.cos(math.radians(direction))
    away = _FORESHORTENING * length * math.sin(math.radians(direction))
    if abs(away) < _FLATTEST:  # a shadow exactly to the side would be a line: objects have some depth
        away = math.copysign(_FLATTEST, away)
    # A pixel h above the foot falls at (x + aside h, foot - away h).
    shear = np.array([[1, -aside, aside * foot], [0, away, foot - away * foot]], np.float32)
    flat = cv2.warpAffine(mask, shear, mask.shape[::-1], flags=cv2.INTER_LINEAR)
    far = np.clip(np.abs(np.arange(len(mask), dtype=np.float32) - foot) / (abs(away) * height), 0, 1)[:, None]
    near_blur, far_blur = (max(share * softness * height, 1e-3) for share in (0.02, 0.15))
    coverage = (1 - far) * _blur(flat, near_blur) + far * _blur(flat, far_blur)
    return (1 - density * coverage.clip(0, 1) * (1 - mask)).astype(np.float32)


def _blur(plane: np.ndarray, sigma: float) -> np.ndarray:
    return plane if sigma < 0.3 else cv2.GaussianBlur(plane, (0, 0), sigma, borderType=cv2.BORDER_CONSTANT)
