"""Picture files, decoded after their header is checked; and Pillow images, from a file or a caller.

Pillow's plugins are called one by one and not through `Image.open`: the format is told by our own look at the
file, only the formats listed here are ever tried, and the limit of pixels is the caller's and not Pillow's
global one.
"""

import errno
import logging
import os
import stat
import warnings
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageFile
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from harmony_diffusion.errors import DecodeError, HarmonyError, InputError, InputNote, TooLargeError
from harmony_diffusion.images.arrays import (
    MIN_SIDE,
    Raster,
    check_size,
    choose_frame,
    clamp_float,
    note,
    row_chunks,
    truncated_error,
)
from harmony_diffusion.images.exif import exif_and_xmp, exif_of_tiff, settle_exif, upright
from harmony_diffusion.images.file_signatures import HEAD, avif_is_deep, picture_format, webp_size
from harmony_diffusion.images.icc import cmyk_to_rgb
from harmony_diffusion.images.png16_files import read_png16
from harmony_diffusion.images.tiff_files import read_tiff

# Keep Pillow's log of damaged files from the terminal; callers can still add a handler.
logging.getLogger("PIL").addHandler(logging.NullHandler())

_PLUGINS: dict[str, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "WEBP": WebPImageFile,
    "TIFF": TiffImageFile,
    "BMP": BmpImageFile,
    "AVIF": AvifImageFile,
    "GIF": GifImageFile,
}
_EIGHT_BITS = ("L", "LA", "RGB", "RGBA", "RGBX", "RGBa")
_REASONS = {
    errno.ENOENT: ("does not exist", "Check the path."),
    errno.EACCES: ("permission denied", "Change the permissions of the file, or copy it."),
    errno.EPERM: ("permission denied", "Change the permissions of the file, or copy it."),
    errno.ENOTDIR: ("a part of the path is a file, not a folder", "Check the path."),
    errno.ELOOP: ("the path is a loop of symbolic links", "Check the links."),
    errno.ENAMETOOLONG: ("the name is too long for the file system", "Check the path."),
}
_KINDS = (
    (stat.S_ISDIR, "is a folder, not a {} file"),
    (stat.S_ISFIFO, "is a pipe, and only regular files are read"),
    (stat.S_ISCHR, "is a device, and only regular files are read"),
    (stat.S_ISBLK, "is a device, and only regular files are read"),
    (stat.S_ISSOCK, "is a socket, and only regular files are read"),
)


def open_regular(path: str | os.PathLike[str], kind: str = "picture") -> BinaryIO:
    """Open a file for reading; folders, pipes and devices are refused without waiting for them.

    Args:
        path: A regular file.
        kind: What the file should be, for messages.

    Raises:
        InputError: There is no such regular file, or it may not be read.
    """
    shown = os.fsdecode(path)
    try:
        _check_kind(os.stat(path).st_mode, shown, kind)
        # Not blocking, and looked at once more: the path may have become a pipe in between.
        file = open(path, "rb", opener=_open_without_waiting)
        _check_kind(os.fstat(file.fileno()).st_mode, shown, kind)
        return file
    except OSError as error:
        if error.errno == errno.ENOENT and shown.partition("://")[0] in ("http", "https", "ftp", "s3", "hf"):
            raise InputError(
                shown, "is an address, and nothing is downloaded", "Download it first."
            ) from None
        reason, fix = _REASONS.get(error.errno or 0, (error.strerror or str(error), "Check the path."))
        raise InputError(shown, reason, fix) from None
    except InputError:
        raise
    except ValueError as error:  # a NUL character
        raise InputError(repr(shown), f"is no path: {error}", "Check the path.") from None


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _check_kind(mode: int, shown: str, kind: str) -> None:
    for is_kind, reason in _KINDS:
        if is_kind(mode):
            raise InputError(shown, reason.format(kind), f"Give the path of a {kind} file.")


def read_file(
    path: str | os.PathLike[str],
    *,
    max_pixels: float,
    frame: int = 0,
    allow_truncated: bool | None = False,
    min_side: int = MIN_SIDE,
    purpose: str = "picture",
) -> Raster:
    """Decode a picture file, upright.

    Args:
        path: A regular file.
        max_pixels: Limit of height times width, checked before anything is decoded.
        frame: Which picture to take of an animation or of a file of several pages, from 0.
        allow_truncated: Accept a file of which the end is missing; what is missing is filled by the decoder.
            None = do not, and do not offer it.
        min_side: Shortest side accepted.
        purpose: See `choose_frame`.

    Raises:
        InputError: The file cannot be opened, has no such frame, or its values cannot be used.
        DecodeError: It is no picture of a format that is read, or is damaged.
        TooLargeError: It has more than `max_pixels` pixels.
    """
    with open_regular(path) as file:
        return read_stream(
            file,
            os.fsdecode(path),
            max_pixels=max_pixels,
            frame=frame,
            allow_truncated=allow_truncated,
            min_side=min_side,
            purpose=purpose,
        )


