"""Windows, bands of rows and taps: where to look and where to work in a picture. NumPy only."""

import math
from collections.abc import Iterator

import numpy as np

from harmony_diffusion.boxes import Box, bounding_box, box_around
from harmony_diffusion.errors import SizeMismatchError
from harmony_diffusion.images.picture import Picture

# Side of the part of a frame that is looked at, as a share of the frame's: no object is enlarged beyond it.
_LEAST_SEEN = 0.2
# Pixels read as floats at a time: 3 MB each for RGB, whatever the size of the picture.
BAND_PIXELS = 1 << 18


def window_around(mask: np.ndarray, context: float) -> Box:
    """Find a square around the foreground, cut where it is larger than the frame, moved where it leaves it.

    Args:
        mask: `(H, W)`; all that is not 0 lies inside.
        context: Background on each side of the foreground, as a share of its longer side.

    Returns:
        Rows and columns; all of them for an empty mask.
    """
    box = bounding_box(mask > 0)
    if box is None:
        return slice(0, mask.shape[0]), slice(0, mask.shape[1])
    longer = max(span.stop - span.start for span in box)
    side = math.ceil(max((1 + 2 * context) * longer, _LEAST_SEEN * math.sqrt(mask.size)))
    return box_around(box, [min(side, whole) for whole in mask.shape], mask.shape)


def shown_mask(picture: Picture, mask: np.ndarray) -> np.ndarray:
    """Return the mask as float32 `(H, W)`, 0 where the picture is hidden.

    Raises:
        SizeMismatchError: It has another size than the picture.
    """
    mask = _weights(picture, mask, "mask")
    visible = picture.visible
    return mask if visible is None else np.where(visible > 0, mask, np.float32(0))


def allowed_background(picture: Picture, reference: np.ndarray | None) -> np.ndarray | None:
    """Return how much each background pixel may be looked at, float32 `(H, W)`; None = all of them fully.

    Raises:
        SizeMismatchError: `reference` has another size than the picture.
    """
    visible = picture.visible
    if reference is None:
        return None if visible is None else _weights(picture, visible, "alpha")
    reference = _weights(picture, reference, "reference")
    return reference if visible is None else reference * visible


def _weights(picture: Picture, weights: np.ndarray, name: str) -> np.ndarray:
    if weights.shape != picture.size:
        raise SizeMismatchError(
            name,
            f"is {' x '.join(map(str, weights.shape))} (height x width), "
            f"but {picture.name} is {picture.size[0]} x {picture.size[1]}",
        )
    return np.require(weights, np.float32, ["C", "W"])


def row_bands(size: tuple[int, int]) -> list[slice]:
    """Slices of rows that together cover a picture of `size`, about `BAND_PIXELS` pixels each."""
    step = max(1, BAND_PIXELS // size[1])
    return [slice(top, min(top + step, size[0])) for top in range(0, size[0], step)]


def foreground_windows(mask: np.ndarray) -> Iterator[Box]:
    """Yield bands of rows that hold foreground, each cut to the columns that do, of a mask `(H, W)`."""
    for rows in row_bands((mask.shape[0], mask.shape[1])):
        inside = mask[rows] > 0
        lines, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
        if lines.size:
            yield (
                slice(rows.start + int(lines[0]), rows.start + int(lines[-1]) + 1),
                slice(int(columns[0]), int(columns[-1]) + 1),
            )


def enlarging_taps(small: int, large: int, wanted: slice, mode: str) -> tuple[np.ndarray, np.ndarray]:
    """Find the samples, and their weights, that positions of an enlarged line are interpolated from.

    Args:
        small: Samples of the line.
        large: Positions after enlarging it.
        wanted: Which of these.
        mode: "bilinear" or "bicubic".

    Returns:
        Indices and float32 weights of the samples, `(2, n)` both for "bilinear" and `(4, n)` for "bicubic".

    Raises:
        ValueError: Another `mode`.
    """
    # In float32 as `F.interpolate` computes it, so that both round alike.
    scale = np.float32(small) / np.float32(large)
    source = (np.arange(wanted.start, wanted.stop, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(
        0.5
    )
    base = np.floor(source)
    t = source - base
    steps: tuple[int, ...]
    if mode == "bilinear":
        steps, weights = (0, 1), np.stack((1 - t, t))
    elif mode == "bicubic":
        # Cubic convolution with a = -0.75.
        a, u = -0.75, 1 - t
        far, near = np.stack((1 + t, 1 + u)), np.stack((t, u))
        near = ((a + 2) * near - (a + 3)) * near * near + 1
        far = ((a * far - 5 * a) * far + 8 * a) * far - 4 * a
        steps, weights = (-1, 0, 1, 2), np.stack((far[0], near[0], near[1], far[1]))
    else:
        raise ValueError(f"`mode` must be 'bilinear' or 'bicubic', got {mode!r}.")
    index = np.stack([(base + step).clip(0, small - 1).astype(np.int64) for step in steps])
    return index, weights.astype(np.float32)
