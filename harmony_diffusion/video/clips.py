"""Clips of any kind, seen as frames with times: video files, folders of pictures, one still picture."""

import glob
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from harmony_diffusion.errors import InputError, InputTypeError, SizeMismatchError
from harmony_diffusion.images.arrays import MAX_PIXELS, note
from harmony_diffusion.images.masks import load_mask
from harmony_diffusion.images.picture import load_picture
from harmony_diffusion.numbers import check_number
from harmony_diffusion.video.files import VideoInfo, read_frames, read_info
from harmony_diffusion.video.frame_colors import AnyFrame, Frame, PictureFrame

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp", ".avif")
# Noise of a compressed mask: values this close to black and white are black and white.
_MASK_LOW, _MASK_HIGH = 8 / 255, 247 / 255
MASK_ENDS = ("error", "hold", "stop", "pass")


@dataclass(frozen=True)
class VideoClip:
    """A video file."""

    info: VideoInfo

    @property
    def name(self) -> str:
        """The file."""
        return self.info.path

    @property
    def size(self) -> tuple[int, int]:
        """Height and width as shown."""
        return self.info.size

    @property
    def seconds(self) -> np.ndarray:
        """Time of each frame from the first."""
        return self.info.seconds

    @property
    def duration(self) -> float:
        """Seconds to the end of the last frame."""
        return self.info.duration

    def files(self) -> list[Path]:
        """Return the files that are read."""
        return [Path(self.info.path)]

    def frames(self) -> Iterator[AnyFrame]:
        """Read frame by frame."""
        return read_frames(self.info)


@dataclass(frozen=True)
class PictureClip:
    """A folder of pictures, one a frame.

    Attributes:
        name: As it was given.
        paths: The pictures in order.
        rate: Frames a second.
        size: Height and width, those of the first.
        max_pixels: See `load_picture`.
    """

    name: str
    paths: list[Path]
    rate: float
    size: tuple[int, int]
    max_pixels: int = MAX_PIXELS

    @property
    def seconds(self) -> np.ndarray:
        """Time of each frame from the first."""
        return np.arange(len(self.paths)) / self.rate

    @property
    def duration(self) -> float:
        """Seconds to the end of the last frame."""
        return len(self.paths) / self.rate

    def files(self) -> list[Path]:
        """Return the files that are read."""
        return self.paths

    def frames(self) -> Iterator[AnyFrame]:
        """Read picture by picture.

        Raises:
            SizeMismatchError: One has another size than the first.
        """
        for i, path in enumerate(self.paths):
            picture = load_picture(path, max_pixels=self.max_pixels)
            if picture.size != self.size:
                raise SizeMismatchError(
                    path,
                    f"is {picture.size[1]}x{picture.size[0]}, the first frame of {self.name} "
                    f"{self.size[1]}x{self.size[0]}",
                )
            yield PictureFrame(picture, i)


Clip = VideoClip | PictureClip


def open_clip(source: str | os.PathLike[str], *, rate: float = 25.0, **reading: Any) -> Clip:
    """Open a video file, or a folder or pattern of pictures.

    Args:
        source: A file; a folder of pictures; or a pattern such as `frames/%05d.png` or `frames/*.png`.
        rate: Frames a second of pictures.
        reading: `max_pixels`, `allow_truncated` and `hdr_as_is` of `read_info`.

    Raises:
        InputError: Nothing there, or a number is missing in a sequence.
    """
    text = os.fspath(source)
    paths = picture_paths(text)
    if paths is None:
        return VideoClip(read_info(source, **reading))
    rate = check_number("frame_rate", rate, 0.001)
    max_pixels = reading.get("max_pixels", MAX_PIXELS)
    return PictureClip(text, paths, rate, load_picture(paths[0], max_pixels=max_pixels).size, max_pixels)


