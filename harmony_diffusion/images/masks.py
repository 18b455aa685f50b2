"""Masks: read from anything, checked, and returned as float32 with 1 on the foreground."""

import mmap
import os
import sys
from typing import TYPE_CHECKING, Union

import cv2
import numpy as np
from PIL import Image

from harmony_diffusion.errors import InputError, InputTypeError, MaskError
from harmony_diffusion.images.arrays import (
    MAX_PIXELS,
    Raster,
    array_of,
    check_size,
    clamp_float,
    is_tensor,
    note,
    row_chunks,
    size_mismatch,
    white_of,
)
from harmony_diffusion.images.decoding import read_file, read_pil
from harmony_diffusion.numbers import check_integer, check_number

if TYPE_CHECKING:
    import torch

MaskSource = Union[str, os.PathLike[str], Image.Image, np.ndarray, "torch.Tensor"]
Label = int | tuple[int, int, int]

_MOST_STRETCH = 1.02  # proportions of a mask may differ so far by rounding
RESIZE_MASK = "Give one of the same size, or use `load_mask(…, size=…, resize=True)` (`--resize-mask`)."
# Bytes of a mask of 8 megapixels.
_LARGE_MASK = 32 << 20
_CHOOSE_LABEL = "Choose one with `load_mask(…, label=…)` (`--label`)."

# Lossy formats: values this close to black or white (of 255) are noise, and a mask with this share of them is
# a hard one. Measured on hard edges: JPEG noise stays below 40 from quality 75 on, WebP noise from 50 on.
_RINGING = 32
_NEAR_BINARY = 0.9
# A label map has few values, and areas of them; between the two values of a matte there are edges only.
_MOST_LABELS = 32
_AREA = 0.01
# Channels further apart than this (of 255) in this share of the pixels make a colour picture.
_COLORED = 24
_COLORED_SHARE = 0.001
# An inverted mask is white along this share of the border; a real foreground rarely is.
_MOST_OF_BORDER = 0.75
_MOSTLY = 0.98  # share of black and white pixels in a picture that is likely a mask
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in Pillow's conversion to grey


class _IsLabelMap(Exception):
    """A mask has several values, and the caller has to choose one."""

    def __init__(self, reason: str, fix: str = "") -> None:
        super().__init__(reason)
        self.reason, self.fix = reason, fix


def load_mask(
    source: MaskSource,
    *,
    size: tuple[int, int] | None = None,
    size_of: str = "composite",
    name: str = "mask",
    invert: bool = False,
    label: Label | None = None,
    resize: bool = False,
    max_pixels: int = MAX_PIXELS,
    reference: bool = False,
) -> np.ndarray:
    """Load a mask.

    Alpha is the mask where it varies, else the luminance. Masks with only 0 and one other value are hard:
    that value becomes 1. Others keep their soft values; a lossy file that is black and white but for its
    noise is cleaned. An `InputNote` reports each decision.

    Args:
        source: Path of a picture file; PIL image; array `(H, W)`, `(H, W, 1)`, `(1, H, W)`, or with colours
            `(H, W, 3)` or `(H, W, 4)`; tensor `(H, W)`, `(1, H, W)` or `(1, 1, H, W)`. Values are bool,
            integers of 8 or 16 bits, or floating point in [0, 1].
        size: Height and width the mask must have.
        size_of: Name of the picture that has this size, for messages.
        name: For messages, when `source` is no path.
        invert: The foreground is black.
        label: The foreground is the pixels of this value (or palette index, or RGB colour) of a label map.
        resize: Resize the mask to `size`: nearest when it is hard, bilinear when it is soft.
        max_pixels: Limit of height times width, checked before a file is decoded.
        reference: The mask marks a part of the background, and not the foreground.

    Returns:
        `(H, W)` float32 in [0, 1].

    Raises:
        InputError: Something that cannot be read.
        MaskError: The foreground cannot be determined.
        SizeMismatchError: It has another size than `size`, and `resize` is false.

    Example:
        >>> load_mask(np.eye(32, dtype=bool)).sum()
        np.float32(32.0)
    """
    limit = check_number("max_pixels", max_pixels, 1)
    label = None if label is None else _checked_label(label)
    if isinstance(source, str | os.PathLike):
        name = os.fsdecode(source)
        raster = read_file(source, max_pixels=limit, min_side=1, allow_truncated=None, purpose="mask")
    elif isinstance(source, Image.Image):
        raster = read_pil(source, name, max_pixels=limit, min_side=1)
    elif isinstance(source, np.ndarray) or is_tensor(source):
        raster = _raster_of_array(source, name, limit, label)
    else:
        raise InputTypeError(
            name, f"is a {type(source).__name__}", "Give a path, PIL image, NumPy array or torch tensor."
        )
    try:
        mask = _labelled(raster, name, label) if label is not None else _read(raster, name)
    except _IsLabelMap as found:
        fix = "Give a black and white picture." if reference else f"{_CHOOSE_LABEL} {found.fix}".strip()
        raise MaskError(name, found.reason, fix) from None
    if invert:
        mask = 1 - mask
    if size is not None and mask.shape != tuple(size):
        mask = _resized(mask, (size[0], size[1]), name, size_of, resize)
    if not reference:
        _note_oddities(mask, name, inverted=invert)
    return mask


