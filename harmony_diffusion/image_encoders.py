"""Pictures written to files: the format told by the suffix, colour profile and EXIF data kept."""

import os
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
import tifffile
from PIL import Image

from harmony_diffusion.errors import OutputError
from harmony_diffusion.exif import (
    DESCRIPTIVE_TAGS,
    ByteOrder,
    Entry,
    directory_bytes,
    directory_entries,
)
from harmony_diffusion.image_arrays import Raster, note, row_chunks, with_depth

FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WEBP",
    ".avif": "AVIF",
    ".bmp": "BMP",
}
_LARGEST_SIDE = {"JPEG": 65500, "WEBP": 16383, "AVIF": 65536}
_LARGEST_JPEG_EXIF = 65533
_PNG_COLOR = {3: 2, 4: 6}  # samples a pixel -> colour type
_ASCII = 2  # entry type of text
_FORMS = {3: "H", 5: "II"}  # entry type -> its `struct` format
_RESOLUTION = ((0x011A, 5), (0x011B, 5), (0x0128, 3))  # across, down, unit, with their entry types


def format_of(path: str | os.PathLike[str], *, alpha: bool = False, profile: bool = False) -> str:
    """Tell the format to write by the suffix of a path.

    Args:
        path: File to be written.
        alpha: Whether the picture is transparent somewhere.
        profile: Whether its pixels are those of a colour profile.

    Returns:
        A value of `FORMATS`.

    Raises:
        OutputError: No format is written under that suffix, or it cannot hold the picture.

    Example:
        >>> format_of("result.JPG")
        'JPEG'
    """
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        reason = f"no picture format that is written has the suffix {suffix!r}" if suffix else "has no suffix"
        raise OutputError(path, reason, f"Choose one of {', '.join(FORMATS)}.")
    kind = FORMATS[suffix]
    if alpha and kind in ("JPEG", "BMP"):
        raise OutputError(
            path,
            f"{kind} holds no transparency, and what is hidden would show",
            "Save it as PNG, TIFF, WebP or AVIF.",
        )
    if profile and kind == "BMP":
        raise OutputError(path, "BMP holds no colour profile", "Save it as PNG, TIFF or JPEG.")
    return kind


def write_picture(file: BinaryIO, kind: str, raster: Raster, *, name: str, quality: int) -> None:
    """Encode a picture into an open file.

    PNG and TIFF keep 16 bits, TIFF keeps floating point (PNG: as 16 bits); the other formats have 8.

    Args:
        file: Open for reading and writing, empty.
        kind: A value of `FORMATS`.
        raster: RGB pixels with what belongs to them.
        name: For messages.
        quality: 1 to 100, for JPEG, WebP (100 = lossless) and AVIF.

    Raises:
        OutputError: The format cannot hold a picture of this size.
    """
    height, width, _ = raster.channels.shape
    if max(height, width) > _LARGEST_SIDE.get(kind, height + width):
        raise OutputError(
            name,
            f"{kind} holds sides up to {_LARGEST_SIDE[kind]}, the picture is {width}x{height}",
            "Save it as PNG or TIFF.",
        )
    if kind == "TIFF":
        _write_tiff(file, raster)
    elif kind == "PNG" and raster.channels.dtype != np.uint8:
        _write_png16(file, raster)
    else:
        if raster.channels.dtype != np.uint8:
            note(name, f"{kind} holds 8 bits a channel, and {raster.channels.dtype} is reduced to them")
        _write_with_pillow(file, kind, raster, name, quality)


def pil_of(pixels: np.ndarray, alpha: np.ndarray | None) -> Image.Image:
    """Return an 8-bit RGB or RGBA Pillow image with its own memory."""
    pixels = with_depth(pixels, np.uint8)
    if alpha is not None:
        pixels = np.dstack((pixels, with_depth(alpha, np.uint8)))
    return Image.fromarray(np.ascontiguousarray(pixels))


def _write_with_pillow(file: BinaryIO, kind: str, raster: Raster, name: str, quality: int) -> None:
    exif = raster.exif
    options: dict[str, object] = {"icc_profile": raster.profile} if raster.profile else {}
    if exif and kind == "JPEG" and len(exif) > _LARGEST_JPEG_EXIF:
        note(name, "its EXIF data are larger than JPEG allows, and are dropped")
    elif exif and kind == "BMP":
        note(name, "BMP holds no EXIF data, and they are dropped")
    elif exif:
        options["exif"] = exif
    if kind == "JPEG":
        options.update(quality=quality, subsampling=0 if quality >= 90 else 2)
    elif kind == "WEBP":
        options.update(quality=quality, lossless=quality == 100, exact=True, method=4)
    elif kind == "AVIF":
        options.update(quality=quality, subsampling="4:4:4" if quality >= 90 else "4:2:0")
    pil_of(raster.channels, raster.alpha).save(file, kind, **options)


