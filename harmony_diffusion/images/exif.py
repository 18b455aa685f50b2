"""EXIF blocks: the orientation taken out and applied, the rest kept byte for byte.

Specification: CIPA DC-008 (Exif 2.32), section 4.6: an EXIF block is a small TIFF file of directories of
12-byte entries.
"""

import contextlib
import re
import struct
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from harmony_diffusion.images.arrays import note

ByteOrder = Literal["<", ">"]

_PREFIX = b"Exif\x00\x00"
_ORDERS: dict[bytes, ByteOrder] = {b"II*\0": "<", b"MM\0*": ">"}
_ITEM_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
_ORIENTATION = 0x0112
_INTEROPERABILITY = 0xA005
EXIF_DIRECTORY = 0x8769
GPS_DIRECTORY = 0x8825
# Of a TIFF file's tags, those that say something about the picture and nothing about how it is stored:
# description, make, model, resolution and its unit, software, date, artist, copyright.
DESCRIPTIVE_TAGS = (0x010E, 0x010F, 0x0110, 0x011A, 0x011B, 0x0128, 0x0131, 0x0132, 0x013B, 0x8298)


_XMP = ("xmp", "XML:com.adobe.xmp")
_RAW_EXIF, _RAW_XMP = (
    ("Raw profile type exif", "Raw profile type APP1"),
    (
        "Raw profile type xmp",
        "Raw profile type APP1",
    ),
)
# Keywords of PNG texts that may tell the orientation.
TEXT_KEYWORDS = (*_XMP, *_RAW_EXIF, *_RAW_XMP)
_XMP_ORIENTATION = re.compile(r"""tiff:Orientation(?:\s*=\s*["']|\s*>)\s*([1-8])\s*(?:["']|<)""")


class Entry(NamedTuple):
    """One entry of a directory: type code, number of items, and their bytes in the order of the file."""

    kind: int
    items: int
    value: bytes


def split_orientation(block: bytes) -> tuple[int | None, bytes | None]:
    r"""Read the orientation of an EXIF block and set it to 1 there.

    The embedded thumbnail is unlinked, as it would show the picture before it was changed.

    Args:
        block: The block, with or without the leading `Exif\0\0`.

    Returns:
        The orientation, 1 to 8 or None where none is given, and the block with the leading `Exif\0\0`;
        None for a block that is damaged.
    """
    body = bytearray(block[6:] if block.startswith(_PREFIX) else block)
    try:
        orientation = _reset(body)
    except (struct.error, KeyError):
        return None, None
    if orientation is not None and not 1 <= orientation <= 8:
        return 1, None
    return orientation, _PREFIX + bytes(body)


def _reset(body: bytearray) -> int | None:
    order = _ORDERS[bytes(body[:4])]
    (start,) = struct.unpack_from(order + "I", body, 4)
    (count,) = struct.unpack_from(order + "H", body, start)
    orientation = None
    for entry in range(start + 2, start + 2 + 12 * count, 12):
        tag, kind, _ = struct.unpack_from(order + "HHI", body, entry)
        if tag == _ORIENTATION:
            form = order + {3: "H", 4: "I"}[kind]
            (orientation,) = struct.unpack_from(form, body, entry + 8)
            struct.pack_into(form, body, entry + 8, 1)
    # The last four bytes of a directory point to the next one, which holds the thumbnail.
    struct.pack_into(order + "I", body, start + 2 + 12 * count, 0)
    return orientation


def upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """Turn and mirror `(H, W)` or `(H, W, C)` as an EXIF orientation (1 to 8) prescribes.

    Returns:
        The upright array; `array` itself for orientation 1.
    """
    if orientation == 1:
        return array
    if orientation >= 5:
        array = array.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    return np.ascontiguousarray(array)


def exif_of_tiff(found: Image.Exif) -> bytes | None:
    """Collect the descriptive tags, camera data and position among all the tags of a TIFF file.

    Returns:
        An EXIF block with the orientation the file has; None when there is nothing to keep; a block that
        `split_orientation` finds damaged when the tags are.
    """
    kept = Image.Exif()
    try:
        for tag in (*DESCRIPTIVE_TAGS, _ORIENTATION):
            if tag in found:
                kept[tag] = found[tag]
        for directory in (EXIF_DIRECTORY, GPS_DIRECTORY):
            if entries := found.get_ifd(directory):
                kept[directory] = dict(entries)
        return kept.tobytes() if len(kept) else None
    except Exception:  # Pillow raises almost anything on values of the wrong type
        return _PREFIX + b"damaged"


