"""ICC profiles: pixels of a picture's own colour space to sRGB values and back.

Matrix profiles (three primaries and three tone curves: sRGB, Display P3, Adobe RGB, ProPhoto, …) are computed
here, in one way for 8 bits, 16 bits and floating point. Profiles made of lookup tables, and CMYK, go through
LittleCMS as Pillow binds it, which works on 8 bits.

Specification: ICC.1:2022 (https://www.color.org), sections 7 (header), 9 (tags) and 10.6, 10.18 (curves).
"""

import io
import struct
from functools import lru_cache
from typing import Protocol

import numpy as np
from PIL import Image, ImageCms

# Linear sRGB (IEC 61966-2-1) to CIE XYZ relative to D50, the white of ICC profiles; adapted by Bradford.
_SRGB_TO_XYZ = np.array(
    ((0.4360747, 0.3850649, 0.1430804), (0.2225045, 0.7168786, 0.0606169), (0.0139322, 0.0971045, 0.7141733))
)
_GRID = np.linspace(0, 1, 65536)
# A profile that moves no grey by more than half an 8-bit step is sRGB under another name. Colours may move
# three times as far: the usual sRGB profiles give their primaries with 4 or 5 digits, which shows near black.
_SAME_GREY, _SAME_COLOR = 0.5 / 255, 1.5 / 255


class RgbProfile(Protocol):
    """A colour space with three channels.

    Attributes:
        exact: Whether conversion keeps more than 8 bits.
        writable: Whether `from_srgb` can be called.
    """

    exact: bool
    writable: bool

    def to_srgb(self, pixels: np.ndarray) -> np.ndarray:
        """Convert `(..., 3)` uint8, uint16 or float32 pixels to sRGB, float32 in [0, 1]."""

    def from_srgb(self, values: np.ndarray) -> np.ndarray:
        """Convert `(..., 3)` sRGB in [0, 1] to this space, float32 in [0, 1]."""


@lru_cache(maxsize=8)
def rgb_profile(profile: bytes) -> RgbProfile | None:
    """Read an RGB profile.

    Args:
        profile: The ICC profile.

    Returns:
        Its conversions; None when it is sRGB, but for rounding.

    Raises:
        ValueError: The profile is damaged, or describes another kind of colour than RGB.
    """
    tags = _Tags(profile)
    if tags.space != b"RGB ":
        raise ValueError(f"it describes {tags.space.decode('latin-1').strip()} colours, not RGB")
    found: RgbProfile
    try:
        found = _MatrixProfile(tags)
    except _NoMatrix:
        found = _TableProfile(profile)
    return None if _is_srgb(found) else found


def _is_srgb(profile: RgbProfile) -> bool:
    steps = np.linspace(0, 1, 9, dtype=np.float32)
    colors = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(1, -1, 3)
    greys = np.repeat(np.linspace(0, 1, 256, dtype=np.float32)[None, :, None], 3, axis=2)
    return all(
        np.abs(profile.to_srgb(probe) - probe).max() <= limit
        for probe, limit in ((greys, _SAME_GREY), (colors, _SAME_COLOR))
    )


@lru_cache(maxsize=8)
def grey_curve(profile: bytes) -> np.ndarray | None:
    """Read a grey profile.

    Args:
        profile: The ICC profile.

    Returns:
        The sRGB value of each of 65536 equally spaced grey values, in [0, 1]; None when they are the same up
        to half an 8-bit step.

    Raises:
        ValueError: The profile is damaged, or describes another kind of colour than grey.
    """
    tags = _Tags(profile)
    if tags.space != b"GRAY":
        raise ValueError(f"it describes {tags.space.decode('latin-1').strip()} colours, not grey")
    curve = _encode(_curve(tags[b"kTRC"]))
    return None if np.abs(curve - _GRID).max() <= _SAME_GREY else curve


