"""The image contract: pictures and masks in, the same kind of picture out."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Union

import numpy as np
import torch
from PIL import Image

from harmony_diffusion.errors import InputError, InputTypeError, OutputError
from harmony_diffusion.image_arrays import Raster, note, picture_of_array
from harmony_diffusion.image_files import encode_pil, raster_of_pil, read_file
from harmony_diffusion.masks import MaskSource, check_background, load_mask
from harmony_diffusion.output_files import write_atomically

__all__ = ["MAX_PIXELS", "Picture", "check_background", "load_mask", "load_pairs", "load_picture"]

MAX_PIXELS = 100_000_000

PictureSource = Union[str, os.PathLike[str], Image.Image, np.ndarray, torch.Tensor, "Picture"]


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture in its own depth and colour space.

    Attributes:
        pixels: `(H, W, 3)` uint8, uint16 or float32 in [0, 1]; RGB, upright; read-only.
        alpha: `(H, W)` of the same dtype; None = opaque.
        profile: ICC profile of `pixels`; None = sRGB.
        exif: EXIF block, orientation 1.
        name: Path or argument name, for messages.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    profile: bytes | None = None
    exif: bytes | None = None
    name: str = "composite"

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.pixels.shape[0], self.pixels.shape[1]

    @property
    def largest(self) -> int:
        """The value of white: 255, 65535 or 1."""
        return 1 if self.pixels.dtype == np.float32 else int(np.iinfo(self.pixels.dtype).max)

    @property
    def visible(self) -> np.ndarray | None:
        """Alpha as float32 `(H, W)` in [0, 1]; None when the picture is opaque."""
        if self.alpha is None:
            return None
        return self.alpha.astype(np.float32) / np.float32(self.largest)

    def read_srgb(self, rows: slice = slice(None), columns: slice = slice(None)) -> np.ndarray:
        """Return a window as sRGB values, `(h, w, 3)` float32 in [0, 1]."""
        return self.pixels[rows, columns].astype(np.float32) / np.float32(self.largest)

    def write_srgb(
        self, values: np.ndarray, rows: slice = slice(None), columns: slice = slice(None)
    ) -> np.ndarray:
        """Turn sRGB values of a window, `(h, w, 3)` in [0, 1], into pixels of this picture's kind."""
        if self.pixels.dtype == np.float32:
            return values.astype(np.float32)
        return np.rint(values.clip(0, 1) * np.float32(self.largest)).astype(self.pixels.dtype)

    def thumbnail_srgb(self, height: int, width: int) -> np.ndarray:
        """Resize to `(height, width, 3)` float32 in [0, 1], bilinear, no full-size float copy."""
        top, bottom, down = _neighbours(self.size[0], height)
        left, right, across = _neighbours(self.size[1], width)
        down, across = down[:, None, None], across[None, :, None]
        upper = self._gather(top, left) * (1 - across) + self._gather(top, right) * across
        lower = self._gather(bottom, left) * (1 - across) + self._gather(bottom, right) * across
        return upper * (1 - down) + lower * down

    def _gather(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        return replace(self, pixels=self.pixels[np.ix_(rows, columns)]).read_srgb()

    def with_pixels(self, pixels: np.ndarray) -> "Picture":
        """Return the same picture with other pixels, of the same shape and dtype."""
        if pixels.shape != self.pixels.shape or pixels.dtype != self.pixels.dtype:
            raise InputError(
                self.name,
                f"new pixels are {pixels.shape} {pixels.dtype}, not {self.pixels.shape} {self.pixels.dtype}",
            )
        return replace(self, pixels=pixels)

    def to_numpy(self) -> np.ndarray:
        """Return a copy of the pixels, `(H, W, 3)` (`(H, W, 4)` with alpha) in their own dtype."""
        if self.alpha is None:
            return self.pixels.copy()
        return np.dstack((self.pixels, self.alpha))

    def to_tensor(self) -> torch.Tensor:
        """Return the sRGB values as `(3, H, W)` float32 in [0, 1]."""
        return torch.from_numpy(np.ascontiguousarray(np.moveaxis(self.read_srgb(), 2, 0)))

    def to_pil(self) -> Image.Image:
        """Return an 8-bit PIL image, RGB or RGBA."""
        if self.pixels.dtype != np.uint8:
            note(self.name, f"{self.pixels.dtype} is reduced to 8 bits a channel")
        image = Image.fromarray(_eight_bits(self.to_numpy()))
        image.info.update({k: v for k, v in self._metadata().items() if v is not None})
        return image

    def _metadata(self) -> dict[str, bytes | None]:
        return {"icc_profile": self.profile, "exif": self.exif}

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False, quality: int = 95) -> None:
        """Write the picture; the format is that of the suffix.

        Raises:
            OutputError: The file exists and `overwrite` is false, or it cannot be written.
        """
        suffix = Path(path).suffix.lower()
        if suffix not in (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".avif"):
            raise OutputError(path, f"no picture format is called {suffix!r}", "Use .png, .jpg or .tif.")
        info = {k: v for k, v in self._metadata().items() if v is not None}

        def write(file: BinaryIO) -> None:
            file.write(encode_pil(self.to_pil(), suffix, quality, **info))

        write_atomically(path, write, overwrite=overwrite, inputs=(self.name,))


