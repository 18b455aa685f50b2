"""A model's change of one picture, kept without pixels of the picture, to be rendered at any strength.

`render_change(predict_change(…), …)` returns what `harmonize_picture` does, to the bit.
"""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from harmony_diffusion.highres.harmonize import (
    allowed_background,
    harmonize_thumbnail,
    predict_filters,
    render_filters,
    render_thumbnail,
    shown_mask,
    window_around,
)
from harmony_diffusion.highres.thumbnail import Thumbnail, make_thumbnail
from harmony_diffusion.images.masks import check_background
from harmony_diffusion.images.picture import Picture
from harmony_diffusion.models.contract import HarmonyModel


@dataclass(eq=False)
class Change:
    """What a model wants to change.

    Attributes:
        model: The model.
        thumbnail: What it saw, None where rendering does not need it.
        filters: What it predicted, None for dense models.
        harmonized: Its output, None for models with filters.
        in_window: The model saw the window around the foreground.
        restricted: Not all of the background was allowed, and statistics come from the thumbnail.
    """

    model: HarmonyModel
    thumbnail: Thumbnail | None
    filters: Tensor | None
    harmonized: Tensor | None
    in_window: bool
    restricted: bool


def predict_change(
    model: HarmonyModel, picture: Picture, mask: np.ndarray, reference: np.ndarray | None = None
) -> Change:
    """Run a model on a picture; arguments as in `harmonize_picture`.

    Raises:
        MaskError: There is no background to harmonize to.
    """
    check_background(mask, reference)
    mask, allowed = shown_mask(picture, mask), allowed_background(picture, reference)
    in_window = model.context is not None and allowed is None
    if in_window:
        window = window_around(mask, model.context or 0)
        picture, mask = picture.cut(window), mask[window]
    thumbnail = make_thumbnail(model, picture, mask, allowed)
    filters = predict_filters(model, thumbnail) if model.predicts_filters else None
    harmonized = None if model.predicts_filters else harmonize_thumbnail(model, thumbnail)
    restricted = allowed is not None
    kept = thumbnail if restricted or filters is None else None
    return Change(model, kept, filters, harmonized, in_window, restricted)


def render_change(change: Change, picture: Picture, mask: np.ndarray, strength: float = 1.0) -> Picture:
    """Change a picture, or a smaller copy of it, as predicted.

    Args:
        change: What to change.
        picture: The picture for which it was predicted, or a copy of another size.
        mask: `(H, W)` of the picture's size.
        strength: 0 returns the picture, 1 the model's result.
    """
    mask = shown_mask(picture, mask)
    if not mask.any():
        return picture
    if not change.in_window:
        return _render(change, picture, mask, strength)
    window = window_around(mask, change.model.context or 0)
    pixels = picture.pixels.copy()
    pixels[window] = _render(change, picture.cut(window), mask[window], strength).pixels
    return picture.with_pixels(pixels)


def _render(change: Change, picture: Picture, mask: np.ndarray, strength: float) -> Picture:
    if change.filters is None:
        assert change.harmonized is not None and change.thumbnail is not None
        return render_thumbnail(picture, mask, change.thumbnail, change.harmonized, strength=strength)
    frame = change.thumbnail.composite.float() if change.restricted and change.thumbnail else None
    return render_filters(change.model, picture, mask, change.filters, frame=frame, strength=strength)
