"""PNG and TIFF files with more than 8 bits a channel, which Pillow would reduce to 8."""

import contextlib
import logging
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import cv2
import numpy as np
import tifffile
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from harmony_diffusion.errors import DecodeError
from harmony_diffusion.images.arrays import Raster, check_size, choose_frame, clamp_float, note, row_chunks
from harmony_diffusion.images.exif import exif_of_tiff, settle_exif, upright

# What tifffile logs about damaged files is for those who listen, and not for the terminal.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

_BLOCK = 1 << 20
_RAW_PHOTOMETRIC = (32803, 34892)  # colour filter array, linear raw
_ORIENTATION = 274
_DNG_VERSION = 50706
_ICC_PROFILE = 34675
# TIFF tag values (TIFF 6.0): compression, photometric interpretation, extra samples.
_PLAIN, _LZW, _DEFLATE, _PACKBITS = (1,), (5,), (8, 32946), (32773,)
_WHITE_IS_ZERO, _GREY, _RGB = 0, 1, 2
_PREMULTIPLIED, _STRAIGHT = 1, 2
_FLOAT_PREDICTOR = 3


def read_png16(file: BinaryIO, shown: str, max_pixels: int, min_side: int) -> Raster:
    """Decode a PNG file of 16 bits a channel, upright.

    Raises:
        InputError: A size that is not accepted.
        Exception: Anything, when the file is damaged.
    """
    header = PngImageFile(file)  # reads the profile, and refuses compressed text that explodes
    check_size(shown, header.height, header.width, max_pixels, min_side)
    chunks = _png_chunks(file)
    with _silent_opencv():
        pixels = cv2.imdecode(np.memmap(file, np.uint8, "r"), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16:
        raise ValueError("broken data stream")
    orientation, exif = settle_exif(chunks.get(b"eXIf"), shown)
    channels, alpha = _rgb_of_opencv(pixels, grey=chunks[b"IHDR"][9] in (0, 4))
    if pixels.ndim == 2 and b"tRNS" in chunks:
        (transparent,) = struct.unpack(">H", chunks[b"tRNS"])
        alpha = np.where(pixels == transparent, 0, 65535).astype(np.uint16)
    return Raster(
        upright(channels, orientation),
        None if alpha is None else upright(alpha, orientation),
        header.info.get("icc_profile") or None,
        exif,
    )


@contextlib.contextmanager
def _silent_opencv() -> Iterator[None]:
    """Keep OpenCV from printing about damaged files to the terminal."""
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(level)


def _png_chunks(file: BinaryIO) -> dict[bytes, bytes]:
    """Check the checksum of every chunk, and return the small ones that describe the picture.

    OpenCV prints to the terminal when it meets a damaged file, and accepts some of them.
    """
    file.seek(8)
    kept: dict[bytes, bytes] = {}
    kind = b""
    while kind != b"IEND":
        start = file.read(8)
        if len(start) < 8:
            raise ValueError("truncated")
        length, kind = struct.unpack(">I4s", start)
        checksum, data = zlib.crc32(kind), b""
        wanted = kind in (b"IHDR", b"tRNS", b"eXIf")
        while length > 0:
            block = file.read(min(length, _BLOCK))
            if not block:
                raise ValueError("truncated")
            length -= len(block)
            checksum = zlib.crc32(block, checksum)
            if wanted:
                data += block
        stored = file.read(4)
        if len(stored) < 4:
            raise ValueError("truncated")
        if stored != struct.pack(">I", checksum):
            raise ValueError(f"the checksum of its {kind.decode('latin-1')} chunk is wrong")
        if wanted:
            kept[kind] = data
    return kept


def _rgb_of_opencv(pixels: np.ndarray, grey: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """Split `(H, W)`, `(H, W, 3)` BGR or `(H, W, 4)` BGRA; the order is reversed in place."""
    if pixels.ndim == 2:
        return pixels[..., None], None
    alpha = pixels[..., 3] if pixels.shape[2] == 4 else None
    if grey:
        return pixels[..., :1], alpha
    for rows in row_chunks(len(pixels)):
        pixels[rows, :, :3] = pixels[rows, :, 2::-1].copy()
    return pixels[..., :3], alpha


def read_tiff(file: BinaryIO, shown: str, frame: int, max_pixels: int, min_side: int) -> Raster | None:
    """Decode a TIFF page of 16 bits or floating point, upright.

    Returns:
        The page; None when it has 8 bits or is CMYK, which Pillow decodes as well or better.

    Raises:
        InputError: A page, size, depth or colour space that is not accepted.
        Exception: Anything, when the file is damaged.
    """
    with tifffile.TiffFile(file) as tiff:
        if not 0 <= frame < len(tiff.pages):
            return None
        page = tiff.pages[frame].aspage()
        check_size(shown, page.imagelength, page.imagewidth, max_pixels, min_side)
        if _is_raw(page):
            raise DecodeError(shown, "is a camera raw file", "Develop it to a 16-bit TIFF first.")
        bits, photometric = page.bitspersample, int(page.photometric or 0)
        if photometric == 5 and bits == 16:
            note(shown, "is CMYK of 16 bits, and is reduced to 8 bits a channel")
        if bits <= 8 or photometric == 5:
            return None
        choose_frame(shown, len(tiff.pages), frame)
        if photometric not in (_WHITE_IS_ZERO, _GREY, _RGB):
            raise DecodeError(
                shown, f"is a TIFF of colour type {photometric}, which is not read", "Convert it to RGB."
            )
        if page.dtype not in (np.uint16, np.float16, np.float32, np.float64) or (
            page.dtype == np.uint16 and bits != 16
        ):
            raise DecodeError(
                shown, f"has {bits} bits a channel of a kind that is not read", "Convert it to 8 or 16 bits."
            )
        channels, alpha = _tiff_page(page, file, shown, frame)
        profile = page.tags.valueof(_ICC_PROFILE)
        orientation, exif = _tiff_exif(file, page, shown)
    if photometric == _WHITE_IS_ZERO:
        channels = (1 if channels.dtype == np.float32 else 65535) - channels
    return Raster(
        upright(channels, orientation),
        None if alpha is None else upright(alpha, orientation),
        bytes(profile) if profile else None,
        exif,
    )


def _is_raw(page: tifffile.TiffPage) -> bool:
    """Tell camera raw files, which hold the sensor's picture beside a thumbnail, from other TIFF files."""
    if _DNG_VERSION in page.tags or page.photometric in _RAW_PHOTOMETRIC:
        return True
    return any(sub.aspage().photometric in _RAW_PHOTOMETRIC for sub in page.pages or ())


def _tiff_exif(file: BinaryIO, page: tifffile.TiffPage, shown: str) -> tuple[int, bytes | None]:
    if page.parent.is_bigtiff:  # Pillow does not read all of them
        orientation = page.tags.valueof(_ORIENTATION, default=1)
        return (orientation if orientation in range(1, 9) else 1), None
    found = Image.Exif()
    found.endian = page.parent.byteorder
    found.load_from_fp(file, page.offset)
    return settle_exif(exif_of_tiff(found), shown)


def _tiff_page(
    page: tifffile.TiffPage, file: BinaryIO, shown: str, frame: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return channels `(H, W, 1 or 3)` and alpha, uint16 or float32."""
    size = page.parent.filehandle.size
    if any(o + n > size for o, n in zip(page.dataoffsets, page.databytecounts, strict=True)):
        raise ValueError("truncated")
    compression = int(page.compression)
    if compression in _LZW or int(page.predictor) == _FLOAT_PREDICTOR:
        pixels = _decode_with_opencv(file, frame)
    elif compression in _PLAIN + _DEFLATE + _PACKBITS:
        if compression in _DEFLATE:
            _check_deflated(page, file)
        pixels = page.asarray()
        if page.axes == "SYX":
            pixels = np.moveaxis(pixels, 0, 2)
    else:
        raise DecodeError(
            shown,
            f"is a TIFF compressed with {tifffile.COMPRESSION(compression).name}, not read beyond 8 bits",
            "Save it without compression, or with LZW or ZIP.",
        )
    if pixels.shape[:2] != (page.imagelength, page.imagewidth) or pixels.ndim not in (2, 3):
        raise ValueError(f"it decodes to the shape {pixels.shape}")
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.dtype != np.uint16:
        pixels = clamp_float(pixels, shown)
    colors = 3 if int(page.photometric) == _RGB else 1
    # A channel beyond the colours is alpha even where the tag that should say so is missing.
    extra = int(page.extrasamples[0]) if page.extrasamples else _STRAIGHT * (pixels.shape[2] == colors + 1)
    alpha = pixels[..., colors] if extra in (_PREMULTIPLIED, _STRAIGHT) else None
    channels = pixels[..., :colors]
    if alpha is not None and extra == _PREMULTIPLIED:
        channels = _divide_by_alpha(channels, alpha)
    return channels, alpha


def _decode_with_opencv(file: BinaryIO, frame: int) -> np.ndarray:
    """Decode LZW and the floating-point predictor, which tifffile leaves to an optional package."""
    with _silent_opencv():
        decoded, pages = cv2.imdecodemulti(
            np.memmap(file, np.uint8, "r"), cv2.IMREAD_UNCHANGED, range=(frame, frame + 1)
        )
    if not decoded or len(pages) != 1:
        raise ValueError("broken data stream")
    channels, alpha = _rgb_of_opencv(pages[0], grey=False)
    return channels[..., 0] if channels.shape[2] == 1 else (channels if alpha is None else pages[0])


def _check_deflated(page: tifffile.TiffPage, file: BinaryIO) -> None:
    """Refuse strips and tiles that decompress to more than they hold: a bomb fills the memory."""
    limit = int(np.prod(page.chunks)) * page.bitspersample // 8
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        file.seek(offset)
        stream = zlib.decompressobj()
        data = stream.decompress(file.read(count), limit + 1)
        if len(data) > limit:
            raise ValueError("a strip holds more than it should")


def _divide_by_alpha(channels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Undo premultiplication; where alpha is 0 there is no colour, and black stays."""
    straight = np.empty_like(channels)
    for rows in row_chunks(len(channels)):
        largest = 1.0 if channels.dtype == np.float32 else 65535.0
        weight = np.maximum(alpha[rows].astype(np.float64), largest / 1e6)[..., None]
        values = np.minimum(channels[rows] * (largest / weight), largest)
        straight[rows] = values if channels.dtype == np.float32 else np.rint(values)
    return straight
