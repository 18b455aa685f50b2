"""Paste a cut-out foreground on a background: the composite and the mask that harmonization starts from."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import BinaryIO

import cv2
import numpy as np
from PIL import Image

from harmony_diffusion.errors import InputError, InputTypeError, MaskError
from harmony_diffusion.images.arrays import size_mismatch, white_of
from harmony_diffusion.images.foreground_colors import decontaminate_colors
from harmony_diffusion.images.masks import RESIZE_MASK
from harmony_diffusion.images.output_files import write_atomically
from harmony_diffusion.images.picture import Picture
from harmony_diffusion.images.shadow import Shadow, draw_shadow, lay_shadow
from harmony_diffusion.images.shadow_guess import guess_shadow
from harmony_diffusion.numbers import check_integer, check_number


@dataclass(frozen=True, eq=False)
class Composition:
    """A pasted foreground, and the layers it is made of.

    Attributes:
        composite: The foreground on the background.
        mask: `(H, W)` float32 in [0, 1].
        shadow: Multiplier of the background's sRGB values, `(H, W)` float32 in [0, 1]; None without a shadow.
        shadow_settings: The shadow that was drawn, as given or guessed; None without one.
    """

    composite: Picture
    mask: np.ndarray
    shadow: np.ndarray | None = None
    shadow_settings: Shadow | None = None


def paste_foreground(
    foreground: Picture,
    background: Picture,
    mask: np.ndarray | None = None,
    *,
    at: tuple[int, int] | None = None,
    scale: float = 1.0,
) -> tuple[Picture, np.ndarray]:
    """Paste `foreground` on `background` and return the composite with its mask.

    See `compose`, which has the same arguments and more.

    Returns:
        The composite, and the mask `(H, W)` float32 in [0, 1] of the background's size.
    """
    composition = compose(foreground, background, mask, at=at, scale=scale)
    return composition.composite, composition.mask


def compose(
    foreground: Picture,
    background: Picture,
    mask: np.ndarray | None = None,
    *,
    at: tuple[int, int] | None = None,
    scale: float = 1.0,
    shadow: Shadow | str | None = None,
    decontaminate: bool = False,
) -> Composition:
    """Paste `foreground` on `background`, with a shadow if wanted.

    The foreground is scaled with premultiplied alpha, so that the colour of hidden pixels never bleeds into
    the edge; what stands out over the background's border is cut off.

    Args:
        foreground: The cut-out, with an alpha channel unless `mask` is given.
        background: The picture to paste on; the composite keeps its size, bit depth, profile and EXIF.
        mask: What of the foreground to paste, float `(H, W)` in [0, 1]; multiplies the alpha channel.
        at: Left and top of the pasted foreground in pixels of the background; centred by default.
        scale: Size of the pasted foreground relative to its own.
        shadow: A `Shadow`, "auto" to guess it from the background, or None.
        decontaminate: Replace the colour of the old background in soft edges by the object's own.

    Raises:
        MaskError: The foreground has neither alpha nor mask, or nothing of it would be visible.
        SizeMismatchError: `mask` has not the foreground's size.
        InputError: `scale` is not a positive number, the foreground would lie outside the background, or
            `shadow` is something else.
    """
    if not (shadow is None or shadow == "auto" or isinstance(shadow, Shadow)):
        raise InputError("shadow", f"is {shadow!r}", 'Give a `Shadow`, "auto", or None.')
    alpha = _foreground_alpha(foreground, mask)
    height, width = _pasted_size(foreground, background, scale)
    frame_height, frame_width = background.size
    left, top = (
        _position(at) if at is not None else ((frame_width - width) // 2, (frame_height - height) // 2)
    )

    first_row, last_row = max(top, 0), min(top + height, frame_height)
    first_column, last_column = max(left, 0), min(left + width, frame_width)
    if first_row >= last_row or first_column >= last_column:
        raise InputError(
            "at",
            f"{left},{top} puts the {width}x{height} foreground wholly outside the "
            f"{frame_width}x{frame_height} background",
            "Choose a position inside it.",
        )
    rows, columns = slice(first_row, last_row), slice(first_column, last_column)
    cut = slice(first_row - top, last_row - top), slice(first_column - left, last_column - left)

    colour = foreground.read_srgb(slice(0, foreground.size[0]), slice(0, foreground.size[1]))
    if decontaminate:
        colour = decontaminate_colors(colour, alpha)
    premultiplied = _resize(colour * alpha[..., None], height, width)[cut]
    coverage = _resize(alpha, height, width)[cut].clip(0, 1)
    if not coverage.any():
        raise MaskError(
            foreground.name, "nothing of it is visible on the background", "Choose another position or mask."
        )
    frame_mask = np.zeros(background.size, np.float32)
    frame_mask[rows, columns] = coverage
    layer, settings = None, None
    if shadow is not None:
        settings = shadow if isinstance(shadow, Shadow) else guess_shadow(background, frame_mask)
        layer = draw_shadow(frame_mask, settings)
        background = lay_shadow(background, layer)

    below = background.read_srgb(rows, columns)
    pasted = (premultiplied + below * (1 - coverage[..., None])).clip(0, 1)
    pixels = background.pixels.copy()
    visible = coverage > 0
    pixels[rows, columns][visible] = background.write_srgb(pasted, rows, columns)[visible]
    return Composition(background.with_pixels(pixels), frame_mask, layer, settings)


def _pasted_size(foreground: Picture, background: Picture, scale: float) -> tuple[int, int]:
    """Return height and width of the scaled foreground.

    Raises:
        InputError: `scale` is not a positive number, or makes it much larger than the background.
    """
    scale = check_number("scale", scale)
    if scale <= 0:
        raise InputError("scale", f"must be a positive number, got {scale:g}", "1 keeps the size.")
    if min(foreground.size) * scale > 16 * max(background.size):
        raise InputError(
            "scale", f"{scale:g} makes the foreground much larger than the background", "Give a smaller one."
        )
    height, width = (max(1, round(side * scale)) for side in foreground.size)
    frame_height, frame_width = background.size
    if height > 16 * frame_height or width > 16 * frame_width:
        raise InputError(
            "scale",
            f"{scale:g} makes the foreground {width}x{height} on a {frame_width}x{frame_height} background",
            "Give a smaller one.",
        )
    return height, width


def side_by_side(before: Picture, after: Picture, gap: int = 4) -> Picture:
    """Put two pictures of the same size, depth and profile beside each other, with a white gap between."""
    white = white_of(before.pixels.dtype)
    bar = np.full((before.size[0], gap, 3), white, before.pixels.dtype)
    alpha = None
    if before.alpha is not None:
        opaque = np.full((before.size[0], gap), white, before.alpha.dtype)
        after_alpha = before.alpha if after.alpha is None else after.alpha
        alpha = np.hstack((before.alpha, opaque, after_alpha))
    return replace(before, pixels=np.hstack((before.pixels, bar, after.pixels)), alpha=alpha)


def save_mask(mask: np.ndarray, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write a mask, float `(H, W)` in [0, 1], as an 8-bit grey PNG.

    Raises:
        OutputError: The file exists and `overwrite` is false, or it cannot be written.
    """
    write_atomically(path, mask_encoder(mask), overwrite=overwrite)


