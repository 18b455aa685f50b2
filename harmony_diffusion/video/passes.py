"""The two passes over a clip: predict the filters of every frame, then apply them smoothed over time."""

import os
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from harmony_diffusion.boxes import Box, bounding_box
from harmony_diffusion.errors import DecodeError, InputError, MaskError
from harmony_diffusion.images.arrays import note
from harmony_diffusion.images.decoding import open_regular
from harmony_diffusion.images.output_files import check_output, write_atomically
from harmony_diffusion.metrics.temporal import cell_corrections, flicker_of_shots
from harmony_diffusion.video.filters import LEAST_PIXELS, FilterModel, FrameView
from harmony_diffusion.video.frame_colors import AnyFrame
from harmony_diffusion.video.job import BATCH, VideoJob, record_type
from harmony_diffusion.video.sources import Source, SourceFrame
from harmony_diffusion.video.temporal import (
    THUMBNAIL,
    Smoother,
    content_change,
    find_shots,
    histogram_change,
    histograms,
    hsv_thumbnail,
    interpolate_gaps,
    may_be_cut,
    shots_at,
)

_SAVED = ("numbers", "used", "times", "shots", "model", "flicker", "flicker_before")
SEGMENT = 250  # frames at most
Cuts = str | list[int] | None


@contextmanager
def single_threads(filters: FilterModel) -> Iterator[int]:
    """Let PyTorch use one thread in each of ours; yield how many of ours there may be."""
    before = torch.get_num_threads()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(1)
    try:
        yield 1 if filters.one_at_a_time else cores
    finally:
        torch.set_num_threads(before)


class PredictionPass:
    """Look at every frame once, and write down a record of each.

    Args:
        source: Frames and masks.
        filters: The model.
        job: Where records go, and come from when a run was stopped.
        every: Predict every n-th frame, and those at both ends of a shot.
        cuts: "auto", a list of first frames of shots, or None for none.
    """

    def __init__(self, source: Source, filters: FilterModel, job: VideoJob, every: int, cuts: Cuts) -> None:
        self.source, self.filters, self.job, self.every = source, filters, job, every
        self.kind = record_type(filters.count)
        self.total = len(source.times)
        self.borders = None if cuts == "auto" else {0, *(cuts or [])}
        self._hsv: np.ndarray | None = None
        self._histograms: np.ndarray | None = None

    def run(self, progress: Callable[[int], object]) -> None:
        """Do it; `progress` is told of frames done."""
        done = self.job.known(self.kind, self.total)
        progress(done)
        if done >= self.total:
            return
        if done:
            self._histograms = np.array(self.job.open_records(self.kind)[done - 1]["histograms"])
        with single_threads(self.filters) as cores, ThreadPoolExecutor(cores) as pool:
            waiting: deque[Future[np.ndarray]] = deque()
            for records, views in self._batches(done):
                waiting.append(pool.submit(self._predicted, records, views))
                # Written as soon as it is there: what is not written is lost with the process.
                while waiting and (waiting[0].done() or len(waiting) > cores):
                    progress(self._write(waiting.popleft().result()))
            while waiting:
                progress(self._write(waiting.popleft().result()))

    def _write(self, records: np.ndarray) -> int:
        self.job.append(records)
        return len(records)

    def _predicted(self, records: np.ndarray, views: dict[int, FrameView]) -> np.ndarray:
        # Views of models with frame statistics hold whole frames: one at a time.
        step, rows = 1 if self.filters.statistics else BATCH, list(views)
        for first in range(0, len(rows), step):
            part = rows[first : first + step]
            records["numbers"][part] = self.filters.predict([views[row] for row in part])
        return records

    def _batches(self, done: int) -> Iterator[tuple[np.ndarray, dict[int, FrameView]]]:
        """Yield the records of `BATCH` frames without their numbers, and the view of each for the model."""
        records: list[np.ndarray] = []
        views: dict[int, FrameView] = {}
        for record, view in self._looked_at(done):
            if view is not None:
                views[len(records)] = view
            records.append(record)
            if len(records) == BATCH:
                yield np.concatenate(records), views
                records, views = [], {}
        if records:
            yield np.concatenate(records), views

    def _looked_at(self, done: int) -> Iterator[tuple[np.ndarray, FrameView | None]]:
        """Yield each frame's record from `done` on, and its view for the model if the frame is predicted."""
        held: tuple[int, SourceFrame, np.ndarray, bool] | None = None
        for index, item in enumerate(self.source.frames()):
            if index == done - 1:
                self._hsv = hsv_thumbnail(item.frame.thumbnail(*THUMBNAIL))
            if index < done:
                continue
            record, starts = self._describe(index, item)
            # A shot ends where the next frame starts another shot.
            if held is not None:
                yield self._settled(*held, ends=starts)
            held = (index, item, record, starts)
        if held is not None:
            yield self._settled(*held, ends=True)

    def _settled(
        self, index: int, item: SourceFrame, record: np.ndarray, starts: bool, *, ends: bool
    ) -> tuple[np.ndarray, FrameView | None]:
        wanted = starts or ends or index % self.every == 0
        if not wanted or item.mask is None or record["pixels"][0] < LEAST_PIXELS:
            return record, None
        record["predicted"] = 1
        return record, self.filters.view(item.frame, item.mask, item.reference)

    def _describe(self, index: int, item: SourceFrame) -> tuple[np.ndarray, bool]:
        """Return the record of a frame without its numbers, and whether a shot may start with it."""
        record = np.zeros(1, self.kind)
        hsv = hsv_thumbnail(item.frame.thumbnail(*THUMBNAIL))
        counted, starts = histograms(hsv), index == 0
        record["histograms"] = counted
        if self._hsv is not None and self._histograms is not None:
            content = content_change(self._hsv, hsv)
            record["content"] = content
            starts = may_be_cut(histogram_change(self._histograms, counted), content)
        if self.borders is not None:
            starts = index in self.borders
        self._hsv, self._histograms = hsv, counted
        mask = item.mask
        box = None if mask is None else bounding_box(mask > 0)
        if mask is not None and box is not None:
            self._check_background(index, item)
            record["pixels"] = float(mask.sum(dtype=np.float64))
            record["box"], record["window"] = (
                _numbers_of(box),
                _numbers_of(self.filters.window(item.frame, mask)),
            )
            record["small"] = self.filters.small_copy(item.frame, mask)
        return record, starts

    def _check_background(self, index: int, item: SourceFrame) -> None:
        assert item.mask is not None
        background = item.mask < 1
        if item.reference is not None:
            background &= item.reference > 0
        if not background.any():
            raise MaskError(
                "mask",
                f"leaves no background at {self.source.times[index]:.2f} s to harmonize to",
                "Mark the pasted object only.",
            )


