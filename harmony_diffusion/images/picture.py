"""The image contract: pictures and masks in, the same kind of picture out."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, BinaryIO, Union

import numpy as np
from PIL import Image

from harmony_diffusion.errors import InputError, InputTypeError, MaskError
from harmony_diffusion.images.arrays import (
    MAX_PIXELS,
    Raster,
    is_tensor,
    note,
    picture_of_array,
    row_chunks,
    size_mismatch,
    white_of,
    with_depth,
)
from harmony_diffusion.images.decoding import read_file, read_pil
from harmony_diffusion.images.encoding import format_of, pil_of, write_picture
from harmony_diffusion.images.icc import apply_curve, grey_curve, rgb_profile
from harmony_diffusion.images.masks import MaskSource, is_black_and_white, load_mask
from harmony_diffusion.images.output_files import write_atomically
from harmony_diffusion.numbers import check_integer, check_number

if TYPE_CHECKING:
    import torch

_ALL = slice(None)
# Two computations of the same sRGB value, in windows of different size, differ by less than this.
_ROUNDING = 1e-6
_SWAPPED = "is black and white, and the mask is not: the composite and the mask may be swapped"

PictureSource = Union[str, os.PathLike[str], Image.Image, np.ndarray, "torch.Tensor", "Picture"]


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture in its own depth and colour space.

    Attributes:
        pixels: `(H, W, 3)` uint8, uint16 or float32 in [0, 1]; RGB, upright; read-only.
        alpha: `(H, W)` of the same dtype; None = opaque.
        profile: ICC profile of `pixels`; None = sRGB.
        exif: EXIF block, orientation 1.
        name: Path or argument name, for messages.

    Example:
        >>> picture = Picture(np.full((32, 48, 3), 51, np.uint8))
        >>> float(picture.read_srgb(slice(0, 2), slice(0, 2)).max())
        0.20000000298023224
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    profile: bytes | None = None
    exif: bytes | None = None
    name: str = "composite"

    def __post_init__(self) -> None:
        """Replace the arrays, which may be the caller's, by views that cannot be written to."""
        for field in ("pixels", "alpha"):
            array = getattr(self, field)
            if array is not None:
                array = array.view()
                array.flags.writeable = False
                object.__setattr__(self, field, array)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.pixels.shape[0], self.pixels.shape[1]

    @property
    def visible(self) -> np.ndarray | None:
        """Alpha as float32 `(H, W)` in [0, 1], to keep hidden colours out of statistics; None when opaque.

        The array has its own memory.
        """
        return None if self.alpha is None else with_depth(self.alpha, np.float32).copy()

    def read_srgb(self, rows: slice = _ALL, columns: slice = _ALL) -> np.ndarray:
        """Read a window as sRGB values; colours that sRGB does not have are clipped.

        Args:
            rows: Rows of the window.
            columns: Its columns.

        Returns:
            `(h, w, 3)` float32 in [0, 1], with its own memory.
        """
        return self._srgb_of(self.pixels[rows, columns])

    def cut(self, window: tuple[slice, slice]) -> "Picture":
        """Return the rows and columns of a window as a picture that shares the memory of this one."""
        return replace(
            self, pixels=self.pixels[window], alpha=None if self.alpha is None else self.alpha[window]
        )

    def _srgb_of(self, pixels: np.ndarray) -> np.ndarray:
        profile = rgb_profile(self.profile) if self.profile else None
        if profile is not None:
            return profile.to_srgb(pixels)
        if pixels.dtype == np.float32:
            return pixels.copy()
        return pixels.astype(np.float32) / np.float32(white_of(pixels.dtype))

    def write_srgb(self, values: np.ndarray, rows: slice = _ALL, columns: slice = _ALL) -> np.ndarray:
        """Turn sRGB values for a window into pixels of this picture's depth and colour space.

        Args:
            values: `(h, w, 3)` in [0, 1].
            rows: Rows of the window.
            columns: Its columns.

        Returns:
            `(h, w, 3)` in the dtype of `pixels`, rounded to nearest. Where `values` equal what `read_srgb`
            returns, these are the picture's own pixels, to the bit.
        """
        own = self.pixels[rows, columns]
        values = values.astype(np.float32, copy=False).clip(0, 1)
        profile = rgb_profile(self.profile) if self.profile else None
        if profile is None:
            return with_depth(values, own.dtype.type).copy()
        written = with_depth(profile.from_srgb(values), own.dtype.type)
        unchanged = (np.abs(values - profile.to_srgb(own)) <= _ROUNDING).all(axis=2, keepdims=True)
        return np.where(unchanged, own, written)

    def thumbnail_srgb(self, height: int, width: int, *, antialias: bool = False) -> np.ndarray:
        """Resize to sRGB values, without a floating-point copy of the whole picture.

        Args:
            height: Rows of the result.
            width: Columns of the result.
            antialias: Average all pixels under each one of the result, as
                `torch.nn.functional.adaptive_avg_pool2d` does. Otherwise interpolate between the four nearest
                ones, as `torch.nn.functional.interpolate(mode="bilinear", align_corners=False)` does: the
                preprocessing that the published networks were trained with.

        Returns:
            `(height, width, 3)` float32 in [0, 1].
        """
        if antialias:
            return self._averaged(height, width)
        top, bottom, down = _neighbours(self.size[0], height)
        left, right, across = _neighbours(self.size[1], width)
        down, across = down[:, None, None], across[None, :, None]
        upper, lower = (
            self._srgb_of(self.pixels[np.ix_(rows, left)]) * (1 - across)
            + self._srgb_of(self.pixels[np.ix_(rows, right)]) * across
            for rows in (top, bottom)
        )
        return upper * (1 - down) + lower * down

    def _averaged(self, height: int, width: int) -> np.ndarray:
        (top, bottom), (left, right) = _bins(self.size[0], height), _bins(self.size[1], width)
        result = np.empty((height, width, 3), np.float32)
        for i in range(height):
            strip = self.read_srgb(slice(top[i], bottom[i])).mean(axis=0, dtype=np.float64)
            sums = np.concatenate((np.zeros((1, 3)), np.cumsum(strip, axis=0)))
            result[i] = (sums[right] - sums[left]) / (right - left)[:, None]
        return result.clip(0, 1)

    def with_pixels(self, pixels: np.ndarray) -> "Picture":
        """Return the same picture with other pixels.

        Raises:
            InputError: They are not of the same shape and dtype.
        """
        if pixels.shape != self.pixels.shape or pixels.dtype != self.pixels.dtype:
            raise InputError(
                "pixels",
                f"have shape {pixels.shape} and dtype {pixels.dtype}, "
                f"not {self.pixels.shape} and {self.pixels.dtype}",
                "Use `write_srgb` to make them.",
            )
        return replace(self, pixels=pixels)

    def to_numpy(self) -> np.ndarray:
        """Return a copy of the pixels in their own depth and colour space, `(H, W, 3)`, RGBA `(H, W, 4)`."""
        return self.pixels.copy() if self.alpha is None else np.dstack((self.pixels, self.alpha))

    def to_tensor(self) -> "torch.Tensor":
        """Return the sRGB values without alpha, `(3, H, W)` float32 in [0, 1]."""
        import torch

        tensor = torch.empty(3, *self.size)
        for rows in row_chunks(self.size[0]):
            tensor[:, rows] = torch.from_numpy(self.read_srgb(rows)).permute(2, 0, 1)
        return tensor

    def to_pil(self) -> Image.Image:
        """Return an RGB or RGBA image of 8 bits, with colour profile and EXIF data in its `info`."""
        if self.pixels.dtype == np.uint16:
            note(self.name, "has 16 bits a channel, and is reduced to the 8 bits of a PIL image")
        image = pil_of(self.pixels, self.alpha)
        if self.profile:
            image.info["icc_profile"] = self.profile
        if self.exif:
            image.info["exif"] = self.exif
        return image

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        quality: int = 95,
        png_level: int | None = None,
    ) -> None:
        """Write the picture whole or not at all, in the format of the suffix.

        PNG and TIFF keep 16 bits a channel; the other formats have 8, and an `InputNote` says so.

        Args:
            path: File to be written: .png, .jpg, .tif, .webp, .avif or .bmp.
            overwrite: Whether a file that exists already may be replaced.
            quality: 1 to 100, for JPEG, WebP (100 = lossless) and AVIF.
            png_level: Compression of PNG from 0 (none) to 9 (slowest); None = 6 for 8 bits, 2 for 16 bits.

        Raises:
            OutputError: The file exists and `overwrite` is false, it cannot be written there, or the format
                cannot hold the picture.
        """
        content = self.encoder(path, quality=quality, png_level=png_level)
        write_atomically(path, content, overwrite=overwrite, inputs=(self.name,))

    def encoder(
        self, path: str | os.PathLike[str], *, quality: int = 95, png_level: int | None = None
    ) -> Callable[[BinaryIO], None]:
        """Return the function that writes the picture into an open file, in the format of a path's suffix.

        Args:
            path: See `save`; nothing is written there.
            quality: See `save`.
            png_level: See `save`.

        Raises:
            OutputError: The format cannot hold the picture.
        """
        quality = check_integer("quality", quality, 1, 100)
        level = None if png_level is None else check_integer("png_level", png_level, 0, 9)
        kind = format_of(path, alpha=self.alpha is not None, profile=self.profile is not None)
        raster = Raster(self.pixels, self.alpha, self.profile, self.exif)
        name = os.fsdecode(path)
        return lambda file: write_picture(file, kind, raster, name=name, quality=quality, png_level=level)


