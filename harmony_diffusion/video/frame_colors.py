"""Frames in their own samples: windows as RGB, and changes pasted back as differences.

A change of RGB is turned into a change of the frame's YUV samples, which is linear, and added to them. So
every sample that is not changed stays to the bit, and no frame goes through 8-bit RGB.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from harmony_diffusion.boxes import Box
from harmony_diffusion.images.picture import Picture

# Shares of red and blue in luma: ITU-R BT.601, BT.709, BT.2020 (non-constant luminance).
_LUMA = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722), "bt2020": (0.2627, 0.0593)}


@dataclass(frozen=True)
class SampleCoding:
    """How the samples of a frame stand for colours.

    Attributes:
        is_rgb: Planes are R, G, B, else Y, U, V; an alpha plane may follow.
        bits: Bits of a sample.
        matrix: "bt601", "bt709" or "bt2020"; not used for RGB.
        full_range: Black is 0 and white the largest value, else 16 and 235 (in 8 bits).
    """

    is_rgb: bool
    bits: int
    matrix: str = "bt709"
    full_range: bool = False

    @property
    def largest(self) -> int:
        """Largest value a sample can have."""
        return (1 << self.bits) - 1

    def luma_scale(self) -> tuple[float, float]:
        """Return black, and the distance from black to white."""
        if self.full_range or self.is_rgb:
            return 0.0, float(self.largest)
        unit = 1 << (self.bits - 8)
        return 16.0 * unit, 219.0 * unit

    def chroma_scale(self) -> tuple[float, float]:
        """Return the value of grey, and the distance between the two extremes."""
        middle = float(1 << (self.bits - 1))
        return middle, float(self.largest) if self.full_range else 224.0 * (1 << (self.bits - 8))

    def from_rgb(self) -> np.ndarray:
        """Return the matrix from RGB in [0, 1] to luma in [0, 1] and colour differences in [-1/2, 1/2]."""
        red, blue = _LUMA[self.matrix]
        luma = np.array([red, 1 - red - blue, blue])
        blue_difference = (np.array([0, 0, 1]) - luma) / (2 * (1 - blue))
        red_difference = (np.array([1, 0, 0]) - luma) / (2 * (1 - red))
        return np.stack((luma, blue_difference, red_difference))


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame of a video file.

    Attributes:
        planes: Samples, upright, uint8 or uint16: Y, U, V or R, G, B, perhaps alpha. They may be views of the
            decoder's memory and are never written to.
        coding: What the samples mean.
        turns: Quarter turns counter-clockwise that made the coded frame upright.
        pts: Timestamp in units of the stream, None for frames that come from no file.
    """

    planes: tuple[np.ndarray, ...]
    coding: SampleCoding
    turns: int = 0
    pts: int | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.planes[0].shape[0], self.planes[0].shape[1]

    @property
    def step(self) -> tuple[int, int]:
        """Rows and columns of luma that share one chroma sample."""
        height, width = self.size
        chroma = self.planes[1].shape
        return -(-height // chroma[0]), -(-width // chroma[1])

    @property
    def visible(self) -> np.ndarray | None:
        """Alpha as float32 `(H, W)` in [0, 1]; None without an alpha plane."""
        if len(self.planes) < 4:
            return None
        return self.planes[3].astype(np.float32) / np.float32(self.coding.largest)

    def rgb(self, box: Box) -> np.ndarray:
        """Return a window as RGB, `(h, w, 3)` float32 in [0, 1], as it is in the whole frame."""
        if self.coding.is_rgb:
            stacked = np.stack([plane[box] for plane in self.planes[:3]], axis=2)
            return stacked.astype(np.float32) / np.float32(self.coding.largest)
        luma = self.planes[0][box].astype(np.float32)
        samples = cv2.merge([luma, *(_enlarged(plane, box, self.step) for plane in self.planes[1:3])])
        rgb = cv2.transform(samples, _to_rgb(self.coding))
        return np.clip(rgb, 0, 1, out=rgb)

    def small_rgb(self, box: Box, size: tuple[int, int]) -> torch.Tensor:
        """Return a window that cuts no chroma sample made small, antialiased, `(1, 3, *size)` in [0, 1].

        The planes are resized before they are converted, which takes a quarter of the time.
        """
        small = []
        for i, plane in enumerate(self.planes[:3]):
            step = self.step if i and not self.coding.is_rgb else (1, 1)
            rows, columns = (slice(s.start // n, -(-s.stop // n)) for s, n in zip(box, step, strict=True))
            values = torch.from_numpy(plane[rows, columns].astype(np.float32))[None, None]
            small.append(F.interpolate(values, size, mode="bilinear", align_corners=False, antialias=True))
        if self.coding.is_rgb:
            return torch.cat(small, 1).div_(self.coding.largest).clamp_(0, 1)
        samples = torch.cat((*small, torch.ones_like(small[0])), 1)
        matrix = torch.from_numpy(_to_rgb(self.coding)).float()
        return torch.einsum("dc,bchw->bdhw", matrix, samples).clamp_(0, 1)

    def luminance(self) -> np.ndarray:
        """Return luma from black to white, `(H, W)` float32 in [0, 1]."""
        if self.coding.is_rgb:
            rgb = self.rgb((slice(0, self.size[0]), slice(0, self.size[1])))
            return rgb @ np.array([0.299, 0.587, 0.114], np.float32)
        black, span = self.coding.luma_scale()
        return ((self.planes[0].astype(np.float32) - np.float32(black)) / np.float32(span)).clip(0, 1)

    def thumbnail(self, height: int, width: int) -> np.ndarray:
        """Return the frame made small by averaging, `(height, width, 3)` uint8 RGB."""
        small = [
            cv2.resize(np.ascontiguousarray(plane), (width, height), interpolation=cv2.INTER_AREA)
            for plane in self.planes[:3]
        ]
        values: np.ndarray
        if self.coding.is_rgb:
            values = np.stack(small, axis=2) / self.coding.largest
        else:
            values = cv2.transform(
                cv2.merge([plane.astype(np.float32) for plane in small]), _to_rgb(self.coding)
            )
        return np.rint(255 * np.clip(values, 0, 1)).astype(np.uint8)

    def aligned(self, box: Box) -> Box:
        """Return the smallest box around `box` that cuts no chroma sample."""
        rows, columns = (
            slice(span.start // step * step, min(-(-span.stop // step) * step, whole))
            for span, step, whole in zip(box, self.step, self.size, strict=True)
        )
        return rows, columns

    def changed(self, changes: Iterable[tuple[Box, np.ndarray]]) -> "Frame":
        """Add changes of colour to windows of the frame.

        Args:
            changes: Windows that `aligned` returns as they are, which do not overlap, and what is added to
                `rgb` of each, `(h, w, 3)`, 0 where nothing changes.

        Returns:
            A frame with its own memory, whose samples are equal to the bit where the change is 0 (chroma:
            where it is 0 for all pixels of the sample).
        """
        planes = tuple(np.array(plane) for plane in self.planes)
        for box, change in changes:
            if self.coding.is_rgb:
                for plane, channel in zip(planes, np.moveaxis(change, 2, 0), strict=False):
                    _add(plane[box], np.float32(self.coding.largest) * channel, 0, self.coding.largest)
                continue
            channels = np.moveaxis(change.astype(np.float32, copy=False), 2, 0)
            to_luma, *to_chroma = self.coding.from_rgb().astype(np.float32)
            black, span = self.coding.luma_scale()
            _add(planes[0][box], _combined(channels, np.float32(span) * to_luma), black, black + span)
            middle, spread = self.coding.chroma_scale()
            low, high = max(middle - spread / 2, 0), min(middle + spread / 2, self.coding.largest)
            rows, columns = (
                slice(s.start // n, -(-s.stop // n)) for s, n in zip(box, self.step, strict=True)
            )
            # Averaged first: it is linear, and there are fewer of them.
            shrunk = [_averaged(channel, self.step) for channel in channels]
            for plane, weights in zip(planes[1:3], to_chroma, strict=True):
                _add(plane[rows, columns], _combined(shrunk, np.float32(spread) * weights), low, high)
        return replace(self, planes=planes)

    def coded_planes(self) -> tuple[np.ndarray, ...]:
        """Return the planes as they stand in the file, not turned upright."""
        return tuple(np.rot90(plane, -self.turns) for plane in self.planes)

    def beside(self, other: "Frame") -> "Frame":
        """Return this frame with another of the same kind to its right; an odd last column is left out."""
        step = self.step[1]
        width = self.size[1] // step * step
        joined = tuple(
            np.concatenate(
                [p[:, : width * p.shape[1] // self.size[1] if i in (0, 3) else width // step] for p in pair],
                1,
            )
            for i, pair in enumerate(zip(self.planes, other.planes, strict=True))
        )
        return replace(self, planes=joined)


@dataclass(frozen=True, eq=False)
class PictureFrame:
    """One frame of a folder of pictures, or an array: the same methods as `Frame`, in the picture's depth."""

    picture: Picture
    pts: int | None = None
    step: tuple[int, int] = (1, 1)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.picture.size

    @property
    def visible(self) -> np.ndarray | None:
        """Alpha as float32 `(H, W)` in [0, 1]; None when opaque."""
        return self.picture.visible

    def rgb(self, box: Box) -> np.ndarray:
        """Return a window as sRGB, `(h, w, 3)` float32 in [0, 1]."""
        return self.picture.read_srgb(*box)

    def thumbnail(self, height: int, width: int) -> np.ndarray:
        """Return the frame made small by averaging, `(height, width, 3)` uint8 RGB."""
        pixels = self.picture.pixels
        small = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
        white = 1.0 if pixels.dtype == np.float32 else float(np.iinfo(pixels.dtype).max)
        return np.rint(255 * (small / white)).astype(np.uint8)

    def aligned(self, box: Box) -> Box:
        """Return `box`."""
        return box

    def changed(self, changes: Iterable[tuple[Box, np.ndarray]]) -> "PictureFrame":
        """Add changes of colour to windows, see `Frame.changed`."""
        pixels = self.picture.pixels.copy()
        for box, change in changes:
            values = np.clip(self.picture.read_srgb(*box) + change, 0, 1)
            moved = (change != 0).any(axis=2, keepdims=True)
            np.copyto(pixels[box], self.picture.write_srgb(values, *box), where=moved)
        return replace(self, picture=self.picture.with_pixels(pixels))


AnyFrame = Frame | PictureFrame


def _to_rgb(coding: SampleCoding) -> np.ndarray:
    """Return the 3x4 matrix from samples (and 1) to RGB."""
    black, span = coding.luma_scale()
    middle, spread = coding.chroma_scale()
    matrix = np.linalg.inv(coding.from_rgb()) / np.array([span, spread, spread])
    return np.hstack((matrix, -matrix @ np.array([[black], [middle], [middle]])))


def _enlarged(plane: np.ndarray, box: Box, step: tuple[int, int]) -> np.ndarray:
    """Enlarge chroma bilinearly to the size of luma, float32, computing a window only."""
    if step == (1, 1):
        return plane[box].astype(np.float32)
    # One sample more on each side, so that a window has the values of the whole frame.
    sources = [
        slice(max(span.start // n - 1, 0), min(-(-span.stop // n) + 1, whole))
        for span, n, whole in zip(box, step, plane.shape, strict=True)
    ]
    part = plane[sources[0], sources[1]].astype(np.float32)
    size = (part.shape[1] * step[1], part.shape[0] * step[0])
    large = cv2.resize(part, size, interpolation=cv2.INTER_LINEAR)
    rows, columns = (
        slice(span.start - source.start * n, span.stop - source.start * n)
        for span, source, n in zip(box, sources, step, strict=True)
    )
    return large[rows, columns]


def _combined(channels: Iterable[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """Return the weighted sum of three channels, float32 `(h, w)`."""
    red, green, blue = channels
    total = weights[0] * red
    total += weights[1] * green
    total += weights[2] * blue
    return total


def _averaged(values: np.ndarray, step: tuple[int, int]) -> np.ndarray:
    """Average the pixels of each chroma sample; at an odd border, those there are."""
    if step == (1, 1):
        return values
    height, width = values.shape
    if height % step[0] or width % step[1]:
        values = np.pad(values, ((0, -height % step[0]), (0, -width % step[1])), mode="edge")
    size = (values.shape[1] // step[1], values.shape[0] // step[0])
    return cv2.resize(np.ascontiguousarray(values), size, interpolation=cv2.INTER_AREA)


def _add(samples: np.ndarray, change: np.ndarray, low: float, high: float) -> None:
    """Add to integer samples in place, and keep them in range, or where they were beyond it."""
    moved = np.rint(change, out=change).astype(np.int32)
    moved += samples
    bounds = int(low), int(high)
    if samples.min() < low or samples.max() > high:
        np.clip(moved, np.minimum(samples, bounds[0]), np.maximum(samples, bounds[1]), out=moved)
    else:
        np.clip(moved, *bounds, out=moved)
    samples[...] = moved