def picture_paths(text: str) -> list[Path] | None:
    """Return the pictures that a folder or pattern names, in order of their numbers; None for a plain file.

    Raises:
        InputError: There are none, or a number is missing.
    """
    try:
        found = _named_pictures(text)
    except OSError as error:
        raise InputError(
            text, f"cannot be listed ({error.strerror})", "Check the path and its permissions."
        ) from None
    if found is None:
        return None
    if not found:
        raise InputError(text, "holds no pictures", f"Frames end in {', '.join(PICTURES)}.")
    found.sort(key=lambda path: _natural(path.name))
    _check_gaps(text, found)
    return found


def _named_pictures(text: str) -> list[Path] | None:
    if "://" in text and not os.path.lexists(text):
        return None  # an address, whatever signs are in it
    # Functions of `os.path`, since those of `Path` fail for names that are too long.
    if os.path.isdir(text):
        return [path for path in Path(text).iterdir() if path.suffix.lower() in PICTURES]
    if re.search(r"%0?\d*d", text):
        folder, pattern = Path(text).parent, Path(text).name
        parts = re.split(r"%0?\d*d", pattern, maxsplit=1)
        shape = re.compile(re.escape(parts[0]) + r"\d+" + re.escape(parts[1]))
        is_folder = len(parts) == 2 and os.path.isdir(folder)
        return [path for path in folder.iterdir() if shape.fullmatch(path.name)] if is_folder else []
    if any(c in text for c in "*?[") and not os.path.lexists(text):
        return [Path(path) for path in glob.glob(text) if Path(path).suffix.lower() in PICTURES]
    return None


def _natural(name: str) -> list[tuple[int, int, str]]:
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.findall(r"\d+|\D+", name)]


def _check_gaps(name: str, paths: list[Path]) -> None:
    """Refuse a sequence whose last numbers are not consecutive."""
    numbers = []
    for path in paths:
        digits = re.findall(r"\d+", path.stem)
        if not digits:
            return
        numbers.append(int(digits[-1]))
    for i, (before, after) in enumerate(zip(numbers, numbers[1:], strict=False)):
        if after == before:
            raise InputError(
                name,
                f"number {before} is there twice: {paths[i].name} and {paths[i + 1].name}",
                "Keep one of them.",
            )
        if after != before + 1:
            missing = before + 1
            raise InputError(
                name,
                f"number {missing} is missing between {before} and {after}",
                "Add it, or rename the frames.",
            )


