"""Harmonize a picture at its own resolution: run the model on a small copy, change the full-size pixels.

Models that predict filters render them on the full-size pixels. Dense networks harmonize the small copy, and
the change is carried over as a colour map (`harmony_diffusion.highres.color_map`). Only foreground pixels are
computed, in bands, so that little memory beyond the picture itself is needed.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from harmony_diffusion.boxes import Box
from harmony_diffusion.highres.color_map import apply_color_map, fit_color_map
from harmony_diffusion.highres.offload import run_with_hooks
from harmony_diffusion.highres.thumbnail import Thumbnail, make_thumbnail
from harmony_diffusion.highres.windows import (
    allowed_background,
    enlarging_taps,
    foreground_windows,
    row_bands,
    shown_mask,
    window_around,
)
from harmony_diffusion.images.picture import Picture
from harmony_diffusion.models.contract import HarmonyModel
from harmony_diffusion.numbers import check_number


def harmonize_picture(
    model: HarmonyModel,
    picture: Picture,
    mask: np.ndarray,
    *,
    reference: np.ndarray | None = None,
    strength: float = 1.0,
) -> tuple[Picture, Tensor | None]:
    """Harmonize one picture at its own resolution.

    Args:
        model: Any registry model; it is called on its own device and in its own dtype.
        picture: Composite, `(H, W)`.
        mask: 1 on the foreground, soft values allowed, `(H, W)` float32 in [0, 1].
        reference: Which part of the background to harmonize to, `(H, W)` float32 in [0, 1]; None = all of it.
            Hidden pixels (alpha 0) are never used.
        strength: 0 leaves the picture as it is, 1 gives the model's result, linear between.

    Returns:
        The harmonized picture, equal to `picture` to the bit where the mask or alpha is 0, and the filters
        `(1, F)` or `(1, F, h, w)`, None for models that predict none. Models with a `context` see only the
        `window_around` the foreground, and their maps cover this window, unless `reference` or alpha
        restricts their input.

    Raises:
        SizeMismatchError: `mask` or `reference` has another size than the picture.
        MaskError: No visible background is left.
        InputError: `strength` lies outside [0, 1].
    """
    strength = check_number("strength", strength, 0, 1)
    mask, allowed = shown_mask(picture, mask), allowed_background(picture, reference)
    if not mask.any() and not model.predicts_filters:
        return picture, None
    if model.context is None or allowed is not None:
        return _harmonize(model, picture, mask, allowed, strength)
    # A part of the picture, in which the model sees the object in more detail.
    window = window_around(mask, model.context)
    part, filters = _harmonize(model, picture.cut(window), mask[window], None, strength)
    result = picture.pixels.copy()
    result[window] = part.pixels
    return picture.with_pixels(result), filters


def _harmonize(
    model: HarmonyModel, picture: Picture, mask: np.ndarray, allowed: np.ndarray | None, strength: float
) -> tuple[Picture, Tensor | None]:
    thumbnail = make_thumbnail(model, picture, mask, allowed)
    if not model.predicts_filters:
        harmonized = harmonize_thumbnail(model, thumbnail)
        return render_thumbnail(picture, mask, thumbnail, harmonized, strength=strength), None
    filters = predict_filters(model, thumbnail)
    # With hidden parts, statistics of the whole picture come from the model's own input.
    frame = None if allowed is None else thumbnail.composite.float()
    return render_filters(model, picture, mask, filters, frame=frame, strength=strength), filters


@torch.no_grad()
def predict_filters(model: HarmonyModel, thumbnail: Thumbnail) -> Tensor:
    """Return the filters of a picture in float32, `(1, F)` or `(1, F, h, w)`."""
    return run_with_hooks(model, model.predict_filters, *thumbnail.arguments(model)).float()


@torch.no_grad()
def harmonize_thumbnail(model: HarmonyModel, thumbnail: Thumbnail) -> Tensor:
    """Return the thumbnail harmonized by a dense model, `(1, 3, h, w)` float32 in [0, 1]."""
    return model(*thumbnail.arguments(model)).float()


@torch.no_grad()
def render_filters(
    model: HarmonyModel,
    picture: Picture,
    mask: np.ndarray,
    filters: Tensor,
    *,
    frame: Tensor | None = None,
    strength: float = 1.0,
) -> Picture:
    """Apply predicted filters to the foreground of a picture at its own resolution.

    Args:
        model: The model that predicted them.
        picture: Composite, `(H, W)`.
        mask: As `shown_mask` returns it.
        filters: `(1, F)` or `(1, F, h, w)`.
        frame: Image that models with `frame_statistics` measure, `(1, 3, h, w)` in [0, 1]; None = `picture`.
        strength: As in `harmonize_picture`.
    """
    apply = partial(run_with_hooks, model, model.apply_filters)
    if model.filter_upsampling is not None:
        return render_maps(picture, mask, filters, model.filter_upsampling, apply, strength)
    settings: tuple[Tensor, ...] = ()
    if model.needs_frame_statistics:
        if frame is None:
            frame = picture.to_tensor()[None]
        settings = (run_with_hooks(model, model.frame_statistics, frame.to(filters.device), filters),)
        del frame
    return _render_pixels(picture, mask, filters, apply, settings, strength)


@torch.no_grad()
def render_thumbnail(
    picture: Picture,
    mask: np.ndarray,
    thumbnail: Thumbnail,
    harmonized: Tensor,
    *,
    strength: float = 1.0,
) -> Picture:
    """Carry a dense model's change of the thumbnail over to the picture.

    A picture of the thumbnail's size takes the model's pixels, a larger one a colour map.

    Args:
        picture: Composite, `(H, W)`.
        mask: As `shown_mask` returns it.
        thumbnail: Input of the model.
        harmonized: Its output, `(1, 3, h, w)`.
        strength: As in `harmonize_picture`.
    """
    seen = thumbnail.composite.float().to(harmonized.device)
    if seen.shape[-2:] == picture.size:
        change = harmonized - seen
        return render_maps(picture, mask, change, "bilinear", lambda image, by, _: image + by, strength)
    color_map = fit_color_map(seen, harmonized, thumbnail.mask.float().to(harmonized.device))
    return render_maps(picture, mask, color_map, "bilinear", apply_color_map, strength)


def upsample_window(maps: Tensor, size: tuple[int, int], window: Box, mode: str) -> Tensor:
    """Compute a window of enlarged maps without enlarging the rest.

    Args:
        maps: `(B, F, h, w)`.
        size: Height and width of the whole enlarged maps.
        window: Rows and columns wanted of them.
        mode: "bilinear" or "bicubic".

    Returns:
        The window of `F.interpolate(maps, size, mode=mode, align_corners=False)`.
    """
    rows, columns = window
    if maps.shape[-2:] == size:
        return maps[..., rows, columns]
    first, down = _enlargement(maps.shape[2], size[0], rows, mode, maps)
    left, across = _enlargement(maps.shape[3], size[1], columns, mode, maps)
    needed = maps[:, :, first : first + down.shape[1], left : left + across.shape[1]]
    return down @ (needed @ across.T)


def _enlargement(small: int, large: int, wanted: slice, mode: str, like: Tensor) -> tuple[int, Tensor]:
    """Return the first source position used, and the matrix `(n, m)` that enlarges the m from there on."""
    index, weights = enlarging_taps(small, large, wanted, mode)
    first, last = int(index.min()), int(index.max())
    matrix = np.zeros((index.shape[1], last - first + 1), np.float32)
    # At the border several taps read the same position.
    np.add.at(matrix, (np.arange(len(matrix)), index - first), weights)
    return first, torch.from_numpy(matrix).to(like)


def render_maps(
    picture: Picture,
    mask: np.ndarray,
    maps: Tensor,
    upsampling: str,
    change: Callable[[Tensor, Tensor, Tensor], Tensor],
    strength: float = 1.0,
) -> Picture:
    """Change the foreground of a picture by maps that are enlarged to its size, see `render_windows`."""

    def enlarge(window: Box) -> Tensor:
        return upsample_window(maps, picture.size, window, upsampling)

    return render_windows(picture, mask, enlarge, change, strength)


def render_windows(
    picture: Picture,
    mask: np.ndarray,
    maps_in: Callable[[Box], Tensor],
    change: Callable[[Tensor, Tensor, Tensor], Tensor],
    strength: float = 1.0,
) -> Picture:
    """Change the foreground of a picture window by window, in memory that does not grow with it.

    Args:
        picture: `(H, W)`.
        mask: `(H, W)` float32; pixels of value 0 stay as they are, to the bit.
        maps_in: Returns the part of maps of the picture's size that lies in a window, `(1, F, h, w)`.
        change: `change(image, maps, mask)`, all three of the window's size, returns `(1, 3, h, w)` in [0, 1].
        strength: As in `harmonize_picture`.

    Returns:
        The changed picture.
    """
    result = picture.pixels.copy()
    for window in foreground_windows(mask):
        share = mask[window]
        maps = maps_in(window)
        image = torch.from_numpy(picture.read_srgb(*window)).permute(2, 0, 1)[None]
        image = image.to(maps.device).contiguous()
        changed = change(image, maps, torch.from_numpy(share).to(maps.device)[None, None])
        values = torch.lerp(image, changed, strength).clamp_(0, 1)[0].permute(1, 2, 0).cpu().numpy()
        np.copyto(result[window], picture.write_srgb(values, *window), where=(share > 0)[..., None])
    return picture.with_pixels(result)


def _render_pixels(
    picture: Picture,
    mask: np.ndarray,
    filters: Tensor,
    change: Callable[..., Tensor],
    settings: tuple[Tensor, ...],
    strength: float,
) -> Picture:
    """Change the foreground pixels, packed in rows: `change(pixels, filters, mask, *settings)`."""
    result = picture.pixels.copy()
    for rows in row_bands(picture.size):
        share = mask[rows].ravel()
        inside = np.flatnonzero(share > 0)
        if not inside.size:
            continue
        # `take` needs a quarter of the time of an index.
        own = picture.pixels[rows].reshape(-1, 3).take(inside, axis=0)[None]
        packed = replace(picture, pixels=own, alpha=None)
        pixels = torch.from_numpy(packed.read_srgb()).to(filters.device).permute(2, 0, 1)[None].contiguous()
        weights = torch.from_numpy(share[inside])[None, None, None].to(filters.device)
        changed = change(pixels, filters, weights, *settings)
        values = torch.lerp(pixels, changed, strength).clamp_(0, 1)[0].permute(1, 2, 0).cpu().numpy()
        result[rows].reshape(-1, 3)[inside] = packed.write_srgb(values)[0]
    return picture.with_pixels(result)