def _checked_label(label: Label) -> Label:
    if isinstance(label, list | tuple | np.ndarray) and len(label) == 3:
        red, green, blue = (check_integer("label", value) for value in label)
        return red, green, blue
    return check_integer("label", label)


def check_background(
    mask: "np.ndarray | torch.Tensor", reference: "np.ndarray | torch.Tensor | None" = None
) -> None:
    """Check that there is a background to harmonize to.

    Args:
        mask: 1 on the foreground, any shape.
        reference: Weight of the background pixels in [0, 1], of the same shape; None = all of them.

    Raises:
        MaskError: No pixel is background.
    """
    background = mask < 1 if reference is None else (mask < 1) & (reference > 0)
    if not bool(background.any()):
        where = "covers the whole picture" if reference is None else "leaves nothing of the reference region"
        raise MaskError(
            "mask", f"{where}: there is no background to harmonize to", "Mark the pasted object only."
        )


def _raster_of_array(
    source: "np.ndarray | torch.Tensor", name: str, max_pixels: float, label: Label | None
) -> Raster:
    array = array_of(source, name)
    if array.ndim == 3 and array.shape[0] == 1 and array.shape[2] not in (1, 2, 3, 4):
        array = array[0]
    array = array[..., None] if array.ndim == 2 else array
    if array.shape[2] not in (1, 2, 3, 4):
        raise InputError(
            name, f"an array of shape {array.shape} is no mask", "Give `(H, W)`, `(H, W, 1)` or `(1, H, W)`."
        )
    check_size(name, array.shape[0], array.shape[1], max_pixels, min_side=1)
    if isinstance(label, int) and array.shape[2] == 1 and np.issubdtype(array.dtype, np.integer):
        # Labels of any size and sign, which need not fit the values of a picture.
        return Raster(np.zeros(array.shape, np.uint8), indices=array[..., 0])
    array = _mask_values(array, name)
    colors = 3 if array.shape[2] >= 3 else 1
    return Raster(array[..., :colors], array[..., colors] if array.shape[2] > colors else None)


def _mask_values(array: np.ndarray, name: str) -> np.ndarray:
    """Return bool and integers as the smallest of uint8 and uint16 that holds them, else float32."""
    if array.dtype == bool:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype in (np.uint8, np.uint16):
        return array
    if np.issubdtype(array.dtype, np.floating):
        return clamp_float(array, name, largest=1.001)
    if not np.issubdtype(array.dtype, np.integer):
        raise InputTypeError(
            name,
            f"values of type {array.dtype} are not accepted",
            "Give bool, integers, or floats in [0, 1].",
        )
    low, high = int(array.min()), int(array.max())
    if low < 0 or high > 65535:
        raise InputError(
            name, f"its values reach from {low} to {high}, beyond 0 to 65535", "Give 0 and 1, or 0 to 255."
        )
    return array.astype(np.uint8 if high <= 255 else np.uint16)