def _neighbours(length: int, wanted: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return for each new pixel the two old ones around it and the weight of the second."""
    # As torch computes it: a float32 scale, and one rounding after the multiplication and subtraction.
    scale = np.float64(np.float32(length) / np.float32(wanted))
    position = ((np.arange(wanted) + 0.5) * scale - 0.5).astype(np.float32)
    position = np.maximum(position, np.float32(0))
    first = np.minimum(position.astype(np.int64), length - 1)
    weight = np.clip(position - first.astype(np.float32), 0, 1).astype(np.float32)
    return first, np.minimum(first + 1, length - 1), weight


def _bins(length: int, wanted: int) -> tuple[np.ndarray, np.ndarray]:
    """Return start and end of the old pixels under each new one."""
    steps = np.arange(wanted + 1) * length
    return steps[:-1] // wanted, -(-steps[1:] // wanted)


def load_picture(
    source: PictureSource,
    *,
    name: str = "composite",
    max_pixels: int = MAX_PIXELS,
    frame: int = 0,
    allow_truncated: bool = False,
) -> Picture:
    """Load a picture.

    Args:
        source: Path of a JPEG, PNG, WebP, TIFF, BMP, AVIF or GIF file; PIL image; array `(H, W)` or
            `(H, W, C)`; tensor `(C, H, W)` or `(1, C, H, W)` (1 to 4 channels: grey or RGB, with or without
            alpha; uint8, uint16, or floating point in [0, 1]; sRGB); or a `Picture`, returned as it is.
        name: For messages, when `source` is no path.
        max_pixels: Limit of height times width, checked before a file is decoded.
        frame: Which picture to take of an animation or of a file of several pages, from 0.
        allow_truncated: Accept a file of which the end is missing.

    Returns:
        The picture in its own depth and colour space, turned upright as its EXIF data or XMP packet say.

    Raises:
        InputError: Anything that cannot be used; its subclasses tell types (`InputTypeError`), damaged or
            unknown files (`DecodeError`) and sizes (`TooLargeError`) apart.

    Example:
        >>> load_picture(np.zeros((32, 48, 3), np.uint8)).size
        (32, 48)
    """
    limit = check_number("max_pixels", max_pixels, 1)
    if isinstance(source, Picture):
        return source
    if isinstance(source, str | os.PathLike):
        name = os.fsdecode(source)
        raster = read_file(
            source, max_pixels=limit, frame=check_integer("frame", frame), allow_truncated=allow_truncated
        )
    elif isinstance(source, Image.Image):
        raster = read_pil(source, name, max_pixels=limit)
    elif isinstance(source, np.ndarray) or is_tensor(source):
        raster = picture_of_array(source, name, limit)
    else:
        raise InputTypeError(
            name, f"is a {type(source).__name__}", "Give a path, PIL image, NumPy array or torch tensor."
        )
    return _picture_of(raster, name)


def _picture_of(raster: Raster, name: str) -> Picture:
    pixels, alpha, profile = raster.channels, raster.alpha, raster.profile
    if profile:
        try:
            pixels, profile = _settle_profile(pixels, profile, name)
        except ValueError as error:
            note(name, f"its colour profile cannot be used, and sRGB is assumed: {error}")
            profile = None
    if pixels.shape[2] == 1:
        pixels = np.repeat(pixels, 3, axis=2)
    if alpha is not None and alpha.min() == white_of(alpha.dtype):
        alpha = None
    return Picture(pixels, alpha, profile, raster.exif, name)


def _settle_profile(pixels: np.ndarray, profile: bytes, name: str) -> tuple[np.ndarray, bytes | None]:
    """Check that a profile can be worked with; convert the pixels to sRGB where it cannot be kept.

    Raises:
        ValueError: The profile is damaged, or fits another kind of picture.
    """
    if pixels.shape[2] == 1 and profile[16:20] == b"GRAY":
        curve = grey_curve(profile)
        if curve is None:
            return pixels, None
        note(name, "its grey colour profile is converted to sRGB")
        return apply_curve(curve, pixels), None
    found = rgb_profile(profile)
    if found is None:
        return pixels, profile
    if not found.writable:
        note(name, "its colour profile has no way back, and the picture is converted to sRGB")
        return with_depth(found.to_srgb(pixels), pixels.dtype.type), None
    if not found.exact and pixels.dtype != np.uint8:
        note(name, "its colour profile is made of tables; what is changed is computed in 8 bits")
    return pixels, profile


def load_pairs(
    composite: PictureSource | Sequence[PictureSource],
    mask: MaskSource | Sequence[MaskSource],
    *,
    max_pixels: int = MAX_PIXELS,
    frame: int = 0,
    allow_truncated: bool = False,
    invert: bool = False,
    label: int | tuple[int, int, int] | None = None,
    resize: bool = False,
) -> list[tuple[Picture, np.ndarray]]:
    """Load composites with their masks.

    Args:
        composite: What `load_picture` takes, a list of such, an array `(N, H, W, C)` or a tensor
            `(N, C, H, W)`.
        mask: What `load_mask` takes, a list of such, an array `(N, H, W)` or `(N, H, W, 1)`, or a tensor
            `(N, H, W)` or `(N, 1, H, W)`.
        max_pixels: See `load_picture`.
        frame: See `load_picture`.
        allow_truncated: See `load_picture`.
        invert: See `load_mask`.
        label: See `load_mask`.
        resize: See `load_mask`.

    Returns:
        One `(picture, mask)` for each composite; the masks are `(H, W)` float32 in [0, 1].

    Raises:
        InputError: See `load_picture` and `load_mask`; also when there are not as many masks as composites.
        SizeMismatchError: A mask has another size than its composite, and `resize` is false.

    Example:
        >>> import torch
        >>> ((picture, mask),) = load_pairs(torch.rand(3, 32, 48), torch.ones(32, 48) / 2)
        >>> picture.size == mask.shape
        True
    """
    pictures = load_pictures(composite, max_pixels=max_pixels, frame=frame, allow_truncated=allow_truncated)
    options = {"invert": invert, "label": label, "resize": resize, "max_pixels": max_pixels}
    sources = _listed(mask, "mask", len(pictures))
    pairs = []
    for i, (picture, source) in enumerate(zip(pictures, sources, strict=True)):
        name = f"mask[{i}]" if len(pictures) > 1 else "mask"
        seems_swapped = is_black_and_white(picture.pixels)
        try:
            loaded = load_mask(source, size=picture.size, size_of=picture.name, name=name, **options)  # type: ignore[arg-type]
        except MaskError:
            if seems_swapped:
                note(picture.name, _SWAPPED)
            raise
        if seems_swapped and not is_black_and_white(loaded):
            note(picture.name, _SWAPPED)
        pairs.append((picture, loaded))
    return pairs


def load_pictures(
    source: PictureSource | Sequence[PictureSource],
    *,
    name: str = "composite",
    like: Sequence[Picture] | None = None,
    max_pixels: int = MAX_PIXELS,
    frame: int = 0,
    allow_truncated: bool = False,
) -> list[Picture]:
    """Load one picture or several.

    Args:
        source: What `load_picture` takes, a list of such, an array `(N, H, W, C)` or a tensor `(N, C, H, W)`.
        name: Of the argument, for messages.
        like: The composites these pictures belong to: there must be as many, of the same sizes.
        max_pixels: See `load_picture`.
        frame: See `load_picture`.
        allow_truncated: See `load_picture`.

    Raises:
        InputError: See `load_picture`; also when there are not as many as composites.
        SizeMismatchError: One has another size than its composite.

    Example:
        >>> len(load_pictures(np.zeros((2, 32, 48, 3), np.uint8)))
        2
    """
    sources = _listed(source, name, None if like is None else len(like))
    pictures = [
        load_picture(
            one,
            name=f"{name}[{i}]" if len(sources) > 1 else name,
            max_pixels=max_pixels,
            frame=frame,
            allow_truncated=allow_truncated,
        )
        for i, one in enumerate(sources)
    ]
    for picture, other in zip(pictures, like or (), strict=False):
        if picture.size != other.size:
            fix = "Give it as it lies in the composite (`harmony compose` places a cut-out)."
            raise size_mismatch(picture.name, picture.size, other.name, other.size, fix)
    return pictures


def load_reference_masks(
    source: MaskSource | Sequence[MaskSource | None] | None,
    pictures: Sequence[Picture],
    *,
    resize: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> list[np.ndarray | None]:
    """Load for each picture the mask of the part of the background to harmonize to.

    Args:
        source: What `load_pairs` takes as masks; None, in the list or alone, for the whole background.
        pictures: The composites.
        resize: See `load_mask`.
        max_pixels: See `load_mask`.

    Returns:
        One mask `(H, W)` float32 in [0, 1] or None for each picture.

    Raises:
        InputError: See `load_mask`; also when there are not as many masks as pictures.
        SizeMismatchError: A mask has another size than its composite, and `resize` is false.
    """
    if source is None:
        return [None] * len(pictures)
    sources = _listed(source, "reference_mask", len(pictures))
    return [
        None
        if one is None
        else load_mask(
            one,
            size=picture.size,
            size_of=picture.name,
            name=f"reference_mask[{i}]" if len(pictures) > 1 else "reference_mask",
            resize=resize,
            max_pixels=max_pixels,
            reference=True,
        )
        for i, (one, picture) in enumerate(zip(sources, pictures, strict=True))
    ]


def _listed(source: Any, name: str, count: int | None) -> list[Any]:
    """Return a list of single sources, exactly `count` of them unless `count` is None.

    An array or tensor `(count, H, W)` is a batch when there is more than one composite.

    Raises:
        InputError: There are more or fewer, or none.
    """
    sources = [source]
    if isinstance(source, list | tuple):
        sources = list(source)
    elif isinstance(source, np.ndarray) or is_tensor(source):
        if source.ndim == 4 or (source.ndim == 3 and len(source) == count and count > 1):
            sources = list(source)
    if not sources:
        raise InputError(name, "is an empty list", "Give at least one.")
    if count is not None and len(sources) != count:
        raise InputTypeError(name, f"there are {len(sources)} for {count} composite(s)", "Give one for each.")
    return sources
