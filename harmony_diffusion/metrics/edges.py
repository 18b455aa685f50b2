"""Agreement of two edge maps: the F-score of boundary detection, with a tolerance in pixels.

Precision is the share of drawn edge pixels near a wanted one, recall the share of wanted edge pixels near a
drawn one (Martin, Fowlkes and Malik, PAMI 2004, without their one-to-one matching).
"""

import math

import cv2
import numpy as np

from harmony_diffusion.errors import InputError


def edge_agreement(
    drawn: np.ndarray, wanted: np.ndarray, region: np.ndarray | None = None, *, tolerance: float = 1.0
) -> float:
    """Return the F-score of an edge map against another.

    Args:
        drawn: Edges of the result, `(H, W)`, not 0 on edges.
        wanted: Edges that it was to have, `(H, W)`.
        region: Where edge pixels count, `(H, W)`; None counts all. Edges outside it still match edges inside.
        tolerance: Largest distance in pixels of two edge pixels that agree. 1 includes the four neighbours of
            a pixel, but not the diagonal ones.

    Returns:
        The harmonic mean of precision and recall, 0 to 1. NaN if no edge is wanted in the region.

    Raises:
        InputError: The maps differ in shape, or the tolerance is negative.

    Example:
        >>> wanted = np.zeros((8, 8))
        >>> wanted[:, 3] = 1
        >>> edge_agreement(np.roll(wanted, 1, 1), wanted), edge_agreement(np.roll(wanted, 2, 1), wanted)
        (1.0, 0.0)
    """
    maps = [np.asarray(plane) != 0 for plane in (drawn, wanted)]
    counted = np.ones_like(maps[0]) if region is None else np.asarray(region) != 0
    if maps[0].ndim != 2 or any(plane.shape != maps[0].shape for plane in (maps[1], counted)):
        shapes = ", ".join(str(plane.shape) for plane in (*maps, counted))
        raise InputError("drawn, wanted, region", f"must all be (H, W), got {shapes}")
    if tolerance < 0:
        raise InputError("tolerance", f"is {tolerance}, expected 0 or more pixels")
    offsets = np.square(np.arange(-math.floor(tolerance), math.floor(tolerance) + 1))
    kernel = (offsets[:, None] + offsets <= tolerance**2).astype(np.uint8)
    near = [cv2.dilate(plane.astype(np.uint8), kernel) > 0 for plane in maps]
    drawn_inside, wanted_inside = (plane & counted for plane in maps)
    if not wanted_inside.any():
        return math.nan
    hits, found = (drawn_inside & near[1]).sum(), (wanted_inside & near[0]).sum()
    if not hits or not found:
        return 0.0
    precision, recall = hits / drawn_inside.sum(), found / wanted_inside.sum()
    return float(2 * precision * recall / (precision + recall))
