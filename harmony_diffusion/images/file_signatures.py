"""What a file is, told from its first bytes and never from its name."""

import os

from harmony_diffusion.errors import DecodeError

HEAD = 4096  # bytes to look at
TIFF_HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

_RAW_SUFFIXES = (
    ".dng",
    ".nef",
    ".arw",
    ".cr2",
    ".cr3",
    ".orf",
    ".rw2",
    ".pef",
    ".srw",
    ".raf",
    ".nrw",
    ".3fr",
)
_CONVERT = "Convert it to PNG, TIFF or JPEG first."
_DEVELOP = "Develop it to a 16-bit TIFF first."
_HEIC = (
    "Convert it to JPEG or PNG, or `pip install pillow-heif`, call `pillow_heif.register_heif_opener()` and "
    "pass the opened PIL image."
)

# Start of the file, what it is, and what to do about it.
_REFUSED = (
    (b"version https://git-lfs", "is a Git LFS pointer, not the picture itself", "Run `git lfs pull`."),
    (b"%PDF", "is a PDF document", _CONVERT),
    (b"%!PS", "is a PostScript or EPS document", _CONVERT),
    (b"\xc5\xd0\xd3\xc6", "is an EPS document", _CONVERT),
    (b"8BPS", "is a Photoshop document", "Export it as PNG or TIFF first."),
    (b"v/1\x01", "is an OpenEXR picture, which is not read", "Convert it to a 16-bit or float TIFF first."),
    (b"#?RADIANCE", "is a Radiance HDR picture, which is not read", "Convert it to a float TIFF first."),
    (b"SIMPLE  =", "is a FITS file", _CONVERT),
    (b"\x00\x00\x00\x0cjP  ", "is a JPEG 2000 picture, which is not read", _CONVERT),
    (b"\xff\x4f\xff\x51", "is a JPEG 2000 picture, which is not read", _CONVERT),
    (b"\xff\x0a", "is a JPEG XL picture, which is not read", _CONVERT),
    (b"\x00\x00\x00\x0cJXL ", "is a JPEG XL picture, which is not read", _CONVERT),
    (b"FUJIFILMCCD-RAW", "is a camera raw file", _DEVELOP),
    (b"IIRO", "is a camera raw file", _DEVELOP),
    (b"IIU\x00", "is a camera raw file", _DEVELOP),
    (b"PK\x03\x04", "is a ZIP archive", "Unpack it first."),
    (b"\x1f\x8b", "is a gzip archive", "Unpack it first."),
)


def picture_format(head: bytes, path: str | os.PathLike[str]) -> str:
    """Tell the format of a picture file that is read.

    Args:
        head: The first `HEAD` bytes of the file.
        path: For messages, and to know camera raw files, which look like TIFF, by their suffix.

    Returns:
        `"JPEG"`, `"PNG"`, `"WEBP"`, `"TIFF"`, `"BMP"`, `"AVIF"` or `"GIF"`.

    Raises:
        DecodeError: Any other kind of file; the message says which.
    """
    if not head:
        raise DecodeError(path, "is an empty file (0 bytes)", "Copy or download it again.")
    if head[4:8] == b"ftyp":
        return _iso_media(head, path)
    if head[:4] in TIFF_HEADS:
        if head[8:10] == b"CR" or os.fsdecode(path).lower().endswith(_RAW_SUFFIXES):
            raise DecodeError(path, "is a camera raw file", _DEVELOP)
        return "TIFF"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WEBP"
    for start, name in (
        (b"\xff\xd8\xff", "JPEG"),
        (b"\x89PNG\r\n\x1a\n", "PNG"),
        (b"BM", "BMP"),
        (b"GIF87a", "GIF"),
        (b"GIF89a", "GIF"),
    ):
        if head.startswith(start):
            return name
    for start, reason, fix in _REFUSED:
        if head.startswith(start):
            raise DecodeError(path, reason, fix)
    raise DecodeError(path, *_describe_text(head))


def _iso_media(head: bytes, path: str | os.PathLike[str]) -> str:
    """Tell the ISO media formats (AVIF, HEIC, Canon raw, video) by their brands."""
    length = min(int.from_bytes(head[:4], "big"), len(head))
    brands = {head[i : i + 4] for i in (8, *range(16, max(length - 3, 16), 4))}
    if brands & {b"avif", b"avis"}:
        return "AVIF"
    if brands & {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}:
        raise DecodeError(path, "is a HEIC picture, which is not read directly", _HEIC)
    if b"crx " in brands:
        raise DecodeError(path, "is a camera raw file", _DEVELOP)
    raise DecodeError(path, "is a video or audio file", "Give a picture, or use `harmony video`.")


def _describe_text(head: bytes) -> tuple[str, str]:
    if not head.strip(b"\0"):
        return "holds only zero bytes", "Copy or download it again."
    text = head.decode("utf-8", errors="replace").lstrip("\ufeff \t\r\n")
    start = text.lower()
    if start.startswith("<svg") or (start.startswith("<?xml") and "<svg" in start):
        return "is an SVG drawing", _CONVERT
    if start.startswith(("<!doctype html", "<html", "<head", "<body")):
        return "is a web page (HTML), not a picture", "The download probably failed: check its address."
    if head.isascii() and all(byte >= 32 or byte in b"\t\n\r\f" for byte in head):
        first = text.splitlines()[0][:40] if text else ""
        return f"is a text file that begins with {first!r}", "Give a picture file."
    return "is no picture of a known format", "JPEG, PNG, WebP, TIFF, BMP, AVIF and GIF are read."


def webp_size(head: bytes) -> tuple[int, int] | None:
    """Read height and width from the start of a WebP file, before a decoder reserves memory for them."""
    chunk = head[12:16]
    if chunk == b"VP8X" and len(head) >= 30:
        width, height = (1 + int.from_bytes(head[i : i + 3], "little") for i in (24, 27))
    elif chunk == b"VP8L" and len(head) >= 25:
        bits = int.from_bytes(head[21:25], "little")
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    elif chunk == b"VP8 " and len(head) >= 30:
        width, height = (int.from_bytes(head[i : i + 2], "little") & 0x3FFF for i in (26, 28))
    else:
        return None
    return height, width


def avif_is_deep(head: bytes) -> bool:
    """Tell from the start of an AVIF file whether it has 10 or 12 bits a channel."""
    configuration = head.find(b"av1C")  # AV1-ISOBMFF, section 2.3: the bit `high_bitdepth`
    return 0 <= configuration < len(head) - 6 and bool(head[configuration + 6] & 0x40)
