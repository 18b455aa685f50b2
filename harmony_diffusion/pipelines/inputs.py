"""Pictures and masks of a pipeline's call."""

import re
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from harmony_diffusion.errors import InputError
from harmony_diffusion.images.masks import MaskSource
from harmony_diffusion.images.picture import Picture, PictureSource, load_pairs, load_reference_masks

Loaded = TypeVar("Loaded")


def load_call_pairs(
    composite: PictureSource | Sequence[PictureSource], mask: MaskSource | Sequence[MaskSource]
) -> list[tuple[Picture, np.ndarray]]:
    """Load composites and masks, see `load_pairs`.

    Raises:
        InputError: One cannot be used; the remedy is one that a caller of a pipeline has.
    """
    return _with_remedies(lambda: load_pairs(composite, mask))


def load_references(
    reference_mask: MaskSource | Sequence[MaskSource | None] | None, pictures: Sequence[Picture]
) -> list[np.ndarray | None]:
    """Load a reference mask for each picture.

    Args:
        reference_mask: Mask, list of masks and None, array `(N, H, W)` or `(N, H, W, 1)`, or tensor
            `(N, 1, H, W)`; None = the whole background.
        pictures: Composites of the call.

    Returns:
        `(H, W)` float32 in [0, 1] each; None where the whole background counts.

    Raises:
        InputError: Not one mask for each picture, or of another size.
    """
    return _with_remedies(lambda: load_reference_masks(reference_mask, pictures))


def _with_remedies(load: Callable[[], Loaded]) -> Loaded:
    """Load, and leave out of messages the options that only the command line has."""
    try:
        return load()
    except InputError as error:
        fix = re.sub(r" \(`--[\w-]+`\)", "", error.fix)
        if fix == error.fix:
            raise
        raise type(error)(error.subject, error.reason, fix) from error