def _write_png16(file: BinaryIO, raster: Raster) -> None:
    """Write a PNG file of 16 bits a channel, a few rows at a time (PNG specification, third edition)."""
    height, width, _ = raster.channels.shape
    samples = 3 if raster.alpha is None else 4
    file.write(b"\x89PNG\r\n\x1a\n")
    _write_chunk(file, b"IHDR", struct.pack(">IIBBBBB", width, height, 16, _PNG_COLOR[samples], 0, 0, 0))
    if raster.profile:
        _write_chunk(file, b"iCCP", b"ICC profile\0\0" + zlib.compress(raster.profile))
    if raster.exif:
        _write_chunk(file, b"eXIf", raster.exif[6:])
    stream = zlib.compressobj(4)
    for rows in row_chunks(height):
        window = _interleaved(raster, rows, np.uint16)
        plain = window.astype(">u2").view(np.uint8).reshape(len(window), -1)
        filtered = np.empty((len(plain), plain.shape[1] + 1), np.uint8)
        filtered[:, 0] = 1  # filter "Sub": each byte minus that of the pixel to the left
        filtered[:, 1:] = plain
        filtered[:, 1 + 2 * samples :] -= plain[:, : -2 * samples]
        if data := stream.compress(filtered.tobytes()):
            _write_chunk(file, b"IDAT", data)
    _write_chunk(file, b"IDAT", stream.flush())
    _write_chunk(file, b"IEND", b"")


def _write_chunk(file: BinaryIO, kind: bytes, data: bytes) -> None:
    file.write(struct.pack(">I", len(data)) + kind)
    file.write(data)
    file.write(struct.pack(">I", zlib.crc32(data, zlib.crc32(kind))))


def _interleaved(raster: Raster, rows: slice, dtype: type[np.generic]) -> np.ndarray:
    """Return some rows as `(h, W, 3 or 4)` of the given dtype."""
    window = raster.channels[rows]
    if raster.alpha is not None:
        window = np.dstack((window, raster.alpha[rows]))
    return np.ascontiguousarray(with_depth(window, dtype))


def _write_tiff(file: BinaryIO, raster: Raster) -> None:
    order: ByteOrder = "<"
    directories: dict[int, dict[int, Entry]] = {0: {}}
    if raster.exif:
        order, directories = directory_entries(raster.exif)
    main = directories.pop(0)
    tags: list[tuple[int, int, int, object, bool]] = [
        (tag, _ASCII, main[tag].items, main[tag].value, True)
        for tag in DESCRIPTIVE_TAGS
        if tag in main and main[tag].kind == _ASCII
    ]
    # Where these directories lie is known, and written in, when the pixels have been written.
    tags += [(directory, 4, 1, 0, True) for directory in directories]
    shape = (*raster.channels.shape[:2], 3 if raster.alpha is None else 4)
    dtype = raster.channels.dtype.type
    resolution, unit = _resolution(order, main)
    tifffile.imwrite(
        file,
        (_interleaved(raster, rows, dtype) for rows in row_chunks(shape[0])),
        shape=shape,
        dtype=dtype,
        byteorder=order,
        photometric="rgb",
        extrasamples=None if raster.alpha is None else ["unassalpha"],
        rowsperstrip=64,
        iccprofile=raster.profile,
        metadata=None,
        software=False,
        extratags=tags,
        resolution=resolution,
        resolutionunit=unit,
    )
    _append_directories(file, order, directories)


def _resolution(
    order: str, main: dict[int, Entry]
) -> tuple[tuple[tuple[int, int], tuple[int, int]] | None, int | None]:
    """Return horizontal and vertical resolution as fractions, and their unit."""
    if not all(tag in main and main[tag].kind == kind for tag, kind in _RESOLUTION):
        return None, None
    across, down, (unit,) = (
        struct.unpack_from(order + _FORMS[kind], main[tag].value) for tag, kind in _RESOLUTION
    )
    if unit not in (1, 2, 3) or 0 in across or 0 in down:
        return None, None
    return (across, down), unit


def _append_directories(file: BinaryIO, order: str, directories: dict[int, dict[int, Entry]]) -> None:
    if not directories:
        return
    file.seek(0)
    with tifffile.TiffFile(file) as written:
        places = {tag: written.pages[0].aspage().tags[tag].valueoffset for tag in directories}
    for tag, entries in directories.items():
        end = file.seek(0, os.SEEK_END)
        file.write(b"\0" * (end % 2))
        offset = file.tell()
        file.write(directory_bytes(order, entries, offset))
        file.seek(places[tag])
        file.write(struct.pack(order + "I", offset))
    file.seek(0, os.SEEK_END)