def _eight_bits(values: np.ndarray) -> np.ndarray:
    if values.dtype == np.uint8:
        return values
    scale = 255 if values.dtype == np.float32 else 255 / 65535
    return np.rint(values * np.float32(scale)).astype(np.uint8)


def _neighbours(length: int, wanted: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    # As torch computes it: a float32 scale, and one rounding after the multiplication and subtraction.
    scale = np.float64(np.float32(length) / np.float32(wanted))
    position = ((np.arange(wanted) + 0.5) * scale - 0.5).astype(np.float32)
    position = np.maximum(position, np.float32(0))
    first = np.minimum(position.astype(np.int64), length - 1)
    weight = np.clip(position - first.astype(np.float32), 0, 1).astype(np.float32)
    return first, np.minimum(first + 1, length - 1), weight


def load_picture(
    source: PictureSource,
    *,
    name: str = "composite",
    max_pixels: int = MAX_PIXELS,
    frame: int = 0,
    allow_truncated: bool = False,
) -> Picture:
    """Load a picture from a path, PIL image, array, tensor or `Picture` (returned as it is)."""
    if isinstance(source, Picture):
        return source
    if isinstance(source, str | os.PathLike):
        name = os.fsdecode(source)
        raster = read_file(source, max_pixels=max_pixels, frame=frame, allow_truncated=allow_truncated)
    elif isinstance(source, Image.Image):
        raster = raster_of_pil(source, name)
    elif isinstance(source, np.ndarray | torch.Tensor):
        raster = picture_of_array(source, name, max_pixels)
    else:
        raise InputTypeError(
            name, f"is a {type(source).__name__}", "Give a path, PIL image, array or tensor."
        )
    return _picture_of_raster(raster, name)


def _picture_of_raster(raster: Raster, name: str) -> Picture:
    pixels, alpha = raster.channels, raster.alpha
    if pixels.shape[2] == 1:
        pixels = np.repeat(pixels, 3, axis=2)
    if alpha is not None and alpha.min() == (1 if alpha.dtype == np.float32 else np.iinfo(alpha.dtype).max):
        alpha = None
    return Picture(pixels, alpha, raster.profile, raster.exif, name)


def load_pairs(
    composite: PictureSource | Sequence[PictureSource],
    mask: MaskSource | Sequence[MaskSource],
    *,
    max_pixels: int = MAX_PIXELS,
    frame: int = 0,
    allow_truncated: bool = False,
    invert: bool = False,
    label: int | None = None,
    resize: bool = False,
) -> list[tuple[Picture, np.ndarray]]:
    """Load composites with their masks: one each, lists of equal length, or batched tensors."""
    composites, masks = _as_list(composite, "composite"), _as_list(mask, "mask")
    if len(composites) != len(masks):
        raise InputError("mask", f"there are {len(masks)} masks for {len(composites)} composites")
    pairs = []
    for i, (one, its_mask) in enumerate(zip(composites, masks, strict=True)):
        index = f"[{i}]" if len(composites) > 1 else ""
        picture = load_picture(
            one, name=f"composite{index}", max_pixels=max_pixels, frame=frame, allow_truncated=allow_truncated
        )
        loaded = load_mask(
            its_mask,
            size=picture.size,
            name=f"mask{index}",
            invert=invert,
            label=label,
            resize=resize,
            max_pixels=max_pixels,
        )
        pairs.append((picture, loaded))
    return pairs


def _as_list(source: Any, name: str) -> list[Any]:
    if isinstance(source, torch.Tensor | np.ndarray) and source.ndim == 4:
        return list(source)
    if isinstance(source, list | tuple):
        if not source:
            raise InputError(name, "is an empty list")
        return list(source)
    return [source]
