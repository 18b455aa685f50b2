"""TIFF files of 8, 16 and 32 bits a channel; Pillow decodes the other kinds."""

import logging
import struct
import warnings
from typing import BinaryIO

import numpy as np
import tifffile
from PIL import Image

from harmony_diffusion.errors import DecodeError
from harmony_diffusion.images.arrays import (
    Raster,
    check_size,
    choose_frame,
    clamp_float,
    note,
    row_chunks,
    truncated_error,
    white_of,
)
from harmony_diffusion.images.exif import exif_of_tiff, settle_exif, upright
from harmony_diffusion.images.tiff_pixels import COMPRESSIONS, DEFLATE, LZW, read_pixels

# Keep tifffile's log of damaged files from the terminal; callers can still add a handler.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

_RAW_PHOTOMETRIC = (32803, 34892)  # colour filter array, linear raw
_ORIENTATION = 274
_DNG_VERSION = 50706
_ICC_PROFILE = 34675
_XMP = 700
# TIFF tag values (TIFF 6.0): photometric interpretation, compression, extra samples, planes.
_WHITE_IS_ZERO, _GREY, _RGB, _CMYK, _YCBCR = 0, 1, 2, 5, 6
_JPEG = (6, 7)
_PREMULTIPLIED, _STRAIGHT = 1, 2
_SEPARATE = 2
# Tags that say how the pixels are stored.
_LAYOUT = {256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 317, *range(322, 326), 338, 339, 530}
_DTYPES = (np.uint8, np.uint16, np.float16, np.float32, np.float64)


def read_tiff(
    file: BinaryIO,
    shown: str,
    *,
    frame: int,
    max_pixels: float,
    min_side: int,
    allow_truncated: bool | None,
    purpose: str,
) -> Raster | None:
    """Decode a page of a TIFF file, upright.

    Args:
        file: The open file.
        shown: Its name, for messages.
        frame: Which page, from 0.
        max_pixels: Limit of height times width.
        min_side: Shortest side accepted.
        allow_truncated: Leave black what lies beyond the end of the file.
        purpose: See `choose_frame`.

    Returns:
        The page; None where Pillow has to decode it: CMYK, palettes, fewer than 8 bits, JPEG.

    Raises:
        InputError: A page, size, depth or colour space that is not accepted.
        Exception: Anything, when the file is damaged.
    """
    with tifffile.TiffFile(file) as tiff:
        if not len(tiff.pages):
            raise truncated_error(shown, None)
        choose_frame(shown, len(tiff.pages), frame, purpose)
        page = tiff.pages[frame].aspage()
        check_size(shown, page.imagelength, page.imagewidth, max_pixels, min_side)
        _check_tags(page, file)
        if _is_raw(page):
            raise DecodeError(shown, "is a camera raw file", "Develop it to a 16-bit TIFF first.")
        if _is_for_pillow(page, shown):
            return None
        channels, alpha = _split(page, read_pixels(page, file, shown, allow_truncated=allow_truncated), shown)
        profile = page.tags.valueof(_ICC_PROFILE)
        orientation, exif = _tiff_exif(file, page, shown)
    return Raster(
        upright(channels, orientation),
        None if alpha is None else upright(alpha, orientation),
        bytes(profile) if profile else None,
        exif,
    )


def _check_tags(page: tifffile.TiffPage, file: BinaryIO) -> None:
    """Check that tifffile could read every tag of the layout; it leaves out damaged ones.

    Raises:
        ValueError: One is damaged.
    """
    order, big = page.parent.byteorder, page.parent.is_bigtiff
    count_form, entry_size = (order + "Q", 20) if big else (order + "H", 12)
    file.seek(page.offset)
    start = struct.calcsize(count_form)
    (count,) = struct.unpack(count_form, file.read(start))
    entries = file.read(min(count, 4096) * entry_size)
    stored = {
        struct.unpack_from(order + "H", entries, at)[0]
        for at in range(0, len(entries) - entry_size + 1, entry_size)
    }
    if damaged := sorted(tag for tag in stored & _LAYOUT if tag not in page.tags):
        raise ValueError(f"its tag {damaged[0]} cannot be read")


