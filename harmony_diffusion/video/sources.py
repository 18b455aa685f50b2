"""What a job reads: frames with their masks, in order, as often as it needs them."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from harmony_diffusion.errors import InputError, MaskError
from harmony_diffusion.images.arrays import note
from harmony_diffusion.numbers import check_number
from harmony_diffusion.video.clips import Clip, MaskClip, PictureClip, VideoClip, open_clip
from harmony_diffusion.video.frame_colors import AnyFrame, Frame


@dataclass(frozen=True)
class SourceFrame:
    """One frame to be harmonized.

    Attributes:
        frame: The composite.
        mask: 1 on the foreground, `(H, W)` float32; None = nothing is to be changed.
        reference: Weight of the background, `(H, W)`; None = all of it.
    """

    frame: AnyFrame
    mask: np.ndarray | None
    reference: np.ndarray | None = None


@dataclass
class CompositeSource:
    """A composite clip with its masks.

    Args:
        clip: The composite.
        mask: Its masks.
        reference: Which part of the background to harmonize to.
        start: First second to read.
        end: Second to stop at.
    """

    clip: Clip
    mask: MaskClip
    reference: MaskClip | None = None
    start: float | None = None
    end: float | None = None

    def __post_init__(self) -> None:
        """Choose the frames."""
        limit = len(self.mask.matches)
        if self.reference is not None:
            limit = min(limit, len(self.reference.matches))
        self.chosen = chosen_frames(self.clip.seconds[:limit], self.start, self.end)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.clip.size

    @property
    def placing(self) -> list[Any]:
        """Nothing is pasted."""
        return []

    @property
    def restricted(self) -> bool:
        """Whether a model may not look at all of the background."""
        return self.reference is not None

    @property
    def times(self) -> np.ndarray:
        """Seconds of each frame from the beginning of the clip."""
        return self.clip.seconds[self.chosen]

    def files(self) -> list[Path]:
        """Return the files that are read."""
        return [*self.clip.files(), *self.mask.files(), *(self.reference.files() if self.reference else [])]

    def frames(self) -> Iterator[SourceFrame]:
        """Read the chosen frames one by one."""
        masks = self.mask.masks(self.mask.matches[self.chosen])
        references = (
            None if self.reference is None else self.reference.masks(self.reference.matches[self.chosen])
        )
        for index, frame in enumerate(self.clip.frames()):
            if index >= self.chosen.stop:
                return
            if index < self.chosen.start:
                continue
            mask, reference = next(masks), None if references is None else next(references)
            visible = frame.visible
            if mask is not None and visible is not None:
                mask = np.where(visible > 0, mask, np.float32(0))
            yield SourceFrame(frame, mask, reference)


@dataclass
class PastedSource:
    """A cut-out that moves, pasted on a background frame by frame.

    Timestamps, size and sound are those of the background; the frames of the foreground are matched by time.

    Args:
        foreground: Clip with an alpha channel.
        background: Clip to paste it on.
        at: Left and top of the foreground in pixels of the background; centred by default.
        scale: Size of the foreground relative to its own.
        loop: Repeat a background that is shorter than the foreground.
        start: First second to read.
        end: Second to stop at.
    """

    foreground: Clip
    background: Clip
    at: tuple[int, int] | None = None
    scale: float = 1.0
    loop: bool = False
    start: float | None = None
    end: float | None = None
    restricted: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        """Check that there is something to paste, and choose the frames."""
        check_number("scale", self.scale, 0.001)
        first = next(iter(self.foreground.frames()))
        if first.visible is None:
            raise MaskError(self.foreground.name, "has no alpha channel, so nothing says what to paste")
        height, width = (max(1, round(side * self.scale)) for side in self.foreground.size)
        frame_height, frame_width = self.background.size
        if height > 16 * frame_height or width > 16 * frame_width:
            raise InputError(
                "scale", f"makes the foreground {width}x{height} on a {frame_width}x{frame_height} background"
            )
        left, top = (
            self.at if self.at is not None else ((frame_width - width) // 2, (frame_height - height) // 2)
        )
        self.place = (top, left, height, width)
        if top >= frame_height or left >= frame_width or top + height <= 0 or left + width <= 0:
            raise InputError("at", f"{left},{top} puts the foreground wholly outside the background")
        self.rounds = 1
        if self.loop:
            self.rounds = max(1, int(np.ceil(self.foreground.duration / self.background.duration)))
        elif self.foreground.duration > self.background.duration + 0.05:
            note(self.foreground.name, "is longer than the background, and its end is not used")
        seconds = self._all_seconds()
        if self.loop:
            seconds = seconds[seconds < max(self.foreground.duration, self.background.duration) - 1e-6]
        self.chosen = chosen_frames(seconds, self.start, self.end)

    def _all_seconds(self) -> np.ndarray:
        return np.concatenate(
            [self.background.seconds + i * self.background.duration for i in range(self.rounds)]
        )

    @property
    def placing(self) -> list[Any]:
        """Where the foreground is pasted."""
        return [*self.place, self.rounds]

    @property
    def clip(self) -> Clip:
        """The clip whose form the result has."""
        return self.background

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.background.size

    @property
    def times(self) -> np.ndarray:
        """Seconds of each frame from the beginning of the background."""
        return self._all_seconds()[self.chosen]

    def files(self) -> list[Path]:
        """Return the files that are read."""
        return [*self.foreground.files(), *self.background.files()]

    def frames(self) -> Iterator[SourceFrame]:
        """Read and paste frame by frame."""
        own = self.foreground.seconds
        cutouts, position, cutout = iter(self.foreground.frames()), -1, None
        for index, (frame, time) in enumerate(zip(self._backgrounds(), self._all_seconds(), strict=False)):
            if index >= self.chosen.stop:
                return
            if time >= self.foreground.duration - 1e-6:
                if index >= self.chosen.start:
                    yield SourceFrame(frame, None)
                continue
            after = min(int(np.searchsorted(own, time)), len(own) - 1)
            nearest = after - 1 if after and time - own[after - 1] <= own[after] - time else after
            while position < nearest:
                cutout, position = next(cutouts), position + 1
            if index >= self.chosen.start:
                yield self._pasted(frame, cutout)

    def _backgrounds(self) -> Iterator[AnyFrame]:
        if isinstance(self.background, PictureClip):
            for _ in range(self.rounds):
                yield from self.background.frames()
            return
        info = self.background.info
        length = info.times[-1] - info.times[0] + max(info.last_duration, 1)
        for i in range(self.rounds):
            for frame in self.background.frames():
                yield replace(frame, pts=frame.pts + i * length) if i else frame  # type: ignore[operator]

    def _pasted(self, frame: AnyFrame, cutout: Any) -> SourceFrame:
        top, left, height, width = self.place
        rows = slice(max(top, 0), min(top + height, frame.size[0]))
        columns = slice(max(left, 0), min(left + width, frame.size[1]))
        cut = slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left)
        whole = slice(0, cutout.size[0]), slice(0, cutout.size[1])
        alpha = cutout.visible
        alpha = np.ones(cutout.size, np.float32) if alpha is None else alpha
        # Premultiplied, so that the colour of hidden pixels never bleeds into the edge.
        color = _resized(cutout.rgb(whole) * alpha[..., None], height, width)[cut]
        coverage = _resized(alpha, height, width)[cut].clip(0, 1)
        box = frame.aligned((rows, columns))
        inner = tuple(
            slice(s.start - b.start, s.stop - b.start) for s, b in zip((rows, columns), box, strict=True)
        )
        below = frame.rgb(box)
        change = np.zeros_like(below)
        pasted = (color + below[inner] * (1 - coverage[..., None])).clip(0, 1)
        change[inner] = (pasted - below[inner]) * (coverage > 0)[..., None]
        mask = np.zeros(frame.size, np.float32)
        mask[rows, columns] = coverage
        return SourceFrame(frame.changed([(box, change)]), mask)


Source = CompositeSource | PastedSource


def chosen_frames(seconds: np.ndarray, start: float | None, end: float | None) -> slice:
    """Return the frames from `start` to before `end`.

    Raises:
        InputError: There are none.
    """
    first = 0 if start is None else int(np.searchsorted(seconds, check_number("start", start, 0) - 1e-6))
    last = len(seconds) if end is None else int(np.searchsorted(seconds, check_number("end", end, 0) - 1e-6))
    if first >= last:
        length = float(seconds[-1]) if len(seconds) else 0.0
        raise InputError(
            "start and end", f"leave no frame of a clip of {length:.2f} s", "Give seconds inside it."
        )
    return slice(first, last)


def _resized(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """Scale `(H, W)` or `(H, W, 3)`: by area when smaller, bicubic when larger, untouched when equal."""
    if values.shape[:2] == (height, width):
        return values
    smaller = height * width < values.shape[0] * values.shape[1]
    return cv2.resize(values, (width, height), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC)


def open_pasted(
    foreground: str | os.PathLike[str],
    background: str | os.PathLike[str],
    *,
    rate: float,
    reading: dict[str, Any],
    **placing: Any,
) -> PastedSource:
    """Open the clips of a `PastedSource`; `placing` are its other arguments."""
    return PastedSource(
        open_clip(foreground, rate=rate, **reading), open_clip(background, rate=rate, **reading), **placing
    )


def trim_offset(source: Source) -> Fraction:
    """Return the time of the first chosen frame, by which timestamps are moved back, in seconds."""
    if not isinstance(source.clip, VideoClip) or source.chosen.start == 0:
        return Fraction(0)
    info = source.clip.info
    return (info.times[source.chosen.start] - info.times[0]) * info.time_base


def shifted(frame: Frame, source: Source) -> Frame:
    """Return a frame with the timestamp it has in the result."""
    if source.chosen.start == 0 or frame.pts is None or not isinstance(source.clip, VideoClip):
        return frame
    times = source.clip.info.times
    return replace(frame, pts=frame.pts - (times[source.chosen.start] - times[0]))