def _labelled(raster: Raster, name: str, label: Label) -> np.ndarray:
    if isinstance(label, tuple):
        colors = np.broadcast_to(raster.channels, (*raster.channels.shape[:2], 3))
        chosen = (colors == np.array(label)).all(axis=2)
    elif raster.indices is not None:
        chosen = raster.indices == label
    elif raster.channels.dtype == np.float32:
        raise MaskError(name, "has floating-point values and no labels", "Leave out `label`.")
    elif _is_colored(raster.channels):
        raise MaskError(name, f"has colours, and {label} is none", "Give the label as red, green and blue.")
    else:
        chosen = raster.channels[..., 0] == label
    if not chosen.any():
        raise MaskError(name, f"holds no pixel with the label {label}", _known_labels(raster))
    return chosen.astype(np.float32)


def _known_labels(raster: Raster) -> str:
    plane = raster.indices if raster.indices is not None else raster.channels
    if plane.ndim == 3 and _is_colored(plane):
        values = [str(tuple(color)) for color in _colors(plane)[:12].tolist()]
    else:
        values = [str(value) for value in np.unique(plane)[:12]]
    return f"It holds {', '.join(values)}."


def _read(raster: Raster, name: str) -> np.ndarray:
    """Turn a mask that is no label map into float32."""
    alpha = raster.alpha
    if alpha is not None and alpha.min() != alpha.max():
        return _scaled(alpha, name, lossy=False)
    channels = raster.channels
    if channels.shape[2] == 1:
        return _scaled(channels[..., 0], name, raster.lossy)
    if not _is_colored(channels):
        return _scaled(_luminance(channels), name, raster.lossy)
    colors = _colors(channels)
    foreground = [color for color in colors.tolist() if any(color)]
    if len(foreground) > 1 and len(colors) <= _MOST_LABELS:
        raise _IsLabelMap(f"is a label map of {len(colors)} colours", _known_labels(raster))
    if len(foreground) == 1 and len(colors) == 2:
        note(name, f"has one colour on black; the colour {tuple(foreground[0])} is taken for the foreground")
        return (channels == np.array(foreground[0])).all(axis=2).astype(np.float32)
    note(name, "is a colour picture, and its luminance is taken for the mask")
    return _scaled(_luminance(channels), name, raster.lossy)


def _is_colored(channels: np.ndarray) -> bool:
    if channels.shape[2] == 1:
        return False
    spread = channels.max(axis=2) - channels.min(axis=2)
    return bool((spread > _COLORED / 255 * white_of(channels.dtype)).mean() > _COLORED_SHARE)


def _colors(channels: np.ndarray) -> np.ndarray:
    """Return the distinct colours `(N, 3)`, of about a million pixels evenly taken from large pictures."""
    step = max(1, int((channels.shape[0] * channels.shape[1] / 1e6) ** 0.5))
    return np.unique(channels[::step, ::step].reshape(-1, 3), axis=0)


def _luminance(channels: np.ndarray) -> np.ndarray:
    return cv2.transform(np.ascontiguousarray(channels), np.array([_LUMA], np.float64))