@dataclass
class MaskClip:
    """The masks of a clip: a video, a folder of pictures, or one still picture for all frames.

    Args:
        source: What was given.
        composite: The clip that it belongs to.
        mask_end: What to do where the masks end before the composite: "error", "hold" the last one, "stop"
            the clip there, or "pass" the rest of the clip unchanged.
        rate: Frames a second of pictures.
        what: Name in messages.

    Raises:
        InputError: It cannot be matched with the composite.
    """

    source: Any
    composite: Clip
    mask_end: str = "error"
    rate: float = 25.0
    what: str = "mask"
    reading: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Open the masks and match them with the frames."""
        if self.mask_end not in MASK_ENDS:
            raise InputError("mask_end", f"is {self.mask_end!r}", f"Choose one of {', '.join(MASK_ENDS)}.")
        self.clip: Clip | None = None
        self.still: np.ndarray | None = None
        count = len(self.composite.seconds)
        if not isinstance(self.source, str | os.PathLike):
            raise InputTypeError(self.what, f"is a {type(self.source).__name__}", "Give a path.")
        is_still = Path(self.source).suffix.lower() in PICTURES and os.path.isfile(self.source)
        if is_still:
            self.still = _mask_of_file(self.source, self.composite, self.what)
            self.matches = np.zeros(count, int)
            return
        self.clip = open_clip(self.source, rate=self.rate, **self.reading)
        if self.clip.size != self.composite.size:
            raise SizeMismatchError(
                self.source,
                f"has frames of {self.clip.size[1]}x{self.clip.size[0]}, {self.composite.name} of "
                f"{self.composite.size[1]}x{self.composite.size[0]}",
                "Scale the masks first.",
            )
        self.matches = self._match(self.clip)

    def _match(self, clip: Clip) -> np.ndarray:
        """Return the mask of each frame; -1 where there is none, fewer where the clip is to stop."""
        count, own = len(self.composite.seconds), len(clip.seconds)
        matches = np.arange(count)
        both = isinstance(clip, VideoClip) and isinstance(self.composite, VideoClip)
        if count == own:
            return matches
        if both:
            times = clip.seconds
            after = np.searchsorted(times, self.composite.seconds).clip(1, max(own - 1, 1))
            before = after - 1
            after = after.clip(max=own - 1)
            nearer = np.abs(self.composite.seconds - times[before]) <= np.abs(
                self.composite.seconds - times[after]
            )
            matches = np.where(nearer, before, after)
            ended = self.composite.seconds >= clip.duration - 1e-6
        else:
            ended = matches >= own
            matches = np.minimum(matches, own - 1)
        if not ended.any():
            if own > count and clip.duration > self.composite.duration * 1.01:
                note(clip.name, f"has {own} frames, the composite {count}; the rest is not used")
            return matches
        if self.mask_end == "error":
            raise InputError(
                clip.name,
                f"ends too early: {own} frames ({clip.duration:.2f} s) for {count} frames "
                f"({self.composite.duration:.2f} s) of {self.composite.name}",
                "Choose what to do there with `mask_end` (`--mask-end hold`, `stop` or `pass`).",
            )
        if self.mask_end == "stop":
            return matches[: int(np.argmax(ended))]
        if self.mask_end == "pass":
            matches[ended] = -1
        return matches

    def files(self) -> list[Path]:
        """Return the files that are read."""
        return self.clip.files() if self.clip is not None else [Path(self.source)]

    def masks(self, wanted: np.ndarray) -> Iterator[np.ndarray | None]:
        """Yield the masks of frames, `(H, W)` float32 in [0, 1], None where there is none.

        Args:
            wanted: Part of `matches`, which rises (-1 aside).
        """
        if self.still is not None:
            for _ in wanted:
                yield self.still
            return
        assert self.clip is not None
        source, position = self._read(self.clip), -1
        mask: Callable[[], np.ndarray] | None = None
        for index in wanted:
            while position < index:
                read = next(source, None)
                if read is None:
                    raise InputError(
                        self.clip.name, f"ends after {position + 1} frames", "It may be damaged."
                    )
                mask, position = read, position + 1
            yield None if index < 0 or mask is None else mask()

    def _read(self, clip: Clip) -> Iterator[Callable[[], np.ndarray]]:
        """Yield a function for each mask that makes it; masks that are not used are not made."""
        if isinstance(clip, PictureClip):
            for path in clip.paths:
                yield partial(_mask_of_file, path, clip)
            return
        for frame in clip.frames():
            yield partial(mask_of, frame)


def _mask_of_file(path: str | os.PathLike[str], clip: Clip, name: str = "mask") -> np.ndarray:
    """Read a mask that must have the size of a clip.

    Raises:
        MaskError: It is no mask.
        SizeMismatchError: It has another size, which no argument here allows.
    """
    try:
        return load_mask(path, size=clip.size, size_of=clip.name, name=name)
    except SizeMismatchError as error:
        fix = "Scale the masks first." if "resize" in error.fix else error.fix
        raise SizeMismatchError(error.subject, error.reason, fix) from None


def mask_of(frame: AnyFrame) -> np.ndarray:
    """Read a mask from the luma of a frame, noise of compression removed at both ends, `(H, W)` float32."""
    assert isinstance(frame, Frame)
    if frame.coding.bits == 8 and not frame.coding.is_rgb:
        levels = np.arange(256, dtype=np.uint8)[None]
        table = _without_noise(replace(frame, planes=(levels, *frame.planes[1:])).luminance())
        return cv2.LUT(np.ascontiguousarray(frame.planes[0]), table)
    return np.ascontiguousarray(_without_noise(frame.luminance()))


def _without_noise(mask: np.ndarray) -> np.ndarray:
    mask[mask < _MASK_LOW] = 0
    mask[mask > _MASK_HIGH] = 1
    return mask
