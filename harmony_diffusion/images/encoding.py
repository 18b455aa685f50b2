"""Pictures written to files: the format told by the suffix, colour profile and EXIF data kept."""

import os
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from harmony_diffusion.errors import OutputError
from harmony_diffusion.images.arrays import Raster, note, row_chunks, with_depth
from harmony_diffusion.images.exif import (
    DESCRIPTIVE_TAGS,
    ByteOrder,
    Entry,
    directory_bytes,
    directory_entries,
    numbers_entry,
)

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
_TEXT, _SHORT, _LONG, _RATIONAL, _UNDEFINED = 2, 3, 4, 5, 7  # entry types of TIFF
_X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT = 282, 283, 296
_STRIP = 64  # rows
_LARGEST_TIFF = 1 << 32


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


def write_picture(
    file: BinaryIO, kind: str, raster: Raster, *, name: str, quality: int, png_level: int | None = None
) -> None:
    """Encode a picture into an open file.

    PNG and TIFF keep 16 bits, TIFF keeps floating point (PNG: as 16 bits); the other formats have 8.

    Args:
        file: Open for reading and writing, empty.
        kind: A value of `FORMATS`.
        raster: RGB pixels with what belongs to them.
        name: For messages.
        quality: 1 to 100, for JPEG, WebP (100 = lossless) and AVIF.
        png_level: Compression of PNG from 0 (none) to 9 (slowest); None = 6 for 8 bits, 2 for 16 bits.

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
    if kind == "TIFF" and 4 * raster.channels.nbytes // 3 >= _LARGEST_TIFF:
        raise OutputError(name, "TIFF holds up to 4 GB", "Save it as PNG.")
    if kind == "TIFF":
        _write_tiff(file, raster)
    elif kind == "PNG" and raster.channels.dtype != np.uint8:
        _write_png16(file, raster, 2 if png_level is None else png_level)
    else:
        if raster.channels.dtype != np.uint8:
            note(name, f"{kind} holds 8 bits a channel, and {raster.channels.dtype} is reduced to them")
        _write_with_pillow(file, kind, raster, name, quality, png_level)


def pil_of(pixels: np.ndarray, alpha: np.ndarray | None) -> Image.Image:
    """Return an 8-bit RGB or RGBA Pillow image with its own memory."""
    pixels = with_depth(pixels, np.uint8)
    if alpha is not None:
        pixels = np.dstack((pixels, with_depth(alpha, np.uint8)))
    return Image.fromarray(np.ascontiguousarray(pixels))


def _write_with_pillow(
    file: BinaryIO, kind: str, raster: Raster, name: str, quality: int, png_level: int | None
) -> None:
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
    elif kind == "PNG" and png_level is not None:
        options.update(compress_level=png_level)
    pil_of(raster.channels, raster.alpha).save(file, kind, **options)


def _write_png16(file: BinaryIO, raster: Raster, level: int) -> None:
    """Write a PNG file of 16 bits a channel, a few rows at a time (PNG specification, third edition)."""
    height, width, _ = raster.channels.shape
    samples = 3 if raster.alpha is None else 4
    file.write(b"\x89PNG\r\n\x1a\n")
    _write_chunk(file, b"IHDR", struct.pack(">IIBBBBB", width, height, 16, _PNG_COLOR[samples], 0, 0, 0))
    if raster.profile:
        _write_chunk(file, b"iCCP", b"ICC profile\0\0" + zlib.compress(raster.profile))
    if raster.exif:
        _write_chunk(file, b"eXIf", raster.exif[6:])
    stream = zlib.compressobj(level)
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
    """Write an uncompressed TIFF file, a few rows at a time (TIFF 6.0, sections 2 to 6 and 18).

    Not by tifffile: it writes tags with values, but no EXIF and GPS directories, to which a tag has to point.
    """
    order: ByteOrder = "<"
    directories: dict[int, dict[int, Entry]] = {0: {}}
    if raster.exif:  # its entries are copied to the byte, so that the file takes their byte order
        order, directories = directory_entries(raster.exif)
    main = {tag: entry for tag, entry in directories.pop(0).items() if _is_well_formed(tag, entry, order)}
    head = b"II*\0" if order == "<" else b"MM\0*"
    file.write(head + b"\0\0\0\0")
    offsets, sizes = [], []
    for rows in row_chunks(len(raster.channels), _STRIP):
        window = _interleaved(raster, rows, raster.channels.dtype.type)
        offsets.append(file.tell())
        sizes.append(window.nbytes)
        file.write(window.astype(window.dtype.newbyteorder(order), copy=False).data)
        file.write(b"\0" * (window.nbytes % 2))
    for tag, entries in directories.items():
        main[tag] = numbers_entry(order, _LONG, [_write_directory(file, order, entries)])
    main.update(_tiff_layout(raster, order, offsets, sizes))
    start = _write_directory(file, order, main)
    file.seek(len(head))
    file.write(struct.pack(order + "I", start))


def _is_well_formed(tag: int, entry: Entry, order: ByteOrder) -> bool:
    """Return True if a descriptive tag has a value of the type that all TIFF readers accept."""
    if tag not in DESCRIPTIVE_TAGS:
        return False
    if tag in (_X_RESOLUTION, _Y_RESOLUTION):
        return (entry.kind, entry.items) == (_RATIONAL, 1) and all(struct.unpack(order + "II", entry.value))
    if tag == _RESOLUTION_UNIT:
        return (entry.kind, entry.items) == (_SHORT, 1) and struct.unpack(order + "H", entry.value)[0] in (
            1,
            2,
            3,
        )
    return entry.kind == _TEXT


def _write_directory(file: BinaryIO, order: ByteOrder, entries: dict[int, Entry]) -> int:
    """Append a directory, and return where it lies."""
    offset = file.tell()
    data = directory_bytes(order, entries, offset)
    file.write(data + b"\0" * (len(data) % 2))
    return offset


def _tiff_layout(raster: Raster, order: ByteOrder, offsets: list[int], sizes: list[int]) -> dict[int, Entry]:
    """Return the entries that say how the pixels are stored."""
    height, width, _ = raster.channels.shape
    samples = 3 if raster.alpha is None else 4
    dtype = raster.channels.dtype
    layout = {
        256: numbers_entry(order, _LONG, [width]),
        257: numbers_entry(order, _LONG, [height]),
        258: numbers_entry(order, _SHORT, [8 * dtype.itemsize] * samples),
        259: numbers_entry(order, _SHORT, [1]),  # not compressed
        262: numbers_entry(order, _SHORT, [2]),  # RGB
        273: numbers_entry(order, _LONG, offsets),
        274: numbers_entry(order, _SHORT, [1]),  # upright
        277: numbers_entry(order, _SHORT, [samples]),
        278: numbers_entry(order, _LONG, [_STRIP]),
        279: numbers_entry(order, _LONG, sizes),
        284: numbers_entry(order, _SHORT, [1]),  # the samples of a pixel side by side
        339: numbers_entry(order, _SHORT, [3 if dtype == np.float32 else 1] * samples),
    }
    if raster.alpha is not None:
        layout[338] = numbers_entry(order, _SHORT, [2])  # alpha that the colours are not multiplied with
    if raster.profile:
        layout[34675] = Entry(_UNDEFINED, len(raster.profile), raster.profile)
    return layout
