"""NumPy arrays and torch tensors that callers hand over, checked and laid out as `(H, W, C)`.

Nothing here imports PyTorch: a tensor can only come from a caller who has.
"""

import contextlib
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeGuard

import cv2
import numpy as np

from harmony_diffusion.errors import (
    DecodeError,
    InputError,
    InputNote,
    InputTypeError,
    SizeMismatchError,
    TooLargeError,
)

if TYPE_CHECKING:
    import torch

MIN_SIDE = 16
MAX_PIXELS = 100_000_000


@dataclass(frozen=True, eq=False)
class Raster:
    """Pixels as a file or an array holds them.

    Attributes:
        channels: `(H, W, 1)` grey or `(H, W, 3)` RGB; uint8, uint16 or float32 in [0, 1]; upright.
        alpha: `(H, W)` of the same dtype, None without transparency.
        profile: ICC profile of the pixels.
        exif: EXIF block, orientation 1.
        indices: `(H, W)` palette indices of a picture that has a palette; a label map keeps its labels there.
        lossy: Whether the file format may have added noise to the values.
    """

    channels: np.ndarray
    alpha: np.ndarray | None = None
    profile: bytes | None = None
    exif: bytes | None = None
    indices: np.ndarray | None = None
    lossy: bool = False


def is_tensor(source: object) -> "TypeGuard[torch.Tensor]":
    """Return True for a torch tensor."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(source, torch.Tensor)


def note(subject: object, text: str) -> None:
    """Warn with an `InputNote` about the picture or mask called `subject`."""
    warnings.warn(f"{subject}: {text}", InputNote, stacklevel=3)


def check_size(name: object, height: int, width: int, max_pixels: float, min_side: int = MIN_SIDE) -> None:
    """Reject pictures that are too large to be meant or too small to hold anything.

    Raises:
        TooLargeError: More than `max_pixels` pixels.
        InputError: A side shorter than `min_side`.
    """
    if height * width > max_pixels:
        raise TooLargeError(
            name,
            f"has {width}x{height} = {height * width / 1e6:.1f} million pixels, "
            f"more than the limit of {max_pixels / 1e6:g} million",
            "If it is meant, raise the limit with `load_picture(…, max_pixels=…)` (`--max-pixels`).",
        )
    if min(height, width) < min_side:
        raise InputError(
            name,
            f"is {width}x{height} pixels, and a side must have at least {min_side}",
            "Give a larger picture.",
        )


def size_mismatch(
    name: object, size: tuple[int, ...], other: object, other_size: tuple[int, int], fix: str = ""
) -> SizeMismatchError:
    """Return the error of two pictures or masks whose heights and widths must agree and do not."""
    shown, expected = (f"{width}x{height}" for height, width, *_ in (size, other_size))
    return SizeMismatchError(name, f"is {shown} pixels, but {other} is {expected}", fix)


def choose_frame(shown: str, count: int, frame: int, purpose: str = "picture") -> None:
    """Check that a file has the frame that is wanted, and note that it has others.

    Args:
        shown: Name of the file, for messages.
        count: Frames it has.
        frame: The one that is wanted, from 0.
        purpose: What it is taken for: a "picture", of which the caller can choose a frame, or a "mask".

    Raises:
        InputError: There is no such frame.
    """
    if not 0 <= frame < count:
        raise InputError(shown, f"has {count} frame(s), and no frame {frame}", "Frames are counted from 0.")
    if count > 1 and frame == 0:
        choice = "; choose with `load_picture(…, frame=…)` (`--frame`)" if purpose == "picture" else ""
        note(shown, f"has {count} frames, and the first is taken{choice}")


def truncated_error(shown: str, allow_truncated: bool | None) -> DecodeError:
    """Return the error about a file of which the end is missing.

    Args:
        shown: Name of the file.
        allow_truncated: False where the caller could allow it, None where that would not help.
    """
    again = "Copy or download the file again"
    if allow_truncated is not None:
        again += (
            ", or read the intact part with `load_picture(…, allow_truncated=True)` (`--allow-truncated`)"
        )
    return DecodeError(shown, "is truncated: the end of the file is missing", f"{again}.")


@contextlib.contextmanager
def silent_opencv() -> Iterator[None]:
    """Keep OpenCV from printing about damaged files to the terminal."""
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(level)


def row_chunks(height: int, rows: int = 64) -> Iterator[slice]:
    """Yield slices of at most `rows` rows that cover a picture, for work that needs copies."""
    for start in range(0, height, rows):
        yield slice(start, min(start + rows, height))


def white_of(dtype: np.dtype) -> int:
    """Return the value of white: 255, 65535, or 1 for floating point."""
    return 1 if np.issubdtype(dtype, np.floating) else int(np.iinfo(dtype).max)


def with_depth(values: np.ndarray, dtype: type[np.generic]) -> np.ndarray:
    """Convert between uint8, uint16 and float32 in [0, 1], rounding to nearest.

    Returns:
        An array of the same shape; `values` itself when it has the dtype already.
    """
    if values.dtype == dtype:
        return values
    converted = np.empty(values.shape, dtype)
    scale = np.float64(white_of(converted.dtype)) / white_of(values.dtype)
    for rows in row_chunks(len(values)):
        scaled = values[rows] * scale
        converted[rows] = scaled if converted.dtype == np.float32 else np.rint(scaled)
    return converted


def array_of(source: "np.ndarray | torch.Tensor", name: str) -> np.ndarray:
    """Return a picture or mask as an array with channels last, without copying where possible.

    Args:
        source: Array `(H, W)`, `(H, W, C)` or `(1, H, W, C)`; tensor `(H, W)`, `(C, H, W)` or `(1, C, H, W)`.
        name: For messages.

    Returns:
        `(H, W)` or `(H, W, C)`.
    """
    if is_tensor(source):
        array = _array_of_tensor(source, name)
        array = array[0] if array.ndim == 4 and len(array) == 1 else array
        _check_axes(array, name, "`(C, H, W)` or `(1, C, H, W)`")
        if array.ndim == 3:
            if array.shape[0] not in (1, 2, 3, 4):
                hint = "Permute it to `(C, H, W)`." if array.shape[2] in (1, 3, 4) else ""
                raise InputError(name, f"a tensor of shape {tuple(source.shape)} is not `(C, H, W)`", hint)
            array = np.moveaxis(array, 0, 2)
        return array
    array = np.asarray(source)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    array = array[0] if array.ndim == 4 and len(array) == 1 else array
    _check_axes(array, name, "`(H, W)` or `(H, W, C)`")
    return array


def _array_of_tensor(source: "torch.Tensor", name: str) -> np.ndarray:
    try:
        tensor = source.detach().cpu()
        if str(tensor.dtype) == "torch.bfloat16":
            tensor = tensor.float()
        return tensor.resolve_conj().resolve_neg().numpy()
    except (TypeError, RuntimeError, NotImplementedError) as error:
        raise InputTypeError(
            name,
            f"a tensor of {source.dtype} on {source.device} ({source.layout}) is not read",
            "Give a dense tensor of float32 or uint8.",
        ) from error


def _check_axes(array: np.ndarray, name: str, expected: str) -> None:
    if array.ndim == 4 and len(array) > 1:
        raise InputError(
            name,
            f"is a batch of {len(array)}, one picture is expected",
            "Give one picture, or use `load_pairs` for batches.",
        )
    if array.ndim not in (2, 3):
        raise InputError(name, f"has shape {array.shape}", f"Give an array of shape {expected}.")


def picture_of_array(source: "np.ndarray | torch.Tensor", name: str, max_pixels: float) -> Raster:
    """Check an array or tensor that is to be a picture.

    Args:
        source: Array `(H, W)` or `(H, W, C)`, or tensor `(C, H, W)` or `(1, C, H, W)`, with 1 to 4 channels
            (grey, grey and alpha, RGB, RGB and alpha); uint8, uint16 or floating point in [0, 1].
        name: For messages.
        max_pixels: Limit of height times width.

    Raises:
        InputError: Wrong shape, dtype or range.
    """
    array = array_of(source, name)
    array = array[..., None] if array.ndim == 2 else array
    if array.shape[2] not in (1, 2, 3, 4):
        hint = "Give `(H, W, C)`."
        if array.shape[0] in (1, 3, 4):
            hint = "It looks like `(C, H, W)`: move the channels last, or give a torch tensor."
        raise InputError(name, f"an array of shape {array.shape} is not `(H, W, C)`", hint)
    check_size(name, array.shape[0], array.shape[1], max_pixels)
    array = _picture_values(array, name)
    color = 3 if array.shape[2] >= 3 else 1
    alpha = array[..., color] if array.shape[2] > color else None
    return Raster(array[..., :color], alpha)


def _picture_values(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype in (np.uint8, np.uint16):
        return array
    if not np.issubdtype(array.dtype, np.floating):
        raise InputTypeError(
            name,
            f"values of type {array.dtype} are not accepted",
            "Give uint8, uint16, or floating point in [0, 1].",
        )
    return clamp_float(array, name, largest=2.0)


def clamp_float(array: np.ndarray, name: object, largest: float | None = None) -> np.ndarray:
    """Return floating-point values as float32 in [0, 1], clamped with a note.

    Args:
        array: Any shape.
        name: For messages.
        largest: Values above it (or below `1 - largest`) mean that the range is not [0, 1] at all; None, for
            files with highlights beyond white: that most values lie outside means it.

    Raises:
        InputError: NaN, or another range.
    """
    low, high = float(array.min()), float(array.max())
    if np.isnan(low) or np.isnan(high):
        raise InputError(name, "holds NaN (undefined values)", "Replace them first.")
    if low >= 0 and high <= 1:
        return array.astype(np.float32, copy=False)
    outside = float(((array < 0) | (array > 1)).mean())
    if outside > 0.5 if largest is None else (high > largest or low < 1 - largest):
        fix = "Divide by 255." if 2 < high <= 255 and low >= 0 else "Scale the values to 0 to 1."
        raise InputError(name, f"floating-point values reach from {low:g} to {high:g}, not from 0 to 1", fix)
    note(name, f"values from {low:g} to {high:g} are clamped to 0 to 1 ({100 * outside:.2g} % of them)")
    return array.astype(np.float32).clip(0, 1)
