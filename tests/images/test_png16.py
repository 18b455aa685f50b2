"""PNG files of 16 bits, still, interlaced and animated; and orientation wherever programs write it."""

import struct
import zlib

import numpy as np
import pytest
from picture_files import png16
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from harmony_diffusion.errors import DecodeError, InputError, InputNote
from harmony_diffusion.images.picture import load_picture
from harmony_diffusion.images.quick_decoding import read_picture
from harmony_diffusion.images.sources import Content

SHAPE = 37, 53
COLORS = {1: 0, 2: 4, 3: 2, 4: 6}
PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
XMP = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def rows_of(pixels):
    return b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)


def png_of(pixels, *chunks, interlaced=0):
    header = struct.pack(">IIBBBBB", SHAPE[1], SHAPE[0], 16, COLORS[pixels.shape[2]], 0, 0, interlaced)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IEND", b"")


def interlaced(pixels):
    parts = [pixels[y::dy, x::dx] for x, y, dx, dy in PASSES]
    data = zlib.compress(b"".join(rows_of(part) for part in parts if part.size))
    return png_of(pixels, chunk(b"IDAT", data), interlaced=1)


def animated(pixels, others, *, default_image):
    """An animation of `others`; without `default_image`, `pixels` is its first frame."""
    control = lambda number: chunk(  # noqa: E731
        b"fcTL", struct.pack(">IIIIIHHBB", number, SHAPE[1], SHAPE[0], 0, 0, 1, 10, 0, 0)
    )
    frames = len(others) + (not default_image)
    parts, number = [chunk(b"acTL", struct.pack(">II", frames, 0))], 0
    if not default_image:
        parts.append(control(0))
        number = 1
    parts.append(chunk(b"IDAT", zlib.compress(rows_of(pixels))))
    for other in others:
        parts.append(control(number))
        parts.append(chunk(b"fdAT", struct.pack(">I", number + 1) + zlib.compress(rows_of(other))))
        number += 2
    return png_of(pixels, *parts)


@pytest.mark.parametrize("samples", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", ["still", "interlaced", "animated", "animated beside a picture"])
def test_every_kind_is_exact(tmp_path, samples, kind):
    pixels, other = np.random.default_rng(0).integers(0, 65536, (2, *SHAPE, samples), dtype=np.uint16)
    path = tmp_path / "a.png"
    contents = {
        "still": lambda: png16(pixels),
        "interlaced": lambda: interlaced(pixels),
        "animated": lambda: animated(pixels, [other], default_image=False),
        "animated beside a picture": lambda: animated(pixels, [other], default_image=True),
    }
    path.write_bytes(contents[kind]())
    if "animated" in kind:
        with pytest.warns(InputNote, match="has 2 frames, and the first is taken"):
            picture = load_picture(path)
    else:
        picture = load_picture(path)
    colors = 3 if samples >= 3 else 1
    assert np.array_equal(picture.pixels, np.broadcast_to(pixels[..., :colors], (*SHAPE, 3)))
    assert (picture.alpha is None) == (samples in (1, 3))
    if picture.alpha is not None:
        assert np.array_equal(picture.alpha, pixels[..., colors])


def test_frames_are_counted_as_in_8_bits(tmp_path):
    pixels, other = np.random.default_rng(0).integers(0, 65536, (2, *SHAPE, 3), dtype=np.uint16)
    path = tmp_path / "a.png"
    path.write_bytes(png16(pixels))
    with pytest.raises(InputError, match="has 1 frame"):
        load_picture(path, frame=1)
    for default_image in (False, True):
        path.write_bytes(animated(pixels, [other], default_image=default_image))
        with Image.open(path) as image:
            assert image.n_frames == 2
        with pytest.raises(DecodeError, match="only the first frame is read"):
            load_picture(path, frame=np.int64(1))
        with pytest.raises(InputError, match="has 2 frame.*no frame 2"):
            load_picture(path, frame=2)


def raw_profile(kind, data):
    digits = data.hex()
    lines = [digits[i : i + 72] for i in range(0, len(digits), 72)]
    return f"\n{kind}\n{len(data):8}\n" + "\n".join(lines) + "\n"


@pytest.mark.parametrize("deep", [False, True], ids=["8 bits", "16 bits"])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    "keyword", ["XML:com.adobe.xmp", "Raw profile type exif", "Raw profile type APP1", "Raw profile type xmp"]
)
def test_orientation_in_texts_of_png_is_heeded_by_both_readers(tmp_path, deep, compressed, keyword):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Maker"
    text = {
        "XML:com.adobe.xmp": XMP,
        "Raw profile type xmp": raw_profile("xmp", XMP.encode()),
        "Raw profile type exif": raw_profile("exif", exif.tobytes()),
        "Raw profile type APP1": raw_profile("APP1", exif.tobytes()),
    }[keyword]
    pixels = np.random.default_rng(0).integers(0, 256, (*SHAPE, 3), dtype=np.uint8)
    path = tmp_path / "a.png"
    if deep:
        kind = b"iTXt" if "XML" in keyword else b"zTXt" if compressed else b"tEXt"
        data = zlib.compress(text.encode()) if compressed else text.encode()
        head = {b"iTXt": bytes((compressed, 0)) + b"\0\0", b"zTXt": b"\0", b"tEXt": b""}[kind]
        path.write_bytes(
            png16(pixels.astype(np.uint16) * 257, (kind, keyword.encode() + b"\0" + head + data))
        )
    else:
        info = PngInfo()
        (info.add_itxt if "XML" in keyword else info.add_text)(keyword, text, zip=compressed)
        Image.fromarray(pixels).save(path, pnginfo=info)
    picture = load_picture(path)
    assert np.array_equal(picture.pixels // (257 if deep else 1), np.rot90(pixels, -1))
    if "exif" in keyword or "APP1" in keyword:
        assert b"Maker" in picture.exif
    quick = read_picture(Content("a.png", path.read_bytes()))
    assert np.abs(quick.astype(int) - np.rot90(pixels, -1)).max() <= 1


@pytest.mark.parametrize("suffix", ["jpg", "webp", "tif"])
def test_orientation_in_xmp_counts_only_where_exif_has_none(tmp_path, suffix):
    pixels = np.zeros((*SHAPE, 3), np.uint8)
    options = {"tiffinfo": {700: XMP.encode()}} if suffix == "tif" else {"xmp": XMP.encode()}
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(pixels).save(path, **options)
    assert load_picture(path).size == SHAPE[::-1] and read_picture(path).shape[:2] == SHAPE[::-1]
    exif = Image.Exif()
    exif[0x0112] = 1
    options = {"tiffinfo": {700: XMP.encode(), 274: 1}} if suffix == "tif" else {**options, "exif": exif}
    Image.fromarray(pixels).save(path, **options)
    assert load_picture(path).size == SHAPE and read_picture(path).shape[:2] == SHAPE