def _scaled(plane: np.ndarray, name: str, lossy: bool) -> np.ndarray:
    """Map a plane of grey values to [0, 1]: hard masks by their two values, soft ones by the depth."""
    if plane.dtype == np.float32:
        return plane.copy()
    white = white_of(plane.dtype)
    counts = cv2.calcHist([np.ascontiguousarray(plane)], [0], None, [white + 1], [0, white + 1])
    counts = counts.ravel()  # OpenCV 4 returns a column, OpenCV 5 a row
    levels = np.flatnonzero(counts).tolist()
    if plane.dtype == np.uint16 and levels[-1] <= 255:
        white = 255
    foreground = [level for level in levels if level]
    if len(foreground) <= 1 and (levels[0] == 0 or levels[0] in (1, white)):
        if foreground and foreground[0] != white:
            note(name, f"has the values 0 and {foreground[0]}; {foreground[0]} is taken for the foreground")
        return _share_of(plane.astype(bool), 1)
    if lossy and _is_near_binary(counts):
        return _cleaned(plane, levels, name)
    _check_matte(plane, levels, white)
    if lossy:
        note(name, "is soft and of a lossy format: compression noise stays in it. PNG keeps masks exact")
    if white != white_of(plane.dtype):
        note(name, "has 16 bits a value but no value above 255; 255 is taken for the foreground")
    return _share_of(plane, white)


def _share_of(plane: np.ndarray, white: int) -> np.ndarray:
    """Divide by `white`, as float32; surroundings of the foreground are not written and need no memory."""
    mask = _zeros((plane.shape[0], plane.shape[1]))
    for rows in row_chunks(len(plane)):
        columns = np.flatnonzero(plane[rows].any(axis=0))
        if columns.size:
            window = rows, slice(columns[0], columns[-1] + 1)
            np.divide(plane[window], np.float32(white), out=mask[window], dtype=np.float32)
    return mask


def _zeros(shape: tuple[int, int]) -> np.ndarray:
    """Return zeros in float32 that take memory only where they are written."""
    size = 4 * shape[0] * shape[1]
    if sys.platform == "win32" or size < _LARGE_MASK:
        return np.zeros(shape, np.float32)
    # NumPy asks for pages of 2 MB, each of which holds whole rows.
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(memory, np.float32).reshape(shape)


def _is_near_binary(counts: np.ndarray) -> bool:
    near = counts[: _RINGING + 1].sum() + counts[255 - _RINGING :].sum()
    return bool(near >= _NEAR_BINARY * counts.sum()) and bool(counts[255 - _RINGING :].any())


def _cleaned(plane: np.ndarray, levels: list[int], name: str) -> np.ndarray:
    """Remove compression noise near black and white, and keep the values between as soft edges."""
    noise = min(max(_RINGING, _noise_beside_edges(plane)), 120)
    note(
        name,
        f"holds compression noise ({len(levels)} values); up to {noise} is taken for background and from "
        f"{255 - noise} for foreground. PNG keeps masks exact",
    )
    return ((plane.astype(np.float32) - noise) / np.float32(255 - 2 * noise)).clip(0, 1)


def _noise_beside_edges(plane: np.ndarray) -> int:
    """Measure how far values beside sharp edges are from black or white; 0 when the edges are soft."""
    square = np.ones((3, 3), np.uint8)
    foreground = (plane > 127).astype(np.uint8)
    edge = cv2.dilate(foreground, square) != cv2.erode(foreground, square)  # one pixel to both sides
    between = (plane > _RINGING) & (plane < 255 - _RINGING)
    if edge.all() or between.sum() > edge.sum():
        return 0
    return int(np.where(foreground, 255 - plane, plane)[~edge].max())


def _check_matte(plane: np.ndarray, levels: list[int], white: int) -> None:
    """Refuse label maps, and masks that are not between black and white.

    Raises:
        _IsLabelMap: The values are labels, or are all dark.
    """
    shown = ", ".join(map(str, levels[:12])) + (", …" if len(levels) > 12 else "")
    if len(levels) <= _MOST_LABELS:
        areas = _areas(plane, white)
        if len(areas) > 1 or any(area < white / 4 for area in areas):
            raise _IsLabelMap(f"looks like a label map with the values {shown}")
    if levels[-1] < white / 2:
        raise _IsLabelMap(f"has no value above {levels[-1]} of {white} (values {shown})")
    if len(levels) <= 2 and levels[0] > 0 and levels[0] != white:
        raise _IsLabelMap(f"has no background, only the value(s) {shown}")


