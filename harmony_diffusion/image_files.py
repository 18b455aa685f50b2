"""Picture files: decoded after their header is checked, encoded as whole files."""

import io
import os
import stat
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from harmony_diffusion.errors import DecodeError, InputError
from harmony_diffusion.image_arrays import Raster, check_size

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "AVIF", "GIF")


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file for reading; directories, devices and pipes are refused without touching them.

    Raises:
        InputError: There is no such regular file, or it may not be read.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise InputError(path, "is not a regular file", "Give the path of a picture file.")
        return open(path, "rb")
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise InputError(path, f"cannot be opened: {reason}", "Check the path.") from None


def read_file(path: str | os.PathLike[str], *, max_pixels: int, frame: int, allow_truncated: bool) -> Raster:
    """Decode a picture file.

    Raises:
        InputError: The file cannot be opened.
        DecodeError: It is no picture of a format that is read, or is damaged.
        TooLargeError: It has more than `max_pixels` pixels.
    """
    with open_regular(path) as file:
        try:
            image = Image.open(file, formats=FORMATS)
            check_size(path, image.height, image.width, max_pixels)
            image.load()
        except InputError:
            raise
        except Exception as error:
            raise DecodeError(path, f"cannot be decoded: {error}", "Give a picture file.") from error
        return raster_of_pil(image, str(path))


def raster_of_pil(image: Image.Image, name: str) -> Raster:
    """Split a Pillow image into colour and alpha."""
    if image.mode in ("LA", "PA") or "transparency" in image.info or image.mode == "RGBA":
        image = image.convert("RGBA")
    elif image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    pixels = np.asarray(image)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    color = 1 if pixels.shape[2] == 1 else 3
    alpha = pixels[..., 3] if pixels.shape[2] == 4 else None
    return Raster(pixels[..., :color], alpha)


def encode_pil(image: Image.Image, suffix: str, quality: int, **info: bytes) -> bytes:
    """Encode a Pillow image in the format that belongs to `suffix`."""
    buffer = io.BytesIO()
    image.save(buffer, Image.registered_extensions()[Path("a" + suffix).suffix], quality=quality, **info)
    return buffer.getvalue()
