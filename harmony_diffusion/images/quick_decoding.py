"""Pictures and masks of a training sample, decoded quickly to uint8 and checked."""

import functools
import io
import os
import zipfile
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from harmony_diffusion.errors import DecodeError, InputError, MaskError, SizeMismatchError
from harmony_diffusion.images.arrays import with_depth
from harmony_diffusion.images.decoding import open_regular, read_stream
from harmony_diffusion.images.exif import exif_and_xmp, orientation_of
from harmony_diffusion.images.file_signatures import TIFF_HEADS
from harmony_diffusion.images.sources import ArchiveMember, Content, Lazy, Source

MAX_PIXELS = 200_000_000
# How Pillow turns a picture upright, by its EXIF orientation.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


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
    image = _open(mask, None, is_mask=True)
    plane = np.asarray(image if image.mode == "L" else image.convert("L"))
    return plane * np.uint8(255) if plane.max() == 1 else plane


def _decode_picture(source: Source, shortest: int | None) -> tuple[np.ndarray, tuple[int, int]]:
    """Return the pixels, and the height and width of the file."""
    image = _open(source, shortest)
    pixels = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    return pixels, image.info["full_size"]


def _open(source: Source, shortest: int | None, is_mask: bool = False) -> Image.Image:
    try:
        with _open_file(source) as file:
            is_tiff = file.read(4) in TIFF_HEADS
            file.seek(0)
            if is_tiff:
                return _open_exactly(file, source, is_mask)
            image: Image.Image = Image.open(file)
            if image.mode[0] in "IF":
                return _open_exactly(file, source, is_mask)
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise DecodeError(source, f"has {width}x{height} pixels, more than is read")
            if shortest is not None:
                scale = max(1, min(width, height) // shortest)
                image.draft("RGB", (width // scale, height // scale))
            image.load()
            orientation = orientation_of(*exif_and_xmp(image.info))
            if orientation != 1:
                image = image.transpose(_TURNS[orientation])
    except InputError:
        raise
    except Exception as error:
        raise DecodeError(source, f"cannot be decoded: {error}") from error
    image.info["full_size"] = (width, height) if orientation >= 5 else (height, width)
    return image


def _open_exactly(file: BinaryIO, source: Source, is_mask: bool) -> Image.Image:
    """Decode files that Pillow alone decodes wrongly: deep values, and some layouts of TIFF."""
    file.seek(0)
    raster = read_stream(file, str(source), max_pixels=MAX_PIXELS, min_side=1)
    channels = raster.channels
    if is_mask and channels.dtype == np.uint16 and channels.max() <= 255:  # values of 8 bits
        channels = channels.astype(np.uint8)
    channels = with_depth(channels, np.uint8)
    image = Image.fromarray(np.ascontiguousarray(channels[..., 0] if channels.shape[2] == 1 else channels))
    image.info["full_size"] = channels.shape[:2]
    return image


def read_bytes(source: Source) -> bytes:
    """Return the content of a file, not decoded.

    Raises:
        InputError: It is missing, or no regular file.
    """
    with _open_file(source) as file:
        return file.read()


def _open_file(source: Source) -> BinaryIO:
    if isinstance(source, Content):
        return io.BytesIO(source.data)
    if isinstance(source, Lazy):
        return io.BytesIO(source.read())
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