def _is_for_pillow(page: tifffile.TiffPage, shown: str) -> bool:
    """Return True for a page that Pillow decodes, False for one decoded here.

    Raises:
        DecodeError: Neither decodes its layout exactly.
    """
    bits, photometric, compression = page.bitspersample, int(page.photometric or 0), int(page.compression)
    readable = photometric in (_WHITE_IS_ZERO, _GREY, _RGB)
    if readable and bits >= 8 and compression in COMPRESSIONS:
        if page.dtype in _DTYPES and bits == 8 * page.dtype.itemsize:
            return False
        raise DecodeError(
            shown, f"has {bits} bits a channel of a kind that is not read", "Convert it to 8 or 16 bits."
        )
    if int(page.planarconfig or 1) == _SEPARATE and page.samplesperpixel > 1:
        raise DecodeError(
            shown,
            f"is a TIFF of colour type {photometric} with separate planes, which is not read",
            "Save it with interleaved channels.",
        )
    if photometric == _CMYK and bits == 16:
        note(shown, "is CMYK of 16 bits, and is reduced to 8 bits a channel")
    elif (bits > 8 and not readable) or (photometric == _YCBCR and compression not in _JPEG):
        raise DecodeError(
            shown, f"is a TIFF of colour type {photometric}, which is not read", "Convert it to RGB."
        )
    elif bits > 8:
        raise DecodeError(
            shown,
            f"is a TIFF compressed with {tifffile.COMPRESSION(compression).name}, not read beyond 8 bits",
            "Save it without compression, or with LZW or ZIP.",
        )
    if int(page.predictor) != 1 and compression not in (LZW, *DEFLATE):
        raise DecodeError(shown, "is a TIFF with a predictor that is not read", "Save it without one.")
    return True


def _is_raw(page: tifffile.TiffPage) -> bool:
    """Tell camera raw files, which hold the sensor's picture beside a thumbnail, from other TIFF files."""
    if _DNG_VERSION in page.tags or page.photometric in _RAW_PHOTOMETRIC:
        return True
    return any(sub.aspage().photometric in _RAW_PHOTOMETRIC for sub in page.pages or ())


def _tiff_exif(file: BinaryIO, page: tifffile.TiffPage, shown: str) -> tuple[int, bytes | None]:
    xmp = page.tags.valueof(_XMP)
    xmp = xmp if isinstance(xmp, bytes | str) else None
    if page.parent.is_bigtiff:  # Pillow does not read all of them
        orientation = page.tags.valueof(_ORIENTATION)
        return (orientation, None) if orientation in range(1, 9) else settle_exif(None, shown, xmp)
    found = Image.Exif()
    found.endian = page.parent.byteorder
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, about damaged entries
        found.load_from_fp(file, page.offset)
    return settle_exif(exif_of_tiff(found), shown, xmp)


def _split(page: tifffile.TiffPage, pixels: np.ndarray, shown: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Return channels `(H, W, 1 or 3)` and alpha, each uint8, uint16 or float32."""
    if np.issubdtype(pixels.dtype, np.floating):
        pixels = clamp_float(pixels, shown)
    colors = 3 if int(page.photometric) == _RGB else 1
    if pixels.shape[2] < colors:
        raise ValueError(f"it has {pixels.shape[2]} channels and should have {colors}")
    # A channel beyond the colours is alpha even where the tag that should say so is missing.
    extra = int(page.extrasamples[0]) if page.extrasamples else _STRAIGHT * (pixels.shape[2] == colors + 1)
    alpha = pixels[..., colors] if extra in (_PREMULTIPLIED, _STRAIGHT) else None
    channels = pixels[..., :colors]
    if alpha is not None and extra == _PREMULTIPLIED:
        channels = _divide_by_alpha(channels, alpha)
    if int(page.photometric) == _WHITE_IS_ZERO:
        channels = white_of(channels.dtype) - channels
    return channels, alpha


def _divide_by_alpha(channels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Undo premultiplication; where alpha is 0 there is no colour, and black stays."""
    straight = np.empty_like(channels)
    for rows in row_chunks(len(channels)):
        largest = float(white_of(channels.dtype))
        weight = np.maximum(alpha[rows].astype(np.float64), largest / 1e6)[..., None]
        values = np.minimum(channels[rows] * (largest / weight), largest)
        straight[rows] = values if channels.dtype == np.float32 else np.rint(values)
    return straight
