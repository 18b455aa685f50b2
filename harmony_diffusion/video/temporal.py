"""What happens between the frames of a clip: cuts, and the smoothing of filters inside a shot.

Times are seconds and come from the timestamps of the file, so clips of any frame rate, also a varying one,
are smoothed alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from harmony_diffusion.errors import InputError
from harmony_diffusion.numbers import check_number

SMOOTHINGS = ("two-pass", "causal", "shot", "none")
TIME_CONSTANT = 0.5  # seconds, for both "two-pass" and "causal"
THUMBNAIL = (36, 64)  # height and width of what cuts are found in

_BINS = 16
_DARK = 16  # of 255: hue and saturation mean nothing below
_CUT_HISTOGRAM, _CUT_CONTENT, _CUT_RATIO = 0.2, 27.0, 5.0
_NEIGHBOURS = 5  # pairs on each side that a cut is compared with
_SHORTEST_SHOT = 3
# A Gaussian is cut at three sigma, a causal mean at ten time constants.
_GAUSSIAN_END, _CAUSAL_END = 3.0, 10.0


def hsv_thumbnail(thumbnail: np.ndarray) -> np.ndarray:
    """Convert an RGB thumbnail `(h, w, 3)` of uint8 to HSV, hue and saturation 0 in the dark."""
    hsv = cv2.cvtColor(thumbnail, cv2.COLOR_RGB2HSV)
    hsv[hsv[..., 2] < _DARK, :2] = 0
    return hsv


def histograms(hsv: np.ndarray) -> np.ndarray:
    """Count a thumbnail of `hsv_thumbnail` in 16 bins of hue, saturation and value.

    Returns:
        `(3, 16)` float32 shares; hue and saturation are counted, and sum to the share of the pixels, where
        the picture is not dark.
    """
    bright = hsv[..., 2] >= _DARK
    counts = np.empty((3, _BINS), np.float32)
    for channel, (limit, pixels) in enumerate(((180, bright), (256, bright), (256, np.ones_like(bright)))):
        counts[channel] = np.histogram(hsv[..., channel][pixels], _BINS, (0, limit))[0]
    return counts / bright.size


def content_change(before: np.ndarray, after: np.ndarray) -> float:
    """Return the mean absolute difference of two thumbnails of `hsv_thumbnail`.

    Hue and saturation count only where both are bright.
    """
    difference = np.abs(after.astype(np.int16) - before)
    # Hue is a circle of 180.
    difference[..., 0] = np.minimum(difference[..., 0], 180 - difference[..., 0])
    difference[(before[..., 2] < _DARK) | (after[..., 2] < _DARK), :2] = 0
    return float(difference.mean())


def histogram_change(before: np.ndarray, after: np.ndarray) -> float:
    """Half the L1 distance of two `histograms`, averaged over hue, saturation and value; 0 to 1."""
    distances = []
    for one, other in zip(before, after, strict=True):
        shares = float(one.sum()), float(other.sum())
        if min(shares) <= 0:
            distances.append(0.0)
            continue
        distance = 0.5 * float(np.abs(one / shares[0] - other / shares[1]).sum())
        distances.append(distance * min(shares))
    return float(np.mean(distances))


def may_be_cut(histogram: float, content: float) -> bool:
    """Return whether a pair of frames is a cut unless its neighbours change as much."""
    return histogram > _CUT_HISTOGRAM and content > _CUT_CONTENT


def find_shots(all_histograms: np.ndarray, contents: np.ndarray) -> list[slice]:
    """Find the shots of a clip.

    Args:
        all_histograms: `histograms` of each frame, `(n, 3, 16)`.
        contents: `content_change` from the frame before, `(n,)`; the first one is not used.

    Returns:
        The shots in order, which together cover all frames.
    """
    count = len(all_histograms)
    changes = [0.0] + [histogram_change(all_histograms[i - 1], all_histograms[i]) for i in range(1, count)]
    cuts = []
    for i in range(1, count):
        around = changes[max(1, i - _NEIGHBOURS) : i] + changes[i + 1 : i + 1 + _NEIGHBOURS]
        usual = float(np.median(around)) if around else 0.0
        if may_be_cut(changes[i], float(contents[i])) and changes[i] > _CUT_RATIO * usual:
            cuts.append(i)
    return _join_short(cuts, all_histograms, changes)


def _join_short(cuts: list[int], all_histograms: np.ndarray, changes: list[float]) -> list[slice]:
    """Drop cuts around single frames (a flash, a damaged frame) that are no shots of their own."""
    kept = list(cuts)
    i = 0
    while i + 1 < len(kept):
        start, stop = kept[i], kept[i + 1]
        if stop - start >= _SHORTEST_SHOT:
            i += 1
        elif histogram_change(all_histograms[start - 1], all_histograms[stop]) < _CUT_HISTOGRAM:
            del kept[i : i + 2]
        else:
            del kept[i if changes[start] <= changes[stop] else i + 1]
    return shots_at(kept, len(all_histograms))


def shots_at(cuts: Sequence[int], count: int) -> list[slice]:
    """Return the shots between cuts.

    Args:
        cuts: First frame of every shot but the first.
        count: Number of frames.

    Raises:
        InputError: A cut is no frame of the clip.

    Example:
        >>> shots_at([3], 5)
        [slice(0, 3, None), slice(3, 5, None)]
    """
    bounds = sorted(set(cuts))
    if bounds and not 0 < bounds[0] <= bounds[-1] < count:
        raise InputError(
            "cuts",
            f"are {bounds}, expected frame numbers from 1 to {count - 1}",
            "Count from 0 at the first frame that is read, and give the first frame of each new shot."
            if count > 1
            else "Leave them out: the clip has one frame.",
        )
    edges = [0, *bounds, count]
    return [slice(start, stop) for start, stop in zip(edges, edges[1:], strict=False)]


def interpolate_gaps(values: np.ndarray, times: np.ndarray, known: np.ndarray, shots: list[slice]) -> None:
    """Fill, in place, frames that were not predicted linearly from those before and after in the same shot.

    Args:
        values: `(n, F)`.
        times: Seconds, `(n,)`.
        known: Which rows are predicted, `(n,)`; a shot without any stays as it is.
        shots: See `find_shots`.
    """
    for shot in shots:
        rows = np.flatnonzero(known[shot]) + shot.start
        if not rows.size:
            continue
        for i in np.flatnonzero(~known[shot]) + shot.start:
            after = int(np.searchsorted(rows, i))
            left, right = rows[max(after - 1, 0)], rows[min(after, len(rows) - 1)]
            span = times[right] - times[left]
            share = (times[i] - times[left]) / span if span > 0 else 0.0
            values[i] = values[left] + share * (values[right] - values[left])


@dataclass(frozen=True)
class Smoother:
    """Weighted means over time that never look across a cut.

    Args:
        values: `(n, F)`; may be a memory-mapped file.
        times: Seconds, `(n,)`.
        weights: How much each frame counts, `(n,)`; 0 leaves it out.
        shots: See `find_shots`.
        method: "two-pass": Gaussian over time, both sides; "causal": exponentially fading mean of this frame
            and those before; "shot": one mean for a shot; "none": the frame's own values.
        time_constant: Sigma of the Gaussian, or time in which the causal weight falls to 1/e, in seconds.

    Raises:
        InputError: `method` is unknown, or `time_constant` not positive.
    """

    values: np.ndarray
    times: np.ndarray
    weights: np.ndarray
    shots: list[slice]
    method: str = "two-pass"
    time_constant: float = TIME_CONSTANT

    def __post_init__(self) -> None:
        """Check the settings."""
        check_smoothing(self.method, self.time_constant)

    def at(self, index: int) -> np.ndarray | None:
        """Return the smoothed values of a frame, `(F,)` float32; None when its shot has nothing to go by."""
        shot = next(shot for shot in self.shots if shot.start <= index < shot.stop)
        weights = np.zeros(shot.stop - shot.start)
        ages = self.times[shot] - self.times[index]
        if self.method == "shot":
            weights[:] = 1
        elif self.method == "two-pass":
            near = np.abs(ages) <= _GAUSSIAN_END * self.time_constant
            weights[near] = np.exp(-0.5 * (ages[near] / self.time_constant) ** 2)
        elif self.method == "causal":
            past = (ages <= 0) & (ages >= -_CAUSAL_END * self.time_constant)
            weights[past] = np.exp(ages[past] / self.time_constant)
        else:
            weights[index - shot.start] = 1
        weights *= self.weights[shot]
        used = np.flatnonzero(weights)
        if not used.size:
            return self._nearest(index, shot)
        rows = self.values[shot.start + int(used[0]) : shot.start + int(used[-1]) + 1]
        chosen = weights[used[0] : used[-1] + 1]
        return (chosen @ rows.astype(np.float64) / chosen.sum()).astype(np.float32)

    def _nearest(self, index: int, shot: slice) -> np.ndarray | None:
        """Values of the nearest frame of the shot that counts; in causal mode of one before."""
        candidates = np.flatnonzero(self.weights[shot] > 0) + shot.start
        if self.method == "causal":
            candidates = candidates[candidates <= index]
        if not candidates.size:
            return None
        nearest = candidates[np.abs(self.times[candidates] - self.times[index]).argmin()]
        return np.array(self.values[nearest], np.float32)


class CausalSmoother:
    """The same mean as "causal", kept up frame by frame, with cuts found from the past alone."""

    def __init__(self, time_constant: float = TIME_CONSTANT) -> None:
        check_smoothing("causal", time_constant)
        self.time_constant = time_constant
        self._total: np.ndarray | None = None
        self._weight, self._time = 0.0, 0.0
        self._hsv: np.ndarray | None = None
        self._histograms: np.ndarray | None = None
        self._changes: list[float] = []

    def see(self, thumbnail: np.ndarray) -> bool:
        """Look at the thumbnail of the next frame; start anew, and return True, after a cut."""
        hsv = hsv_thumbnail(thumbnail)
        counted, cut = histograms(hsv), False
        if self._hsv is not None and self._histograms is not None:
            change = histogram_change(self._histograms, counted)
            usual = float(np.median(self._changes)) if self._changes else 0.0
            cut = may_be_cut(change, content_change(self._hsv, hsv)) and change > _CUT_RATIO * usual
            self._changes = [*self._changes, change][-2 * _NEIGHBOURS :]
        self._hsv, self._histograms = hsv, counted
        if cut:
            self._total, self._weight = None, 0.0
        return cut

    def update(self, values: np.ndarray | None, time: float) -> np.ndarray | None:
        """Add the values of a frame at `time` seconds (None: it has none), and return the mean so far."""
        fade = float(np.exp(-(time - self._time) / self.time_constant))
        self._time = time
        if self._total is not None:
            self._total, self._weight = self._total * fade, self._weight * fade
        if values is not None:
            self._total = values.astype(np.float64) + (0 if self._total is None else self._total)
            self._weight += 1
        return None if self._total is None else (self._total / self._weight).astype(np.float32)


def check_smoothing(method: str, time_constant: float) -> float:
    """Check the settings of `Smoother`, and return the time constant.

    Raises:
        InputError: `method` is unknown, or `time_constant` is no positive number.
    """
    if method not in SMOOTHINGS:
        raise InputError("smoothing", f"is {method!r}", f"Choose one of {', '.join(SMOOTHINGS)}.")
    return check_number("time_constant", time_constant, 0.001)
