"""Pictures and masks of a training sample, decoded quickly to uint8 and checked."""

import functools
import io
import os
import zipfile
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from harmony_diffusion.errors import DecodeError, InputError, MaskError, SizeMismatchError
from harmony_diffusion.images.decoding import open_regular
from harmony_diffusion.images.sources import ArchiveMember, Content, Source

MAX_PIXELS = 200_000_000
_ORIENTATION = 0x0112


def read_pair(
    picture: Source, mask: Source, *, shortest: int | None = None, resize_mask: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Decode a picture and the mask that belongs to it.

    Args:
        picture: The file.
        mask: The file; white on the foreground.
        shortest: A JPEG may be decoded at 1/2, 1/4 or 1/8 of its size as long as its short side keeps this
            many pixels, and the mask with it; None for the full size.
        resize_mask: Scale a mask of another size; Open Images distributes such ones.

    Returns:
        `(H, W, 3)` and `(H, W)`, both uint8.

    Raises:
        InputError: A file is missing, damaged or too large, the sizes differ, or the mask is empty.
    """
    pixels, size = _decode_picture(picture, shortest)
    plane = read_mask(mask)
    if plane.shape != size and not resize_mask:
        raise SizeMismatchError(
            mask, f"is {plane.shape[1]}x{plane.shape[0]}, its picture is {size[1]}x{size[0]}"
        )
    if plane.shape != pixels.shape[:2]:
        scaled = Image.fromarray(plane).resize(pixels.shape[1::-1], Image.Resampling.BILINEAR)
        plane = np.where(np.asarray(scaled) >= 128, np.uint8(255), np.uint8(0))
    if not (plane > 127).any():
        raise MaskError(mask, "is empty: no pixel is foreground")
    return pixels, plane


def read_picture(picture: Source) -> np.ndarray:
    """Decode a picture, upright, to `(H, W, 3)` uint8.

    Raises:
        InputError: The file is missing, damaged or too large.
    """
    return _decode_picture(picture, None)[0]


def read_mask(mask: Source) -> np.ndarray:
    """Decode a mask to `(H, W)` uint8, 255 on the foreground; a file of 0 and 1 alone is scaled.

    Raises:
        InputError: The file is missing, damaged or too large.
    """
    image = _open(mask, None)
    plane = np.asarray(image if image.mode == "L" else image.convert("L"))
    return plane * np.uint8(255) if plane.max() == 1 else plane


def _decode_picture(source: Source, shortest: int | None) -> tuple[np.ndarray, tuple[int, int]]:
    """Return the pixels, and the height and width of the file."""
    image = _open(source, shortest)
    pixels = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    return pixels, image.info["full_size"]


def _open(source: Source, shortest: int | None) -> Image.Image:
    try:
        with _open_file(source) as file:
            image = Image.open(file)
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise DecodeError(source, f"has {width}x{height} pixels, more than is read")
            if shortest is not None:
                scale = max(1, min(width, height) // shortest)
                image.draft("RGB", (width // scale, height // scale))
            image.load()
            orientation = image.getexif().get(_ORIENTATION, 1)
            if orientation != 1:
                ImageOps.exif_transpose(image, in_place=True)
    except InputError:
        raise
    except Exception as error:
        raise DecodeError(source, f"cannot be decoded: {error}") from error
    image.info["full_size"] = (width, height) if orientation >= 5 else (height, width)
    return image


def _open_file(source: Source) -> BinaryIO:
    if isinstance(source, Content):
        return io.BytesIO(source.data)
    if isinstance(source, ArchiveMember):
        try:
            return io.BytesIO(_archive(source.archive, os.getpid()).read(source.member))
        except KeyError:
            raise InputError(source, "is missing") from None
    return open_regular(source)


@functools.lru_cache(maxsize=64)
def _archive(path: Path, process: int) -> zipfile.ZipFile:
    """Keep archives open, for their directories are long; but not across a fork, which shares positions."""
    return zipfile.ZipFile(open_regular(path))
