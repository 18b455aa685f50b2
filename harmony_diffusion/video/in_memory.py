"""Harmonize a short clip that is held in memory, in several ways at once: for evaluation."""

from collections.abc import Mapping, Sequence

import numpy as np

from harmony_diffusion.video.filters import LEAST_PIXELS, FilterModel
from harmony_diffusion.video.frame_colors import AnyFrame
from harmony_diffusion.video.temporal import (
    THUMBNAIL,
    TIME_CONSTANT,
    Smoother,
    content_change,
    find_shots,
    histograms,
    hsv_thumbnail,
    interpolate_gaps,
)


def shots_of_frames(frames: Sequence[AnyFrame]) -> list[slice]:
    """Find the shots of a clip."""
    small = [hsv_thumbnail(frame.thumbnail(*THUMBNAIL)) for frame in frames]
    contents = [0.0, *(content_change(a, b) for a, b in zip(small, small[1:], strict=False))]
    return find_shots(np.stack([histograms(hsv) for hsv in small]), np.array(contents))


def harmonize_frames(
    filters: FilterModel,
    frames: Sequence[AnyFrame],
    masks: Sequence[np.ndarray],
    times: np.ndarray,
    ways: Mapping[str, tuple[str, float, int]],
    *,
    shots: list[slice] | None = None,
) -> dict[str, list[AnyFrame]]:
    """Predict the filters of every frame once, and render the clip in several ways.

    Args:
        filters: The model.
        frames: The composite.
        masks: 1 on the foreground, `(H, W)` float32 each.
        times: Seconds, `(n,)`.
        ways: By name: smoothing, time constant, and every how many frames the model is run.
        shots: As `shots_of_frames` finds them, which is the default.

    Returns:
        Harmonized frames by name.
    """
    shots = shots_of_frames(frames) if shots is None else shots
    pixels = np.array([float(mask.sum()) for mask in masks])
    enough = pixels >= LEAST_PIXELS
    numbers = np.zeros((len(frames), filters.count), np.float32)
    for i in np.flatnonzero(enough).tolist():
        numbers[i] = filters.predict([filters.view(frames[i], masks[i])])[0]
    ends = {i for shot in shots for i in (shot.start, shot.stop - 1)}
    rendered: dict[str, list[AnyFrame]] = {}
    for name, (method, constant, every) in ways.items():
        known = enough & np.array([i % every == 0 or i in ends for i in range(len(frames))])
        values = numbers.copy()
        interpolate_gaps(values, times, known, shots)
        smoother = Smoother(values, times, enough.astype(float), shots, method, constant or TIME_CONSTANT)
        rendered[name] = []
        for number, (frame, mask) in enumerate(zip(frames, masks, strict=True)):
            own = smoother.at(number)
            changed = frame if own is None else frame.changed(filters.changes(frame, mask, own))
            rendered[name].append(changed)
    return rendered