def _areas(plane: np.ndarray, white: int) -> list[int]:
    """Return the values between black and white that fill areas and not only edges."""
    square = np.ones((3, 3), np.uint8)
    plane = np.ascontiguousarray(plane)
    flat = cv2.erode(plane, square) == cv2.dilate(plane, square)
    between = plane[flat & (plane > 0) & (plane < white)]
    values, counts = np.unique(between, return_counts=True)
    return values[counts > _AREA * np.count_nonzero(plane)].tolist()


def _resized(mask: np.ndarray, size: tuple[int, int], name: str, size_of: str, resize: bool) -> np.ndarray:
    if not resize:
        turned = mask.shape == size[::-1]
        fix = "One of them is turned by 90 degrees: turn it back." if turned else RESIZE_MASK
        raise size_mismatch(name, mask.shape, size_of, size, fix)
    stretch = mask.shape[0] * size[1] / (mask.shape[1] * size[0])
    if max(stretch, 1 / stretch) > _MOST_STRETCH:
        shapes = (f"{width}x{height}" for height, width in (mask.shape, size))
        note(name, f"is stretched from {' to '.join(shapes)}, of other proportions")
    hard = bool(((mask == 0) | (mask == 1)).all())
    method = cv2.INTER_NEAREST_EXACT if hard else cv2.INTER_LINEAR
    return cv2.resize(mask, size[::-1], interpolation=method)


def _note_oddities(mask: np.ndarray, name: str, *, inverted: bool) -> None:
    if not mask.any():
        note(name, "is empty: there is no foreground, and the picture stays as it is")
    elif mask.min() == 1:
        note(name, "covers the whole picture: there is no background to harmonize to")
    elif border := _border_of_inverted(mask > 0.5):
        other = "leave out `invert=True` (`--invert-mask`)"
        if not inverted:
            other = "use `load_mask(…, invert=True)` (`--invert-mask`)"
        kind = "foreground" if inverted else "background"
        note(
            name,
            f"marks {100 * (mask > 0.5).mean():.0f} % of the picture and touches {border}; if white is the "
            f"{kind}, {other}",
        )


def _border_of_inverted(foreground: np.ndarray) -> str:
    """Return which border a mask touches whose black part is an island, as foregrounds are; else nothing."""
    edges = (foreground[0], foreground[-1], foreground[:, 0], foreground[:, -1])
    share, all_edges = foreground.mean(), all(edge.any() for edge in edges)
    if share > 0.9 and all_edges:
        return "all its borders"
    most = share > 0.5 and np.concatenate(edges).mean() > _MOST_OF_BORDER
    return ("all its borders" if all_edges else "most of its border") if most else ""


def is_black_and_white(values: np.ndarray) -> bool:
    """Return True if nearly all pixels of a picture `(H, W, 3)` or mask `(H, W)` are black or white."""
    step = max(1, int((values.shape[0] * values.shape[1] / 1e6) ** 0.5))
    white_value = white_of(values.dtype)
    values = values[::step, ::step]
    # One channel of a photograph answers already; all three take sixty times as long.
    first, ringing = values[..., 0] if values.ndim == 3 else values, white_value * (_RINGING / 255)
    # Counting takes a tenth of the time of a mean.
    found = np.count_nonzero(first <= ringing), np.count_nonzero(first >= white_value - ringing)
    black, white = (number / max(1, first.size) for number in found)
    if min(black, white) <= _AREA / 4 or black + white <= _MOSTLY:
        return False
    if values.ndim == 2:
        return True
    channels = values.astype(np.float32) / white_value
    return bool((channels.max(axis=2) - channels.min(axis=2)).max() <= _COLORED / 255)