def apply_curve(curve: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Look values up in a curve of 65536 samples, keeping their dtype (uint8, uint16 or float32)."""
    if values.dtype == np.float32:
        return np.interp(values, _GRID, curve).astype(np.float32)
    white = np.iinfo(values.dtype).max
    return np.rint(curve[:: 65535 // white] * white).astype(values.dtype)[values]


def cmyk_to_rgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Convert a CMYK image to sRGB through its profile.

    Raises:
        ValueError: The profile is damaged, or describes another kind of colour than CMYK.
    """
    if _Tags(profile).space != b"CMYK":
        raise ValueError("it does not describe CMYK colours")
    converted = ImageCms.applyTransform(image, _transform(_open(profile), _srgb(), "CMYK"))
    assert converted is not None
    return converted


def _encode(linear: np.ndarray) -> np.ndarray:
    """Apply the sRGB transfer curve to values in [0, 1]."""
    bent = 1.055 * np.maximum(linear, 0.0031308) ** (1 / 2.4) - 0.055
    return np.where(linear <= 0.0031308, linear * 12.92, bent)


def _decode(values: np.ndarray) -> np.ndarray:
    """Undo the sRGB transfer curve on values in [0, 1]."""
    bent = ((np.maximum(values, 0.04045) + 0.055) / 1.055) ** 2.4
    return np.where(values <= 0.04045, values / 12.92, bent)


def _look_up(table: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Interpolate in a table of equally spaced samples at values in [0, 1]."""
    position = values * np.float32(len(table) - 1)
    below = np.minimum(position.astype(np.int32), len(table) - 2)
    position -= below
    return table[below] + position * (table[below + 1] - table[below])


class _NoMatrix(Exception):
    """The profile has tables, or curves that cannot be inverted."""


class _Tags:
    """The tags of an ICC profile, by their four-letter names."""

    def __init__(self, profile: bytes) -> None:
        if len(profile) < 132 or profile[36:40] != b"acsp":
            raise ValueError("it is not an ICC profile")
        self.space, self.connection = profile[16:20], profile[20:24]
        (count,) = struct.unpack_from(">I", profile, 128)
        if 132 + 12 * count > len(profile):
            raise ValueError("it is cut off")
        self._tags = {}
        for i in range(count):
            name, offset, size = struct.unpack_from(">4sII", profile, 132 + 12 * i)
            if offset + size > len(profile):
                raise ValueError("it is cut off")
            self._tags[name] = profile[offset : offset + size]

    def __contains__(self, name: bytes) -> bool:
        return name in self._tags

    def __getitem__(self, name: bytes) -> bytes:
        if name not in self._tags:
            raise ValueError(f"it has no {name.decode('latin-1')} tag")
        return self._tags[name]


def _numbers(data: bytes, start: int, count: int) -> np.ndarray:
    """Read `s15Fixed16Number`s."""
    if start + 4 * count > len(data):
        raise ValueError("it is cut off")
    return np.frombuffer(data, ">i4", count, start) / 65536


def _curve(data: bytes) -> np.ndarray:
    """Return the linear value of each of 65536 equally spaced encoded values, in [0, 1]."""
    if len(data) < 12:
        raise ValueError("it is cut off")
    if data[:4] == b"para":
        return _parametric_curve(data)
    if data[:4] != b"curv":
        raise ValueError("it has a tone curve of an unknown kind")
    (count,) = struct.unpack_from(">I", data, 8)
    if 12 + 2 * count > len(data):
        raise ValueError("it is cut off")
    table = np.frombuffer(data, ">u2", count, 12).astype(np.float64)
    if count == 0:
        return _GRID
    if count == 1:
        return _GRID ** (table[0] / 256)
    return np.interp(_GRID, np.linspace(0, 1, count), table / 65535)


def _parametric_curve(data: bytes) -> np.ndarray:
    (kind,) = struct.unpack_from(">H", data, 8)
    if kind > 4:
        raise ValueError("it has a tone curve of an unknown kind")
    given = _numbers(data, 12, (1, 3, 4, 5, 7)[kind])
    gamma, a, b, c, d, e, f = 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0
    if kind == 0:
        (gamma,) = given
    elif kind == 1:
        gamma, a, b = given
    elif kind == 2:
        gamma, a, b, e = given
        f = e
    elif kind == 3:
        gamma, a, b, c, d = given
    else:
        gamma, a, b, c, d, e, f = given
    if kind in (1, 2):
        d = -b / a if a else 0.0
    bent = np.maximum(a * _GRID + b, 0) ** gamma + e
    return np.where(_GRID >= d, bent, c * _GRID + f).clip(0, 1)


class _MatrixProfile:
    """Tone curves to linear light, then a matrix to linear sRGB."""

    exact = True
    writable = True

    def __init__(self, tags: _Tags) -> None:
        # Tables have precedence over the matrix where a profile has both (ICC.1:2022, 8.10).
        if tags.connection != b"XYZ " or b"A2B0" in tags or b"A2B1" in tags or b"rXYZ" not in tags:
            raise _NoMatrix
        curves = np.stack([_curve(tags[name]) for name in (b"rTRC", b"gTRC", b"bTRC")], 1)
        if not np.isfinite(curves).all() or (np.diff(curves, axis=0) < 0).any() or (curves[-1] < 0.5).any():
            raise _NoMatrix
        primaries = np.stack([_numbers(tags[name], 8, 3) for name in (b"rXYZ", b"gXYZ", b"bXYZ")], 1)
        matrix = np.linalg.solve(_SRGB_TO_XYZ, primaries)
        white = matrix.sum(1, keepdims=True)
        if np.abs(white - 1).max() < 0.002:  # rounding in the profile: keep greys grey to the last bit
            matrix = matrix / white
        if abs(np.linalg.det(matrix)) < 1e-6:
            raise ValueError("its primaries lie on a line")
        self._to_linear = curves.astype(np.float32)
        # The inverse curves, sampled at equal steps of sRGB value: as in all these spaces, that is where the
        # eye sees equal steps, and they are nearly straight.
        linear = _decode(_GRID)
        self._from_srgb = np.stack([np.interp(linear, curves[:, c], _GRID) for c in range(3)], 1)
        self._from_srgb = self._from_srgb.astype(np.float32)
        self._matrix = matrix.T.astype(np.float32)
        self._inverse = np.linalg.inv(matrix).T.astype(np.float32)

    def to_srgb(self, pixels: np.ndarray) -> np.ndarray:
        """Convert `(..., 3)` uint8, uint16 or float32 pixels to sRGB, float32 in [0, 1]."""
        linear = np.empty(pixels.shape, np.float32)
        for c in range(3):
            if pixels.dtype == np.float32:
                linear[..., c] = _look_up(self._to_linear[:, c], pixels[..., c])
            else:
                step = 257 if pixels.dtype == np.uint8 else 1
                linear[..., c] = self._to_linear[::step, c][pixels[..., c]]
        return _encode((linear @ self._matrix).clip(0, 1))

    def from_srgb(self, values: np.ndarray) -> np.ndarray:
        """Convert `(..., 3)` sRGB in [0, 1] to this space, float32 in [0, 1]."""
        values = _decode(np.ascontiguousarray(values, np.float32))
        values = _encode((values @ self._inverse).clip(0, 1))
        for c in range(3):
            values[..., c] = _look_up(self._from_srgb[:, c], values[..., c])
        return values


class _TableProfile:
    """Lookup tables, through LittleCMS on 8 bits."""

    exact = False

    def __init__(self, profile: bytes) -> None:
        opened = _open(profile)
        self._to_srgb = _transform(opened, _srgb(), "RGB")
        try:
            self._from_srgb = _transform(_srgb(), opened, "RGB")
        except ValueError:
            self.writable = False
        else:
            self.writable = True

    def to_srgb(self, pixels: np.ndarray) -> np.ndarray:
        """Convert `(..., 3)` uint8, uint16 or float32 pixels to sRGB, float32 in [0, 1]."""
        return _apply(self._to_srgb, pixels)

    def from_srgb(self, values: np.ndarray) -> np.ndarray:
        """Convert `(..., 3)` sRGB in [0, 1] to this space, float32 in [0, 1]."""
        return _apply(self._from_srgb, values.astype(np.float32, copy=False))


def _apply(transform: ImageCms.ImageCmsTransform, pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype != np.uint8:
        scale = 255 if pixels.dtype == np.float32 else 1 / 257
        pixels = np.rint(pixels * np.float32(scale)).astype(np.uint8)
    converted = ImageCms.applyTransform(Image.fromarray(np.ascontiguousarray(pixels)), transform)
    return np.asarray(converted, dtype=np.float32) / np.float32(255)


def _open(profile: bytes) -> ImageCms.ImageCmsProfile:
    try:
        return ImageCms.ImageCmsProfile(io.BytesIO(profile))
    except (OSError, ImageCms.PyCMSError) as error:
        raise ValueError("it cannot be opened") from error


@lru_cache(maxsize=1)
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def _transform(
    source: ImageCms.ImageCmsProfile, target: ImageCms.ImageCmsProfile, mode: str
) -> ImageCms.ImageCmsTransform:
    """Build a conversion, relative colorimetric with black point compensation as photo editors do."""
    try:
        return ImageCms.buildTransform(
            source,
            target,
            mode,
            "RGB",
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (OSError, ImageCms.PyCMSError) as error:
        raise ValueError("its tables cannot be used") from error