def read_stream(
    file: BinaryIO,
    shown: str,
    *,
    max_pixels: float,
    frame: int = 0,
    allow_truncated: bool | None = False,
    min_side: int = MIN_SIDE,
    purpose: str = "picture",
) -> Raster:
    """Decode a picture from an open file or from memory; see `read_file`."""
    head = file.read(HEAD)
    kind = picture_format(head, shown)
    file.seek(0)
    is_png16 = kind == "PNG" and head[24:25] == b"\x10"
    raster = None
    try:
        if kind == "TIFF":
            raster = read_tiff(
                file,
                shown,
                frame=frame,
                max_pixels=max_pixels,
                min_side=min_side,
                allow_truncated=allow_truncated,
                purpose=purpose,
            )
        elif is_png16:
            raster = read_png16(file, shown, frame, max_pixels, min_side, purpose)
        elif kind == "WEBP" and (size := webp_size(head)):
            check_size(shown, *size, max_pixels, min_side)
        elif kind == "AVIF" and avif_is_deep(head):
            note(shown, "has more than 8 bits a channel, and is reduced to 8")
        if raster is None:
            file.seek(0)
            image = _open_with_pillow(file, kind, shown, max_pixels, min_side)
            if kind != "TIFF":
                choose_frame(shown, getattr(image, "n_frames", 1), frame, purpose)
            if frame:
                image.seek(frame)
                check_size(shown, image.height, image.width, max_pixels, min_side)
            _load(image, shown, allow_truncated)
            raster = raster_of_pil(image, shown, lossy=_is_lossy(kind, head, image))
        return raster
    except (HarmonyError, InputNote):
        raise
    except Image.DecompressionBombError as error:
        raise TooLargeError(shown, f"is refused by Pillow: {error}", "Give a smaller picture.") from error
    except Exception as error:  # a damaged file makes the decoders raise almost anything
        raise _decode_error(shown, error, None if allow_truncated or is_png16 else allow_truncated) from error


def _decode_error(shown: str, error: Exception, allow_truncated: bool | None = None) -> DecodeError:
    text = " ".join(str(error).split()) or type(error).__name__
    if "truncated" in text.lower():
        return truncated_error(shown, allow_truncated)
    return DecodeError(
        shown, f"is damaged and cannot be decoded ({text})", "Copy or download the file again."
    )


def _open_with_pillow(
    file: BinaryIO, kind: str, shown: str, max_pixels: float, min_side: int
) -> ImageFile.ImageFile:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, about damaged tags
        image = _PLUGINS[kind](file)
    check_size(shown, image.height, image.width, max_pixels, min_side)
    return image


def _load(image: ImageFile.ImageFile, shown: str, allow_truncated: bool | None) -> None:
    try:
        image.load()
    except OSError as error:
        if "truncated" not in str(error):
            raise
        if not allow_truncated:
            raise truncated_error(shown, allow_truncated) from error
        # What was decoded stays in the image; without tiles left to decode, Pillow hands it out.
        image.tile = []
        note(shown, "is truncated, and the part that is missing is filled")


def _is_lossy(kind: str, head: bytes, image: Image.Image) -> bool:
    if kind == "WEBP":
        return b"VP8L" not in head[:64]
    return kind in ("JPEG", "AVIF") or image.info.get("compression") == "jpeg"


def read_pil(image: Image.Image, name: str, *, max_pixels: float, min_side: int = MIN_SIDE) -> Raster:
    """Take the pixels of a Pillow image that a caller has opened or made, upright.

    Raises:
        InputError: A size, values or a colour space that cannot be used.
        DecodeError: The file behind it is damaged.
        TooLargeError: It has more than `max_pixels` pixels.
    """
    check_size(name, image.height, image.width, max_pixels, min_side)
    if getattr(image, "n_frames", 1) > 1:
        note(name, f"has {image.n_frames} frames, and the one it stands at is taken")  # type: ignore[attr-defined]
    if image.mode in ("RGB", "RGBA") and any(";16" in str(tile[3]) for tile in getattr(image, "tile", ())):
        note(name, "has 16 bits a channel, which Pillow reduces to 8; give its path to keep them")
    try:
        raster = _tiff_of_pil(image, name, max_pixels, min_side)
        if raster is not None:
            return raster
        image.load()
        return raster_of_pil(image, name)
    except (HarmonyError, InputNote):
        raise
    except Exception as error:  # a damaged file makes the decoders raise almost anything
        raise _decode_error(name, error) from error


