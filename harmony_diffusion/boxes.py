"""Boxes of a picture, as its rows and columns."""

from collections.abc import Sequence

import numpy as np

Box = tuple[slice, slice]


def bounding_box(inside: np.ndarray) -> Box | None:
    """Return rows and columns of the smallest box that holds all of a region, None for an empty one.

    Args:
        inside: Boolean, `(H, W)`.

    Example:
        >>> bounding_box(np.arange(12).reshape(3, 4) == 6)
        (slice(1, 2, None), slice(2, 3, None))
    """
    rows, columns = (np.flatnonzero(inside.any(axis)) for axis in (1, 0))
    if not rows.size:
        return None
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def box_around(box: Box, sides: Sequence[int], picture: Sequence[int]) -> Box:
    """Return the box of a size that has another in its middle, moved where it leaves the picture.

    Args:
        box: What to put in the middle.
        sides: Height and width wanted, at most those of the picture.
        picture: Height and width.

    Example:
        >>> box_around((slice(0, 2), slice(5, 7)), (4, 4), (10, 10))
        (slice(0, 4, None), slice(4, 8, None))
    """
    rows, columns = (
        min(max((span.start + span.stop - side) // 2, 0), whole - side)
        for span, side, whole in zip(box, sides, picture, strict=True)
    )
    return slice(rows, rows + sides[0]), slice(columns, columns + sides[1])
