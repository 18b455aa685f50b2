"""Colour profiles and odd files, made on the spot, and what must be true when they are refused."""

import contextlib
import struct
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from PIL import Image
from skimage.color import xyz2lab

from harmony_diffusion.errors import InputError
from harmony_diffusion.images.picture import load_picture

# Columns: XYZ (D50) of red, green and blue, as these spaces' published profiles hold them.
DISPLAY_P3 = np.array(((0.51512, 0.29198, 0.1571), (0.2412, 0.69225, 0.06657), (-0.00105, 0.04189, 0.78407)))
ADOBE_RGB = np.array(((0.60974, 0.20528, 0.14919), (0.31111, 0.62567, 0.06322), (0.01947, 0.06087, 0.74457)))
SRGB = np.array(((0.43607, 0.38515, 0.14307), (0.22249, 0.71687, 0.06061), (0.01392, 0.09708, 0.7141)))


def _s15(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(65536 * value)) for value in values)


def gamma_curve(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(256 * gamma))


def table_curve(values: np.ndarray) -> bytes:
    table = np.rint(np.asarray(values) * 65535).astype(">u2")
    return b"curv\0\0\0\0" + struct.pack(">I", len(table)) + table.tobytes()


def parametric_curve(kind: int, *parameters: float) -> bytes:
    return b"para\0\0\0\0" + struct.pack(">HH", kind, 0) + _s15(*parameters)


SRGB_CURVE = parametric_curve(3, 2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)


def profile_of_tags(
    tags: dict[bytes, bytes], *, space: bytes = b"RGB ", connection: bytes = b"XYZ ", kind: bytes = b"mntr"
) -> bytes:
    tags = {b"wtpt": b"XYZ \0\0\0\0" + _s15(0.9642, 1, 0.8249), **tags}
    offset = 128 + 4 + 12 * len(tags)
    table, data = struct.pack(">I", len(tags)), b""
    for name, value in tags.items():
        table += name + struct.pack(">II", offset + len(data), len(value))
        data += value + b"\0" * (-len(value) % 4)
    header = struct.pack(">I4sI", offset + len(data), b"\0\0\0\0", 0x04200000) + kind + space + connection
    header += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + b"\0" * 24 + b"\0\0\0\0"
    header += _s15(0.9642, 1, 0.8249)
    return header.ljust(128, b"\0") + table + data


def matrix_profile(
    primaries: np.ndarray, *curves: bytes, tags: Mapping[bytes, bytes] = MappingProxyType({})
) -> bytes:
    """An RGB profile of primaries (3, 3) and one tone curve, or three, and other tags."""
    red, green, blue = curves if len(curves) == 3 else curves * 3
    tags = {**tags, b"rTRC": red, b"gTRC": green, b"bTRC": blue}
    for i, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ")):
        tags[name] = b"XYZ \0\0\0\0" + _s15(*primaries[:, i])
    return profile_of_tags(tags)


def grey_profile(curve: bytes) -> bytes:
    return profile_of_tags({b"kTRC": curve}, space=b"GRAY")


def lut16(function, inputs: int, grid: int) -> bytes:
    """A `lut16Type` that samples `function` from (N, inputs) to (N, 3), all in [0, 1]."""
    steps = np.linspace(0, 1, grid)
    nodes = np.stack(np.meshgrid(*[steps] * inputs, indexing="ij"), -1).reshape(-1, inputs)
    head = b"mft2\0\0\0\0" + bytes((inputs, 3, grid, 0)) + _s15(1, 0, 0, 0, 1, 0, 0, 0, 1)
    linear = np.array((0, 65535), ">u2").tobytes()
    values = np.rint(function(nodes).clip(0, 1) * 65535).astype(">u2").tobytes()
    return head + struct.pack(">HH", 2, 2) + linear * inputs + values + linear * 3


