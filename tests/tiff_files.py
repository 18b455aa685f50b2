"""TIFF files of every layout: strips and tiles are encoded here, tifffile writes the tags around them."""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tifffile

COMPRESSIONS = (None, "lzw", "adobe_deflate", "packbits")
PLAIN, HORIZONTAL, FLOATING_POINT = 1, 2, 3
_HOST_COMPUTER, _PREDICTOR = 316, 317  # tags; tifffile writes the first of them for us, and not the second


def lzw(data: bytes) -> bytes:
    """TIFF 6.0, section 13: codes of 9 to 12 bits, most significant bit first, one code early."""
    table = {bytes((i,)): i for i in range(256)}
    codes, width, word = [(256, 9)], 9, b""
    for i in range(len(data)):
        longer = word + data[i : i + 1]
        if longer in table:
            word = longer
            continue
        codes.append((table[word], width))
        table[longer] = len(table) + 2 if len(table) >= 256 else len(table)
        word = data[i : i + 1]
        width = max(width, (len(table) + 2).bit_length())
        if len(table) + 2 >= 4094:
            codes.append((256, width))
            table, width = {bytes((i,)): i for i in range(256)}, 9
    codes.append((table[word], width))
    if (len(table) + 3).bit_length() > width and width < 12:
        width += 1
    codes.append((257, width))
    bits = "".join(f"{code:0{size}b}" for code, size in codes)
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


def packbits(row: bytes) -> bytes:
    """TIFF 6.0, section 9: runs of 2 to 128 equal bytes, else up to 128 bytes as they are."""
    packed, i = b"", 0
    while i < len(row):
        run = 1
        while run < 128 and row[i : i + run + 1] == row[i : i + 1] * (run + 1):
            run += 1
        if run > 1:
            packed += bytes((257 - run,)) + row[i : i + 1]
            i += run
            continue
        end = i + 1
        while end < len(row) and end - i < 128 and row[end : end + 1] != row[end - 1 : end]:
            end += 1
        packed += bytes((end - i - 1,)) + row[i:end]
        i = end
    return packed


def encode(segment: np.ndarray, compression: str | None, predictor: int, order: str) -> bytes:
    """One strip or tile `(h, w, samples)`."""
    dtype = segment.dtype.newbyteorder(order)
    if predictor == HORIZONTAL:
        segment = segment.copy()
        segment[:, 1:] -= segment[:, :-1].copy()
    rows = segment.astype(dtype)
    if predictor == FLOATING_POINT:
        # TIFF Technical Note 3: the bytes of a row by significance, then differences over one pixel.
        size, samples = dtype.itemsize, segment.shape[2]
        split = segment.astype(segment.dtype.newbyteorder(">")).view(np.uint8)
        split = split.reshape(len(segment), -1, size).transpose(0, 2, 1).reshape(len(segment), -1)
        rows = split.copy()
        rows[:, samples:] -= split[:, :-samples]
    if compression == "packbits":
        return b"".join(packbits(row.tobytes()) for row in rows)
    data = rows.tobytes()
    return {None: bytes, "lzw": lzw, "adobe_deflate": zlib.compress}[compression](data)


def segments(pixels: np.ndarray, tile: tuple[int, int] | None, rows: int) -> Iterator[np.ndarray]:
    """The strips or tiles of `(h, w, samples)`."""
    if tile is None:
        yield from (pixels[y : y + rows] for y in range(0, len(pixels), rows))
        return
    for y in range(0, pixels.shape[0], tile[0]):
        for x in range(0, pixels.shape[1], tile[1]):
            part = pixels[y : y + tile[0], x : x + tile[1]]
            padding = [(0, tile[0] - part.shape[0]), (0, tile[1] - part.shape[1]), (0, 0)]
            yield np.pad(part, padding, mode="edge")


def write_tiff(
    path: Path,
    pixels: np.ndarray,
    *,
    planar: bool = False,
    compression: str | None = None,
    predictor: int = PLAIN,
    tile: tuple[int, int] | None = None,
    rows: int = 16,
    order: str = "<",
    **options: object,
) -> None:
    """Write `(H, W, samples)` in one layout."""
    planes = [pixels[..., i : i + 1] for i in range(pixels.shape[2])] if planar else [pixels]
    parts = [
        encode(part, compression, predictor, order)
        for plane in planes
        for part in segments(plane, tile, rows)
    ]
    colors = 3 if pixels.shape[2] >= 3 else 1
    shape = pixels.shape if not planar else (pixels.shape[2], *pixels.shape[:2])
    if pixels.shape[2] == 1:
        shape = pixels.shape[:2]
    options = {"photometric": "rgb" if colors == 3 else "minisblack", **options}
    if colors > 1 or pixels.shape[2] > colors:
        options["planarconfig"] = "separate" if planar else "contig"
    tifffile.imwrite(
        path,
        iter(parts),
        shape=shape,
        dtype=pixels.dtype.newbyteorder(order),
        byteorder=order,
        tile=tile,
        rowsperstrip=None if tile else rows,
        # Of a kind that tifffile writes without an optional package; the tags are corrected below.
        compression="adobe_deflate" if compression else None,
        extratags=[(_HOST_COMPUTER, "H", 1, predictor, True)],
        metadata=None,
        **options,
    )
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        if compression:
            tiff.pages[0].tags[259].overwrite(tifffile.COMPRESSION[compression.upper()].value)
        at = tiff.pages[0].tags[_HOST_COMPUTER].offset
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(struct.pack(order + "H", _PREDICTOR))