def _tiff_of_pil(image: Image.Image, name: str, max_pixels: float, min_side: int) -> Raster | None:
    """Decode the 8-bit TIFF file behind an image that is not loaded yet; Pillow gets some layouts wrong."""
    file = getattr(image, "fp", None)
    if (
        not isinstance(image, TiffImageFile)
        or not image.tile
        or file is None
        or image.mode not in _EIGHT_BITS
    ):
        return None
    if any(";16" in str(tile[3]) for tile in image.tile):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InputNote)  # about its frames
        file.seek(0)
        return read_tiff(
            file,
            name,
            frame=image.tell(),
            max_pixels=max_pixels,
            min_side=min_side,
            allow_truncated=None,
            purpose="picture",
        )


def raster_of_pil(image: Image.Image, name: str, *, lossy: bool | None = None) -> Raster:
    """Split a decoded Pillow image into colour and alpha, and turn it upright.

    Args:
        image: Any mode; it is not changed.
        name: For messages.
        lossy: Whether the file format may have added noise; None = judge by the image's own format.

    Raises:
        InputError: Values or a colour space that cannot be used.
    """
    channels, alpha, indices = _split(image, name)
    profile = image.info.get("icc_profile") or None
    if isinstance(image, TiffImageFile):  # Pillow has turned it upright already
        orientation, exif = settle_exif(exif_of_tiff(image.getexif()), name)
    else:
        block, xmp = exif_and_xmp(image.info)
        orientation, exif = settle_exif(block, name, xmp)
    return Raster(
        upright(channels, orientation),
        None if alpha is None else upright(alpha, orientation),
        None if image.mode == "CMYK" else profile,
        exif,
        None if indices is None else upright(indices, orientation),
        image.format in ("JPEG", "AVIF") if lossy is None else lossy,
    )


def _split(image: Image.Image, name: str) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Return channels `(H, W, 1 or 3)`, alpha and palette indices, each `(H, W)` or None."""
    mode = image.mode
    indices = None
    if mode in ("P", "PA"):
        indices = np.array(image.getchannel(0) if mode == "PA" else image)
        image = image.convert("RGBA" if mode == "PA" or "transparency" in image.info else "RGB")
    elif mode.startswith("I") or mode == "F":
        return *_deep_grey(image, name), None
    elif mode in ("La", "RGBa"):
        image = image.convert(mode.upper())
    elif mode in ("1", "L", "RGB") and "transparency" in image.info:
        image = image.convert("RGBA" if mode == "RGB" else "LA")
    elif mode == "1":
        image = image.convert("L")
    elif mode == "CMYK":
        image = _rgb_of_cmyk(image, name)
    elif mode in ("YCbCr", "HSV", "RGBX"):
        image = image.convert("RGB")
    elif mode not in ("L", "LA", "RGB", "RGBA"):
        raise InputError(name, f"is of the colour mode {mode!r}, which is not read", "Convert it to RGB.")
    pixels = _array_of(image)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    colors = 3 if pixels.shape[2] >= 3 else 1
    return pixels[..., :colors], pixels[..., colors] if pixels.shape[2] > colors else None, indices


def _array_of(image: Image.Image) -> np.ndarray:
    """Return `np.array(image)` of 8 bits, without a second copy of the whole picture on the way."""
    bands = len(image.getbands())
    shape = (image.height, image.width)
    array = np.empty(shape if bands == 1 else (*shape, bands), np.uint8)
    for rows in row_chunks(image.height, 256):
        array[rows] = np.asarray(image.crop((0, rows.start, image.width, rows.stop)))
    return array


def _deep_grey(image: Image.Image, name: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Return one channel of 16 bits or floating point, and the alpha that a transparent value makes."""
    values = np.array(image)
    if image.mode == "F":
        return clamp_float(values, name)[..., None], None
    if values.min() < 0 or values.max() > 65535:
        raise InputError(
            name, f"its values reach from {values.min()} to {values.max()}, beyond 16 bits", "Scale them."
        )
    values = values.astype(np.uint16)
    transparent = image.info.get("transparency")
    if transparent is None:
        return values[..., None], None
    return values[..., None], np.where(values == transparent, 0, 65535).astype(np.uint16)


def _rgb_of_cmyk(image: Image.Image, name: str) -> Image.Image:
    reason = "it has no colour profile"
    if profile := image.info.get("icc_profile"):
        try:
            converted = cmyk_to_rgb(image, profile)
        except ValueError as error:
            reason = f"its colour profile cannot be used: {error}"
        else:
            note(name, "is CMYK, and is converted to sRGB with its colour profile")
            return converted
    note(name, f"is CMYK, and is converted to RGB without colour management, as {reason}")
    return image.convert("RGB")