def _numbers_of(box: Box) -> tuple[int, int, int, int]:
    return box[0].start, box[0].stop, box[1].start, box[1].stop


def _box_of(numbers: np.ndarray) -> Box:
    top, bottom, left, right = (int(n) for n in numbers)
    return slice(top, bottom), slice(left, right)


@dataclass
class RenderPlan:
    """What the second pass does: shots, filters of every frame, and the segments that are written.

    Attributes:
        numbers_at: Smoothed numbers of a frame; None = it stays as it is.
        shots: Frames of each shot.
        segments: Frames of each part that is encoded by itself.
        flicker: Of the smoothed correction.
        flicker_before: Of the correction frame by frame.
    """

    numbers_at: Callable[[int], np.ndarray | None]
    shots: list[slice]
    segments: list[slice]
    flicker: float
    flicker_before: float


def plan_rendering(
    source: Source,
    filters: FilterModel,
    job: VideoJob,
    *,
    cuts: Cuts,
    smoothing: str,
    time_constant: float,
    strength: float,
) -> RenderPlan:
    """Find the shots and smooth the filters, from the records of all frames."""
    records = job.open_records(record_type(filters.count))
    total, times = len(source.times), source.times
    if cuts == "auto":
        shots = find_shots(records["histograms"], records["content"])
    else:
        shots = shots_at(cuts or [], total)  # type: ignore[arg-type]
    predicted, numbers = records["predicted"] == 1, records["numbers"]
    enough = records["pixels"] >= LEAST_PIXELS
    if not predicted.any():
        note("mask", f"no frame has {LEAST_PIXELS} pixels of foreground; the clip stays as it is")
    interpolate_gaps(numbers, times, predicted, shots)
    known = np.zeros(total, bool)
    for shot in shots:
        known[shot] = predicted[shot].any()
    smoother = Smoother(numbers, times, (enough & known).astype(float), shots, smoothing, time_constant)
    plain = Smoother(numbers, times, (enough & known).astype(float), shots, "none", time_constant)

    def cells(one: Smoother, index: int) -> tuple[np.ndarray, np.ndarray]:
        values, record = one.at(index), records[index]
        if values is None or not record["box"].any():
            return cell_corrections(np.zeros((1, 1, 3)), np.zeros((1, 1)))
        change, mask = filters.small_correction(
            record["small"], _box_of(record["box"]), _box_of(record["window"]), values
        )
        return cell_corrections(strength * change, mask)

    with single_threads(filters):
        flickers = [
            flicker_of_shots([[cells(one, i) for i in range(shot.start, shot.stop)] for shot in shots])
            for one in (smoother, plain)
        ]
    return RenderPlan(smoother.at, shots, segments_of(shots), *flickers)


def segments_of(shots: list[slice]) -> list[slice]:
    """Return parts of at most `SEGMENT` frames that cross no cut.

    Example:
        >>> segments_of([slice(0, 3), slice(3, 300)])
        [slice(0, 3, None), slice(3, 253, None), slice(253, 300, None)]
    """
    parts = []
    for shot in shots:
        edges = [*range(shot.start, shot.stop, SEGMENT), shot.stop]
        parts += [slice(start, stop) for start, stop in pairwise(edges)]
    return parts


