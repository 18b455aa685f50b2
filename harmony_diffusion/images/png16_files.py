"""PNG files of 16 bits a channel, which Pillow would reduce to 8."""

import contextlib
import io
import struct
import zlib
from dataclasses import dataclass, field
from typing import BinaryIO

import cv2
import numpy as np
from PIL.PngImagePlugin import PngImageFile

from harmony_diffusion.errors import DecodeError
from harmony_diffusion.images.arrays import Raster, check_size, choose_frame, row_chunks, silent_opencv
from harmony_diffusion.images.exif import TEXT_KEYWORDS, exif_of_texts, settle_exif, upright, xmp_of_texts

_BLOCK = 1 << 20
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_KEPT = (b"IHDR", b"tRNS", b"eXIf", b"acTL", *_TEXTS)
_LONGEST_TEXT = 1 << 24


def read_png16(
    file: BinaryIO, shown: str, frame: int, max_pixels: float, min_side: int, purpose: str
) -> Raster:
    """Decode a PNG file of 16 bits a channel, upright; of an animation, its first frame.

    Args:
        file: The open file.
        shown: Its name, for messages.
        frame: Which frame, from 0; Pillow counts the frames of 8 bits in the same way.
        max_pixels: Limit of height times width.
        min_side: Shortest side accepted.
        purpose: See `choose_frame`.

    Raises:
        InputError: A size that is not accepted, or another frame than the first.
        Exception: Anything, when the file is damaged.
    """
    header = PngImageFile(file)  # reads the profile, and refuses compressed text that explodes
    check_size(shown, header.height, header.width, max_pixels, min_side)
    chunks = _read_chunks(file)
    choose_frame(shown, chunks.frames, frame, purpose)
    if frame:
        raise DecodeError(
            shown,
            "is an animation of 16 bits a channel, of which only the first frame is read",
            "Save the frame as a picture of its own.",
        )
    data = np.frombuffer(chunks.still, np.uint8) if chunks.frames > 1 else _mapped(file)
    with silent_opencv():
        pixels = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16 or pixels.shape[:2] != (header.height, header.width):
        raise ValueError("broken data stream")
    texts = chunks.texts()
    orientation, exif = settle_exif(chunks.exif or exif_of_texts(texts), shown, xmp_of_texts(texts))
    channels, alpha = _rgb_of_opencv(pixels, grey=chunks.color in (0, 4))
    if pixels.ndim == 2 and chunks.transparent is not None:
        (transparent,) = struct.unpack(">H", chunks.transparent)
        alpha = np.where(pixels == transparent, 0, 65535).astype(np.uint16)
    return Raster(
        upright(channels, orientation),
        None if alpha is None else upright(alpha, orientation),
        header.info.get("icc_profile") or None,
        exif,
    )


def _mapped(file: BinaryIO) -> np.ndarray:
    """Return the bytes of a file; one on disk is mapped and not read."""
    if isinstance(file, io.BytesIO):
        return np.frombuffer(file.getbuffer(), np.uint8)
    return np.memmap(file, np.uint8, "r")


@dataclass
class _Chunks:
    """What the chunks of a PNG file hold beside the pixels.

    Attributes:
        color: Colour type.
        transparent: The one transparent value.
        exif: EXIF block.
        frames: Frames of an animation and the picture that stands for it, as Pillow counts them; else 1.
        still: Of an animation, a file of the first frame alone.
        written: Chunks with text, as they are stored.
    """

    color: int = 0
    transparent: bytes | None = None
    exif: bytes | None = None
    frames: int = 1
    still: bytes = b""
    written: list[tuple[bytes, bytes]] = field(default_factory=list)

    def texts(self) -> dict[str, str]:
        """Return the texts that may hold an orientation, by their keyword; damaged ones are left out."""
        found = {}
        for kind, data in self.written:
            keyword, _, text = data.partition(b"\0")
            name = keyword.decode("latin-1")
            if name in TEXT_KEYWORDS:
                with contextlib.suppress(zlib.error, ValueError):
                    found[name] = _decode_text(kind, text)
        return found


def _decode_text(kind: bytes, text: bytes) -> str:
    """Decode what follows the keyword of a text chunk (PNG specification, 11.3.3)."""
    compressed = kind == b"zTXt"
    if compressed:
        text = text[1:]
    elif kind == b"iTXt":
        compressed = text[:1] == b"\1"
        text = text[2:].split(b"\0", 2)[-1]
    if compressed:
        text = zlib.decompressobj().decompress(text, _LONGEST_TEXT)
    return text.decode("utf-8" if kind == b"iTXt" else "latin-1")


def _read_chunks(file: BinaryIO) -> _Chunks:
    """Check the checksum of every chunk, and return what describes the picture.

    OpenCV prints to the terminal when it meets a damaged file, and accepts some of them.
    """
    file.seek(8)
    found = _Chunks()
    animated = default_image = pixels_seen = False
    parts = [b"\x89PNG\r\n\x1a\n"]
    kind = b""
    while kind != b"IEND":
        start = _read_exactly(file, 8)
        length, kind = struct.unpack(">I4s", start)
        checksum, blocks = zlib.crc32(kind), []
        kept = kind in _KEPT or (animated and kind == b"IDAT")
        while length > 0:
            block = _read_exactly(file, min(length, _BLOCK))
            length -= len(block)
            checksum = zlib.crc32(block, checksum)
            if kept:
                blocks.append(block)
        end = _read_exactly(file, 4)
        if end != struct.pack(">I", checksum):
            raise ValueError(f"the checksum of its {kind.decode('latin-1')} chunk is wrong")
        data = b"".join(blocks)
        if kind in (b"IHDR", b"tRNS", b"IEND") or (animated and kind == b"IDAT"):
            parts += [start, data, end]
        if kind == b"IHDR":
            found.color = data[9]
        elif kind == b"tRNS":
            found.transparent = data
        elif kind == b"eXIf":
            found.exif = data
        elif kind in _TEXTS:
            found.written.append((kind, data))
        elif kind == b"acTL" and not pixels_seen:
            animated = default_image = True
            (found.frames,) = struct.unpack_from(">I", data)
        elif kind == b"fcTL" and not pixels_seen:
            default_image = False  # the picture is the first frame, and not one beside them
        elif kind == b"IDAT":
            pixels_seen = True
    found.frames = max(1, found.frames + default_image)
    found.still = b"".join(parts)
    return found


def _read_exactly(file: BinaryIO, length: int) -> bytes:
    data = file.read(length)
    if len(data) < length:
        raise ValueError("truncated")
    return data


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
