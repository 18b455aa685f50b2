"""Harmonize a picture at its own resolution with an exported model, in NumPy.

What `harmony_diffusion.highres` does with PyTorch: a thumbnail of the window around the foreground, filters
from it, and filters applied to the full-size pixels in bands. One thing differs: an exported network takes
thumbnails of one size, so a window that is no square is squashed to one.
"""

from collections.abc import Callable, Iterable

import numpy as np

from harmony_diffusion.boxes import Box
from harmony_diffusion.errors import CheckpointError, InputError, MaskError, TooLargeError
from harmony_diffusion.export.runtime import OnnxModel
from harmony_diffusion.highres.windows import (
    allowed_background,
    enlarging_taps,
    foreground_windows,
    row_bands,
    shown_mask,
    window_around,
)
from harmony_diffusion.images.picture import Picture

# Filters that measure the picture get it whole, as float32 with all that is computed between.
_MAX_WHOLE_PIXELS = 40_000_000


def harmonize_picture(
    model: OnnxModel,
    picture: Picture,
    mask: np.ndarray,
    *,
    reference: np.ndarray | None = None,
    strength: float = 1.0,
) -> Picture:
    """Harmonize one picture at its own resolution.

    Args:
        model: An exported model.
        picture: Composite, `(H, W)`.
        mask: 1 on the foreground, soft values allowed, `(H, W)` float32 in [0, 1].
        reference: Which part of the background to harmonize to, as in
            `harmony_diffusion.highres.harmonize.harmonize_picture`.
        strength: 0 leaves the picture as it is, 1 is the model's result, linear between.

    Returns:
        The harmonized picture, equal to `picture` to the bit where the mask or alpha is 0.

    Raises:
        SizeMismatchError: `mask` or `reference` has another size than the picture.
        MaskError: No visible background is left to harmonize to.
        InputError: `strength` lies outside [0, 1].
        CheckpointError: The graphs cannot be run, or return something else than a picture.
        TooLargeError: The model's filters need the whole picture at once, and it is too large for that.
    """
    if not 0 <= strength <= 1:
        raise InputError("strength", f"is {strength}, expected a number from 0 to 1")
    mask, allowed = shown_mask(picture, mask), allowed_background(picture, reference)
    if not mask.any():
        return picture
    context = model.description.context
    if context is None or allowed is not None:
        return _harmonize(model, picture, mask, allowed, strength)
    window = window_around(mask, context)
    part = _harmonize(model, picture.cut(window), mask[window], None, strength)
    result = picture.pixels.copy()
    result[window] = part.pixels
    return picture.with_pixels(result)