def _lab_of(rgb: np.ndarray) -> np.ndarray:
    """sRGB to the 16-bit Lab encoding of ICC version 2, in [0, 1]."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    lab = xyz2lab(linear @ SRGB.T, illuminant="D50")
    return np.stack((lab[:, 0] / 100 * 65280, (lab[:, 1] + 128) * 256, (lab[:, 2] + 128) * 256), 1) / 65535


def _rgb_of_lab(encoded: np.ndarray) -> np.ndarray:
    values = encoded * 65535
    lab = np.stack((values[:, 0] / 652.8, values[:, 1] / 256 - 128, values[:, 2] / 256 - 128), 1)
    y = (lab[:, 0] + 16) / 116
    bent = np.stack((y + lab[:, 1] / 500, y, y - lab[:, 2] / 200), 1)
    xyz = np.where(bent > 6 / 29, bent**3, 3 * (6 / 29) ** 2 * (bent - 4 / 29)) * SRGB.sum(1)
    linear = (xyz @ np.linalg.inv(SRGB).T).clip(0, 1)
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)


def swapped_table_profile(*, writable: bool = True) -> bytes:
    """A table profile of an RGB space that is sRGB with red and blue exchanged."""
    tags = {b"A2B0": lut16(lambda rgb: _lab_of(rgb[:, ::-1]), 3, 17)}
    if writable:
        tags[b"B2A0"] = lut16(lambda lab: _rgb_of_lab(lab)[:, ::-1], 3, 33)
    return profile_of_tags(tags, connection=b"Lab ", kind=b"mntr" if writable else b"scnr")


def cmyk_profile() -> bytes:
    """A CMYK profile in which inks take light away independently of each other."""
    tags = {b"A2B0": lut16(lambda cmyk: _lab_of((1 - cmyk[:, :3]) * (1 - cmyk[:, 3:])), 4, 9)}
    return profile_of_tags(tags, space=b"CMYK", connection=b"Lab ", kind=b"prtr")


def png(width: int, height: int, depth: int, color: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG file of unfiltered rows, each with its filter byte 0."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)), *chunks]
    parts += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )


def png16(pixels: np.ndarray, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG file of (H, W, C) uint16."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    color = {1: 0, 2: 4, 3: 2, 4: 6}[pixels.shape[2]]
    return png(pixels.shape[1], pixels.shape[0], 16, color, rows, *chunks)


def files_in(folder: Path) -> dict[str, bytes]:
    """What a folder holds, to show that nothing was written or changed."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def smooth_picture(height: int = 40, width: int = 56, dtype: type = np.uint8, seed: int = 0) -> np.ndarray:
    """A colourful picture without sharp edges, (H, W, 3)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    waves = [np.sin(6 * (a * x + b * y) + c) for a, b, c in rng.uniform(-1, 1, (3, 3))]
    values = np.stack(waves, 2) * 0.45 + 0.5
    return (
        values.astype(np.float32)
        if dtype is np.float32
        else np.rint(values * np.iinfo(dtype).max).astype(dtype)
    )


def refusal(kind: type[InputError], source: object, load=load_picture, **options: object) -> str:
    """The message with which a source is refused; a path is named in it, on one line, and is not changed."""
    before = files_in(Path(source).parent) if isinstance(source, Path) and source.parent.is_dir() else None
    with pytest.raises(kind) as caught:
        load(source, **options)
    message = str(caught.value)
    assert message.startswith(f"{caught.value.subject}: {caught.value.reason}")
    assert caught.value.fix and "\n" not in message
    if isinstance(source, Path):
        assert str(source) in message
    if before is not None:
        assert files_in(source.parent) == before
    return message


@contextlib.contextmanager
def silence():
    """Fail when something is noted."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def saved(path: Path, image: Image.Image | np.ndarray, **options: object) -> Path:
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)
    return path


def info_of(path: Path) -> dict:
    with Image.open(path) as image:
        image.load()
        return {**image.info, "mode": image.mode, "exif_tags": dict(image.getexif())}


def disk(height: int = 64, width: int = 64) -> np.ndarray:
    """A hard mask with values 0 and 255."""
    y, x = np.mgrid[0:height, 0:width]
    return np.where((y - height / 2) ** 2 + (x - width / 2) ** 2 < (height / 4) ** 2, 255, 0).astype(np.uint8)
