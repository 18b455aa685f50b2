"""The pixels of a TIFF page: strips or tiles, decompressed, without their predictor, and put together.

Specification: TIFF 6.0 (sections 3, 9, 13 to 15) and Technical Note 3 (predictor of floating point).

tifffile reads the tags, but needs an optional package for LZW and this predictor. OpenCV and Pillow decode
both, but return wrong pixels without an error for some layouts with separate planes. LZW and PackBits are
decompressed by libtiff, which both contain: it is given the strips or tiles as one grey picture, whose values
are their bytes.
"""

import io
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

import cv2
import numpy as np
import tifffile
from PIL.TiffImagePlugin import TiffImageFile

from harmony_diffusion.errors import DecodeError
from harmony_diffusion.images.arrays import note, silent_opencv, truncated_error
from harmony_diffusion.images.exif import ByteOrder, directory_bytes, numbers_entry

PLAIN, LZW, PACKBITS, DEFLATE = 1, 5, 32773, (8, 32946)
COMPRESSIONS = (PLAIN, LZW, PACKBITS, *DEFLATE)
_NO_PREDICTOR, _HORIZONTAL, _FLOATING_POINT = 1, 2, 3
_SEPARATE = 2
_MOST_SAMPLES = 16
_BATCH = 1 << 23  # bytes that are decompressed together
_SHORT, _LONG = 3, 4  # kinds of entries


@dataclass(frozen=True)
class _Grid:
    """How a page is cut into strips or tiles, those of one plane after those of another.

    Attributes:
        height: Of the page.
        width: Of the page.
        rows: Of a strip or tile.
        columns: Of a strip or tile.
        planes: 1, or the number of samples where each has a plane of its own.
        samples: Samples of a pixel in a plane.
        tiled: Tiles are whole everywhere; the last strip has only the rows that are left.
    """

    height: int
    width: int
    rows: int
    columns: int
    planes: int
    samples: int
    tiled: bool

    def __len__(self) -> int:
        """Return the number of strips or tiles."""
        return self.planes * len(self._tops) * len(self._lefts)

    @property
    def _tops(self) -> range:
        return range(0, self.height, self.rows)

    @property
    def _lefts(self) -> range:
        return range(0, self.width, self.columns)

    def places(self) -> Iterator[tuple[int, int, int]]:
        """Yield plane, top and left of each strip or tile, in the order of the file."""
        for plane in range(self.planes):
            for top in self._tops:
                for left in self._lefts:
                    yield plane, top, left

    def shape(self, top: int) -> tuple[int, int, int]:
        """Return the shape that the strip or tile at a row has in the file."""
        rows = self.rows if self.tiled else min(self.rows, self.height - top)
        return rows, self.columns, self.samples


def read_pixels(
    page: tifffile.TiffPage, file: BinaryIO, shown: str, *, allow_truncated: bool | None
) -> np.ndarray:
    """Decode the pixels of a page.

    Args:
        page: Of 8, 16, 32 or 64 bits a sample, of a compression in `COMPRESSIONS`.
        file: The file it is in.
        shown: Its name, for messages.
        allow_truncated: Leave black what lies beyond the end of the file.

    Returns:
        `(H, W, samples)` of the dtype of the page.

    Raises:
        DecodeError: A layout that is not read.
        Exception: Anything, when the file is damaged.
    """
    assert page.dtype is not None
    _check_layout(page, shown)
    grid = _grid_of(page)
    offsets, counts = page.dataoffsets, page.databytecounts
    if len(offsets) != len(grid) or len(counts) != len(grid) or not all(offsets) or not all(counts):
        raise ValueError(f"{len(offsets)} strips or tiles instead of {len(grid)}")
    size = page.parent.filehandle.size
    present = [o + n <= size for o, n in zip(offsets, counts, strict=True)]
    if not all(present):
        if not allow_truncated:
            raise truncated_error(shown, allow_truncated)
        note(shown, "is truncated, and the part that is missing is black")
    pixels = np.zeros((grid.height, grid.width, page.samplesperpixel), page.dtype)
    undo = _UNDO[int(page.predictor)]
    stored = page.dtype.newbyteorder(page.parent.byteorder)
    whole = [place for place, here in zip(grid.places(), present, strict=True) if here]
    for (plane, top, left), data in zip(whole, _decompressed(page, file, grid, present), strict=True):
        shape = grid.shape(top)
        part = undo(data[: int(np.prod(shape)) * page.dtype.itemsize], shape, stored)
        target = pixels[top : top + grid.rows, left : left + grid.columns]
        target = target[..., plane : plane + 1] if grid.planes > 1 else target
        target[...] = part[: target.shape[0], : target.shape[1]]
    return pixels