def directory_entries(block: bytes) -> tuple[ByteOrder, dict[int, dict[int, Entry]]]:
    """Take an EXIF block apart without interpreting its values.

    Args:
        block: As `split_orientation` returns it.

    Returns:
        The byte order (`"<"` or `">"`), and the entries of the main directory (key 0), of the camera data
        (`EXIF_DIRECTORY`) and of the position (`GPS_DIRECTORY`), as far as they are there and intact.
    """
    body = block[len(_PREFIX) :]
    order = _ORDERS[body[:4]]
    (start,) = struct.unpack_from(order + "I", body, 4)
    found = {0: _entries(body, order, start)}
    for directory in (EXIF_DIRECTORY, GPS_DIRECTORY):
        pointer = found[0].pop(directory, None)
        if pointer is not None and pointer.kind == 4:
            with contextlib.suppress(struct.error):
                found[directory] = _entries(body, order, *struct.unpack(order + "I", pointer.value))
    # Compatibility data of another directory, of which only the position would be kept.
    found.get(EXIF_DIRECTORY, {}).pop(_INTEROPERABILITY, None)
    return order, found


def _entries(body: bytes, order: str, start: int) -> dict[int, Entry]:
    (count,) = struct.unpack_from(order + "H", body, start)
    found = {}
    for position in range(start + 2, start + 2 + 12 * count, 12):
        tag, kind, items = struct.unpack_from(order + "HHI", body, position)
        size = items * _ITEM_SIZES.get(kind, 0)
        at = position + 8
        if size > 4:
            (at,) = struct.unpack_from(order + "I", body, at)
        if 0 < size and at + size <= len(body):
            found[tag] = Entry(kind, items, body[at : at + size])
    return found


def directory_bytes(order: ByteOrder, entries: dict[int, Entry], offset: int) -> bytes:
    """Lay out a directory as it is stored at `offset` of a TIFF file."""
    head = struct.pack(order + "H", len(entries))
    data = b""
    data_at = offset + 2 + 12 * len(entries) + 4
    for tag in sorted(entries):
        entry = entries[tag]
        value = entry.value
        if len(value) > 4:
            value = struct.pack(order + "I", data_at + len(data))
            data += entry.value + b"\0" * (len(entry.value) % 2)
        head += struct.pack(order + "HHI", tag, entry.kind, entry.items) + value.ljust(4, b"\0")
    return head + b"\0\0\0\0" + data


def numbers_entry(order: ByteOrder, kind: int, values: list[int]) -> Entry:
    """Return an entry of numbers of 16 bits (kind 3) or 32 bits (kind 4)."""
    form = {3: "H", 4: "I"}[kind]
    return Entry(kind, len(values), struct.pack(f"{order}{len(values)}{form}", *values))


def settle_exif(block: bytes | None, name: str, xmp: bytes | str | None = None) -> tuple[int, bytes | None]:
    """Read the orientation of a picture, and settle which EXIF data to keep.

    Args:
        block: EXIF block; a damaged one is dropped with a note.
        name: Of the picture, for messages.
        xmp: XMP packet; its orientation counts where the EXIF block has none.

    Returns:
        The orientation, 1 to 8, and the block to keep.
    """
    kept = split_orientation(block)[1] if block else None
    if block and kept is None:
        note(name, "its EXIF data are damaged, and are dropped")
    return orientation_of(block, xmp), kept


def orientation_of(block: bytes | None, xmp: bytes | str | None) -> int:
    """Return the orientation, 1 to 8, of an EXIF block, else of an XMP packet, else 1."""
    found = split_orientation(block)[0] if block else None
    if found is not None or not xmp:
        return found or 1
    text = xmp.decode("utf-8", errors="replace") if isinstance(xmp, bytes) else str(xmp)
    match = _XMP_ORIENTATION.search(text)
    return int(match[1]) if match else 1


def exif_and_xmp(info: Mapping[Any, Any]) -> tuple[bytes | None, bytes | str | None]:
    """Return the EXIF block and the XMP packet of a Pillow image, given its `info`."""
    block = info.get("exif")
    if not isinstance(block, bytes) or not block:
        block = exif_of_texts(info)
    return block, xmp_of_texts(info)


def exif_of_texts(texts: Mapping[Any, Any]) -> bytes | None:
    """Return the EXIF block that ImageMagick writes as text into PNG files, if there is one."""
    for keyword in _RAW_EXIF:
        data = _raw_profile(texts.get(keyword))
        if data.startswith((_PREFIX, *_ORDERS)):
            return data
    return None


def xmp_of_texts(texts: Mapping[Any, Any]) -> bytes | str | None:
    """Return the XMP packet of a picture, by the names that formats and programs give it."""
    for keyword in _XMP:
        if isinstance(texts.get(keyword), bytes | str):
            return texts[keyword]  # type: ignore[no-any-return]
    for keyword in _RAW_XMP:
        data = _raw_profile(texts.get(keyword))
        if data and not data.startswith(_PREFIX):
            return data
    return None


def _raw_profile(text: object) -> bytes:
    """Decode a "raw profile" of ImageMagick: its name, its length, and lines of hexadecimal digits."""
    if not isinstance(text, str):
        return b""
    lines = text.strip().split("\n", 2)
    try:
        return bytes.fromhex(lines[2]) if len(lines) == 3 else b""
    except ValueError:
        return b""