def make_thumbnail(
    model: OnnxModel, picture: Picture, mask: np.ndarray, allowed: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Make the input of a model from a picture of any size.

    Args:
        model: An exported model.
        picture: Composite, `(H, W)`.
        mask: 1 on the foreground, `(H, W)` float32.
        allowed: Weight with which a background pixel may be seen, `(H, W)` float32; None = all may. The
            rest is filled smoothly from what is allowed.

    Returns:
        Composite `(1, 3, h, w)` and mask `(1, 1, h, w)`, float32 in [0, 1].

    Raises:
        MaskError: There is a foreground, and no background is allowed.
    """
    size = model.size
    if allowed is not None:
        composite, small_mask = _restricted(picture, mask, allowed, size)
    elif model.description.antialias:
        composite = _shrink(picture, size, lambda rgb, rows: rgb)
        small_mask = resize(mask[..., None], size, antialias=True)
    else:
        composite = picture.thumbnail_srgb(*size)
        small_mask = resize(mask[..., None], size, antialias=False)
    return _planes(composite), _planes(small_mask)


def _planes(image: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(image.clip(0, 1).transpose(2, 0, 1)[None], np.float32)


def resize(image: np.ndarray, size: tuple[int, int], *, antialias: bool) -> np.ndarray:
    """Resize `(H, W, C)` bilinearly from half-pixel centres, as `torch.nn.functional.interpolate` does."""
    for axis, length in ((1, size[1]), (0, size[0])):
        index, weights = _taps(image.shape[axis], length, antialias)
        shape = (-1, 1) if axis == 1 else (-1, 1, 1)
        total = np.zeros((*image.shape[:axis], length, *image.shape[axis + 1 :]), np.float32)
        for positions, shares in zip(index, weights, strict=True):
            total += image.take(positions, axis) * shares.reshape(shape)
        image = total
    return image


def fill_smoothly(image: np.ndarray, confidence: np.ndarray) -> np.ndarray:
    """Replace pixels without confidence by a smooth continuation of those with it.

    Args:
        image: `(H, W, C)`.
        confidence: `(H, W, 1)` in [0, 1]; 1 keeps the pixel, 0 replaces it.

    Returns:
        `(H, W, C)`, see `harmony_diffusion.highres.thumbnail.fill_smoothly`.
    """
    size = image.shape[0], image.shape[1]
    if max(size) == 1:
        return image * (confidence > 0)
    total = _halve(confidence)
    coarse = _halve(image * confidence) / np.maximum(total, 1e-12)
    coarse = fill_smoothly(coarse, np.minimum(4 * total, 1))
    enlarged = resize(coarse, size, antialias=False)
    return enlarged + confidence * (image - enlarged)


def _taps(before: int, after: int, antialias: bool) -> tuple[np.ndarray, np.ndarray]:
    """Indices and float32 weights of the samples that each new position averages, `(taps, after)` both."""
    if not antialias or after >= before:
        return enlarging_taps(before, after, slice(0, after), "bilinear")
    scale = before / after
    centres = (np.arange(after) + 0.5) * scale
    first = np.maximum((centres - scale + 0.5).astype(np.int64), 0)
    last = np.minimum((centres + scale + 0.5).astype(np.int64), before)
    index = first + np.arange(int((last - first).max()))[:, None]
    weights = np.maximum(1 - np.abs(index + 0.5 - centres) / scale, 0) * (index < last)
    return np.minimum(index, before - 1), (weights / weights.sum(0)).astype(np.float32)


def _halve(image: np.ndarray) -> np.ndarray:
    """Average cells of 2 x 2 pixels, smaller ones at an odd end."""
    for axis in (0, 1):
        even, odd = (image[start::2] if axis == 0 else image[:, start::2] for start in (0, 1))
        image = even.copy()
        pairs = slice(0, odd.shape[axis])
        cells = image[pairs] if axis == 0 else image[:, pairs]
        cells += odd
        cells *= 0.5
    return image


def _shrink(
    picture: Picture, size: tuple[int, int], layers: Callable[[np.ndarray, slice], np.ndarray]
) -> np.ndarray:
    """Resize what `layers` makes of the sRGB values, antialiased, reading the picture in bands of rows."""
    narrow = []
    for rows in row_bands(picture.size):
        values = layers(picture.read_srgb(rows), rows)
        narrow.append(resize(values, (values.shape[0], size[1]), antialias=True))
    return resize(np.concatenate(narrow), size, antialias=True)


def _restricted(
    picture: Picture, mask: np.ndarray, allowed: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Shrink foreground and allowed background apart, fill the latter, and put them together again."""

    def layers(rgb: np.ndarray, rows: slice) -> np.ndarray:
        front = mask[rows][..., None]
        back = (1 - front) * allowed[rows][..., None]
        return np.concatenate((rgb * front, front, rgb * back, back), 2)

    front, front_share, back, back_share = np.split(_shrink(picture, size, layers), (3, 4, 7), 2)
    if not (back_share > 0).any():
        raise MaskError(picture.name, "no background is left to harmonize to", "Allow some in `reference`.")
    confidence = (back_share / np.maximum(1 - front_share, 1e-6)).clip(0, 1)
    back = fill_smoothly(back / np.maximum(back_share, 1e-6), confidence)
    return front + (1 - front_share) * back, front_share


def _harmonize(
    model: OnnxModel, picture: Picture, mask: np.ndarray, allowed: np.ndarray | None, strength: float
) -> Picture:
    composite, small_mask = make_thumbnail(model, picture, mask, allowed)
    if model.description.kind == "dense":
        harmonized = model(composite, small_mask)
        _check_finite(model, harmonized)
        return _carry_over(picture, mask, composite, small_mask, harmonized, strength)
    filters = model.predict_filters(composite, small_mask)
    if model.description.frame_wide:
        if mask.size > _MAX_WHOLE_PIXELS:
            raise TooLargeError(
                picture.name,
                f"has {mask.size / 1e6:.0f} million pixels, and the filters of {model.description.model} "
                f"need the whole picture at once: {_MAX_WHOLE_PIXELS / 1e6:.0f} million at most",
                "Use PyTorch (leave out `--runtime`), which works in bands.",
            )
        if allowed is not None:
            raise InputError(
                "reference_mask or alpha",
                f"cannot be used with {model.description.model} here: it measures the whole picture",
                "Use PyTorch (leave out `--runtime`).",
            )
        whole = slice(0, mask.shape[0]), slice(0, mask.shape[1])
        return _render(model, picture, mask, filters, [whole], strength)
    return _render(model, picture, mask, filters, foreground_windows(mask), strength)


def _check_finite(model: OnnxModel, values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        raise CheckpointError(
            f"{model.folder}: its graphs return values that are no finite numbers. Export the model again."
        )


def _render(
    model: OnnxModel,
    picture: Picture,
    mask: np.ndarray,
    filters: np.ndarray,
    windows: Iterable[Box],
    strength: float,
) -> Picture:
    """Apply filters window by window."""
    upsampling, result = model.description.upsampling, picture.pixels.copy()
    for window in windows:
        share = mask[window]
        image = picture.read_srgb(*window)
        there = filters
        if filters.ndim == 4:
            there = _enlarge(filters, picture.size, window, upsampling or "bilinear")
        planes = np.ascontiguousarray(image.transpose(2, 0, 1)[None])
        changed = model.apply_filters(planes, there, np.ascontiguousarray(share[None, None]))
        _check_finite(model, changed)
        values = changed[0].transpose(1, 2, 0)
        if strength != 1:
            values = image + np.float32(strength) * (values - image)
        np.copyto(result[window], picture.write_srgb(values, *window), where=(share > 0)[..., None])
    return picture.with_pixels(result)


def _enlarge(maps: np.ndarray, size: tuple[int, int], window: Box, mode: str) -> np.ndarray:
    """Compute a window of maps `(1, F, h, w)` enlarged to `size`."""
    (down, down_weights), (across, across_weights) = (
        enlarging_taps(small, large, wanted, mode)
        for small, large, wanted in zip(maps.shape[2:], size, window, strict=True)
    )
    wide = sum(maps[..., i] * w for i, w in zip(across, across_weights, strict=True))
    return sum(wide[:, :, i] * w[:, None] for i, w in zip(down, down_weights, strict=True))  # type: ignore


def _carry_over(
    picture: Picture,
    mask: np.ndarray,
    composite: np.ndarray,
    small_mask: np.ndarray,
    harmonized: np.ndarray,
    strength: float,
) -> Picture:
    """Carry the change of a thumbnail over to the picture; the colour map is fitted with PyTorch."""
    import torch

    from harmony_diffusion.highres.harmonize import render_thumbnail
    from harmony_diffusion.highres.thumbnail import Thumbnail

    seen = Thumbnail(torch.from_numpy(composite), torch.from_numpy(small_mask), None)
    return render_thumbnail(picture, mask, seen, torch.from_numpy(harmonized), strength=strength)