def mask_encoder(mask: np.ndarray) -> Callable[[BinaryIO], None]:
    """Return the function that writes a mask, float `(H, W)` in [0, 1], into an open file as a grey PNG."""
    image = Image.fromarray(np.rint(mask * 255).astype(np.uint8))
    return lambda file: image.save(file, "PNG")


def _position(at: tuple[int, int]) -> tuple[int, int]:
    try:
        left, top = at
    except (TypeError, ValueError):
        raise InputTypeError("at", f"must be left and top, got {at!r}", "Give two integers.") from None
    return check_integer("at", left), check_integer("at", top)


def _foreground_alpha(foreground: Picture, mask: np.ndarray | None) -> np.ndarray:
    height, width = foreground.size
    if mask is not None and mask.shape != foreground.size:
        raise size_mismatch("mask", mask.shape, "the foreground", (height, width), RESIZE_MASK)
    if mask is not None:
        mask = _checked(mask)
    visible = foreground.visible
    if visible is None and mask is None:
        raise MaskError(
            foreground.name, "has no transparency, so nothing says what to paste", "Give a `mask` (`--mask`)."
        )
    if visible is None or mask is None:
        return mask if visible is None else visible  # type: ignore[return-value]
    return visible * mask


def _checked(mask: np.ndarray) -> np.ndarray:
    if mask.dtype.kind != "f" or not (mask.min() >= 0 and mask.max() <= 1):
        found = f"{mask.dtype} from {mask.min()} to {mask.max()}"
        raise MaskError(
            "mask", f"must be floating-point from 0 to 1, got {found}", "Open it with `load_mask`."
        )
    return mask.astype(np.float32, copy=False)


def _resize(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """Scale `(H, W)` or `(H, W, 3)`: by area when smaller, bicubic when larger, untouched when equal."""
    if values.shape[:2] == (height, width):
        return values
    smaller = height * width < values.shape[0] * values.shape[1]
    return cv2.resize(values, (width, height), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC)