def _check_layout(page: tifffile.TiffPage, shown: str) -> None:
    predictor, compression = int(page.predictor), int(page.compression)
    # Decoders do not agree on a predictor that the compression does not provide for.
    allowed = {_NO_PREDICTOR}
    if compression in (LZW, *DEFLATE):
        allowed.add(_FLOATING_POINT if np.issubdtype(page.dtype, np.floating) else _HORIZONTAL)
    if predictor not in allowed:
        raise DecodeError(
            shown, f"is a TIFF with the predictor {predictor}, which is not read here", "Save it without one."
        )
    if int(page.fillorder) != 1 or page.imagedepth != 1 or page.samplesperpixel > _MOST_SAMPLES:
        raise ValueError("it has bits in reverse order, a depth, or too many samples")


def _grid_of(page: tifffile.TiffPage) -> _Grid:
    separate = int(page.planarconfig or 1) == _SEPARATE and page.samplesperpixel > 1
    height, width = page.imagelength, page.imagewidth
    rows, columns = min(page.rowsperstrip or height, height), width
    if page.is_tiled:
        rows, columns = page.tilelength, page.tilewidth
        if rows * columns > 4 * max(height * width, 1 << 22):
            raise ValueError("its tiles are larger than the picture")
    if rows < 1 or columns < 1:
        raise ValueError("its strips or tiles are empty")
    planes, samples = (page.samplesperpixel, 1) if separate else (1, page.samplesperpixel)
    return _Grid(height, width, rows, columns, planes, samples, page.is_tiled)


def _decompressed(
    page: tifffile.TiffPage, file: BinaryIO, grid: _Grid, present: list[bool]
) -> Iterator[bytes | memoryview]:
    """Yield the bytes of the strips and tiles that are there, at least as many as each should have."""
    compression = int(page.compression)
    assert page.dtype is not None
    blocks: list[bytes] = []
    shape = None
    places = zip(grid.places(), page.dataoffsets, page.databytecounts, present, strict=True)
    for (_, top, _), offset, count, here in places:
        if not here:
            continue
        file.seek(offset)
        block = file.read(count)
        wanted = grid.shape(top)
        size = int(np.prod(wanted)) * page.dtype.itemsize
        if compression in (PLAIN, *DEFLATE):
            data = block if compression == PLAIN else _inflate(block, max(size, _size_of(page, grid)))
            if len(data) < size:
                raise ValueError("a strip or tile holds less than it should")
            yield data
            continue
        if blocks and (wanted != shape or len(blocks) * size > _BATCH):
            yield from _decompress_together(blocks, compression, shape, page.dtype.itemsize)
            blocks = []
        shape = wanted
        blocks.append(block)
    if blocks:
        yield from _decompress_together(blocks, compression, shape, page.dtype.itemsize)


def _size_of(page: tifffile.TiffPage, grid: _Grid) -> int:
    assert page.dtype is not None
    return grid.rows * grid.columns * grid.samples * page.dtype.itemsize


def _inflate(block: bytes, limit: int) -> bytes:
    """Decompress; what holds more than it should is a bomb that would fill the memory."""
    data = zlib.decompressobj().decompress(block, limit + 1)
    if len(data) > limit:
        raise ValueError("a strip or tile holds more than it should")
    return data


