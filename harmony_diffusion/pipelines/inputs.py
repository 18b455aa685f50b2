"""Pictures and masks of a pipeline's call."""

import re
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from harmony_diffusion.errors import InputError
from harmony_diffusion.images.masks import MaskSource
from harmony_diffusion.images.picture import Picture, PictureSource, load_pairs, load_reference_masks

Loaded = TypeVar("Loaded")

# Options of loading that messages of `harmony_diffusion.images` name, and the function that takes them.
_TAKEN_BY = {
    "resize": "load_mask",
    "invert": "load_mask",
    "label": "load_mask",
    "max_pixels": "load_picture",
    "frame": "load_picture",
    "allow_truncated": "load_picture",
}


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
    """Load, and replace remedies that only the loading functions have by one that the call has."""
    try:
        return load()
    except InputError as error:
        options = [name for name in re.findall(r"`(\w+)`", error.fix) if name in _TAKEN_BY]
        if not options:
            raise
        function = _TAKEN_BY[options[0]]
        size = ", size=(height, width)" if options[0] == "resize" else ""
        fix = re.sub(r" \(`--[\w-]+`\)", "", error.fix).rstrip(".")
        raise type(error)(
            error.subject,
            error.reason,
            f"{fix}: call `harmony_diffusion.{function}(…{size}, {options[0]}=…)` and give its result.",
        ) from error
