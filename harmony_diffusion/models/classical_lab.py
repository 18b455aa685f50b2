"""CIE L*a*b* for lists of colours in float32 on the CPU, in a third of the time of `harmony_diffusion.color`.

The powers are OpenCV's. Its own conversions are not used: they interpolate in tables, with errors up to 0.4.
"""

import cv2
import numpy as np

from harmony_diffusion.color import LAB_DELTA, RGB_TO_XYZ, WHITE

_TO_XYZ = np.array(RGB_TO_XYZ) / np.array(WHITE)[:, None]  # relative to white
_FROM_XYZ = np.linalg.inv(_TO_XYZ).astype(np.float32)
_TO_XYZ = _TO_XYZ.astype(np.float32)
_BENT_TO_LAB = np.array([[0, 116, 0], [500, -500, 0], [0, 200, -200]], np.float32)
_LAB_TO_BENT = np.linalg.inv(_BENT_TO_LAB.astype(np.float64)).astype(np.float32)
_L_OF_BLACK = np.array([[-16], [0], [0]], np.float32)


def srgb_to_lab_list(colors: np.ndarray) -> np.ndarray:
    """Convert sRGB colours `(3, N)` float32 in [0, 1] to CIE L*a*b* (D65, 2 degrees), `(3, N)`."""
    linear = cv2.pow((colors + np.float32(0.055)) * np.float32(1 / 1.055), 2.4)
    np.multiply(colors, np.float32(1 / 12.92), out=linear, where=colors <= 0.04045)
    xyz = _TO_XYZ @ linear
    bent = cv2.pow(np.maximum(xyz, np.float32(LAB_DELTA**3)), 1 / 3)
    low = xyz <= LAB_DELTA**3
    if low.any():
        bent[low] = xyz[low] / (3 * LAB_DELTA**2) + 4 / 29
    return _BENT_TO_LAB @ bent + _L_OF_BLACK


def lab_to_srgb_list(colors: np.ndarray) -> np.ndarray:
    """Convert CIE L*a*b* colours `(3, N)` float32 to sRGB, `(3, N)` clipped to [0, 1]."""
    bent = _LAB_TO_BENT @ (colors - _L_OF_BLACK)
    xyz = bent * bent * bent
    low = bent <= LAB_DELTA
    if low.any():
        xyz[low] = 3 * LAB_DELTA**2 * (bent[low] - 4 / 29)
    linear = np.clip(_FROM_XYZ @ xyz, 0, 1)
    srgb = cv2.pow(np.maximum(linear, np.float32(0.0031308)), 1 / 2.4)
    srgb = srgb * np.float32(1.055) - np.float32(0.055)
    np.multiply(linear, np.float32(12.92), out=srgb, where=linear <= 0.0031308)
    return srgb