def _decompress_together(
    blocks: list[bytes], compression: int, shape: tuple[int, int, int] | None, itemsize: int
) -> Iterator[memoryview]:
    """Decompress strips or tiles of one shape by libtiff, as the strips of one grey picture.

    OpenCV returns 16-bit values as they are, and prints nothing about damaged ones. Strips of an odd number
    of bytes go to Pillow, whose libtiff prints a line when they are damaged.
    """
    assert shape is not None
    rows, row_bytes = shape[0], shape[1] * shape[2] * itemsize
    size = rows * row_bytes
    if size % 2:
        with TiffImageFile(io.BytesIO(_grey_tiff(blocks, compression, rows, row_bytes, 8))) as image:
            image.load()
            view = memoryview(image.tobytes())
    else:
        rows, width = (rows, row_bytes // 2) if row_bytes % 2 == 0 else (rows // 2, row_bytes)
        file = _grey_tiff(blocks, compression, rows, width, 16)
        with silent_opencv():
            grey = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_UNCHANGED)
        if grey is None or grey.dtype != np.uint16 or grey.nbytes != size * len(blocks):
            raise ValueError("broken data stream")
        view = memoryview(grey.tobytes())
    for start in range(0, size * len(blocks), size):
        yield view[start : start + size]


def _grey_tiff(blocks: list[bytes], compression: int, rows: int, width: int, bits: int) -> bytes:
    """Return a TIFF file of grey strips that are compressed already, each of the same number of rows."""
    order: ByteOrder = "<" if sys.byteorder == "little" else ">"
    entries = {
        256: (_LONG, [width]),
        257: (_LONG, [rows * len(blocks)]),
        258: (_SHORT, [bits]),
        259: (_SHORT, [compression]),
        262: (_SHORT, [1]),
        273: (_LONG, np.cumsum([8, *map(len, blocks[:-1])]).tolist()),
        277: (_SHORT, [1]),
        278: (_LONG, [rows]),
        279: (_LONG, list(map(len, blocks))),
    }
    encoded = {tag: numbers_entry(order, kind, values) for tag, (kind, values) in entries.items()}
    padding = b"\0" * (sum(map(len, blocks)) % 2)
    at = 8 + sum(map(len, blocks)) + len(padding)
    head = struct.pack(order + "2sHI", b"II" if order == "<" else b"MM", 42, at)
    return b"".join((head, *blocks, padding, directory_bytes(order, encoded, at)))


def _undo_nothing(data: bytes | memoryview, shape: tuple[int, ...], stored: np.dtype) -> np.ndarray:
    return np.frombuffer(data, stored).reshape(shape)


def _undo_horizontal(data: bytes | memoryview, shape: tuple[int, ...], stored: np.dtype) -> np.ndarray:
    """Add up the differences to the pixel on the left, which wrap around."""
    differences = np.frombuffer(data, stored).reshape(shape)
    return np.cumsum(differences, axis=1, dtype=stored.newbyteorder("="))


def _undo_floating_point(data: bytes | memoryview, shape: tuple[int, ...], stored: np.dtype) -> np.ndarray:
    """Add up the differences of bytes; then collect the bytes of each value from all over the row."""
    rows, columns, samples = shape
    planes = np.frombuffer(data, np.uint8).reshape(rows, -1, samples)
    planes = np.cumsum(planes, axis=1, dtype=np.uint8).reshape(rows, stored.itemsize, columns * samples)
    values = np.ascontiguousarray(planes.transpose(0, 2, 1)).view(stored.newbyteorder(">"))
    return values.reshape(shape)


_UNDO: dict[int, Callable[[bytes | memoryview, tuple[int, ...], np.dtype], np.ndarray]] = {
    _NO_PREDICTOR: _undo_nothing,
    _HORIZONTAL: _undo_horizontal,
    _FLOATING_POINT: _undo_floating_point,
}