def render_frames(
    source: Source,
    filters: FilterModel,
    numbers_at: Callable[[int], np.ndarray | None],
    wanted: Callable[[int], bool],
    strength: float,
) -> Iterator[tuple[int, AnyFrame, AnyFrame]]:
    """Render frames in several threads, and yield them in order: number, composite, harmonized.

    Args:
        source: Frames and masks.
        filters: The model.
        numbers_at: See `RenderPlan`.
        wanted: Whether a frame is to be rendered; the others are left out.
        strength: See `FilterModel.changes`.
    """

    def render(index: int, item: SourceFrame) -> AnyFrame:
        numbers = None if item.mask is None or strength == 0 else numbers_at(index)
        if item.mask is None or numbers is None or not item.mask.any():
            return item.frame
        return item.frame.changed(filters.changes(item.frame, item.mask, numbers, strength))

    with single_threads(filters) as cores, ThreadPoolExecutor(cores) as pool:
        waiting: deque[tuple[int, AnyFrame, Future[AnyFrame]]] = deque()
        for index, item in enumerate(source.frames()):
            if not wanted(index):
                continue
            waiting.append((index, item.frame, pool.submit(render, index, item)))
            if len(waiting) > cores:
                number, before, future = waiting.popleft()
                yield number, before, future.result()
        while waiting:
            number, before, future = waiting.popleft()
            yield number, before, future.result()


def segment_path(folder: Path, number: int, kind: str = "packets") -> Path:
    """Return the file of a segment."""
    return folder / f"{number:05d}.{kind}"


def are_saved(path: Path) -> bool:
    """Return whether filters are to be read from `path`; if not, check that they can be written there.

    Raises:
        InputError: It cannot be looked at.
        OutputError: It cannot be written.
    """
    try:
        path.stat()
    except FileNotFoundError:
        check_output(path)
        return False
    except (OSError, ValueError):
        open_regular(path, "filters").close()  # says what is wrong
    return True


def load_filters(path: Path, filters: FilterModel, source: Source, weights: str) -> RenderPlan:
    """Read what `save_filters` wrote.

    Raises:
        DecodeError: It is no such file, is damaged, or holds values that cannot be used.
        InputError: It cannot be read, or was written for another clip or model.
    """
    remedy = "Name a new file to save them."
    total = len(source.times)
    try:
        with open_regular(path, "filters") as file, np.load(file, allow_pickle=False) as stored:
            content = {name: stored[name] for name in _SAVED}
    except InputError:
        raise
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DecodeError(path, f"holds no filters ({error})", remedy) from None
    numbers, used, shots, times = (content[name] for name in ("numbers", "used", "shots", "times"))
    fits = str(content["model"]) == weights and numbers.shape == (total, filters.count)
    fits = fits and times.shape == (total,) and times.dtype.kind == "f"
    if not fits or not np.allclose(times, source.times, atol=1e-3):
        raise InputError(path, "holds the filters of another clip or model", remedy)
    flickers = [content["flicker"], content["flicker_before"]]
    if any(part.dtype.kind != "f" or not np.isfinite(part).all() for part in (numbers, *flickers)):
        raise DecodeError(path, "holds filters with values that are not finite numbers", remedy)
    if used.shape != (total,) or used.dtype != bool or any(part.size != 1 for part in flickers):
        raise DecodeError(path, "holds damaged filters", remedy)
    edges = shots.tolist() if shots.ndim == 2 and shots.shape[1] == 2 and shots.dtype.kind in "iu" else []
    borders = [0, *(stop for _, stop in edges)]
    if borders[-1] != total or any(
        a != start or b <= a for a, (start, b) in zip(borders, edges, strict=False)
    ):
        raise DecodeError(path, f"holds shots that do not cover {total} frames", remedy)
    ranges = [slice(start, stop) for start, stop in edges]
    return RenderPlan(
        lambda index: numbers[index] if used[index] else None,
        ranges,
        segments_of(ranges),
        *(float(part.item()) for part in flickers),
    )


def save_filters(path: Path, plan: RenderPlan, filters: FilterModel, source: Source, weights: str) -> None:
    """Write the smoothed filters of every frame as .npz; `load_filters` reads them."""
    rows = [plan.numbers_at(index) for index in range(len(source.times))]
    content = {
        "numbers": np.stack([np.zeros(filters.count, np.float32) if row is None else row for row in rows]),
        "used": np.array([row is not None for row in rows]),
        "times": source.times,
        "shots": np.array([(shot.start, shot.stop) for shot in plan.shots]),
        "model": np.array(weights),
        "flicker": np.array(plan.flicker),
        "flicker_before": np.array(plan.flicker_before),
    }
    write_atomically(path, lambda file: np.savez(file, **content), overwrite=True)  # type: ignore[arg-type]
