"""Find an object from a box, or from a few strokes, with GrabCut.

Paper: Rother et al., "GrabCut: Interactive Foreground Extraction using Iterated Graph Cuts", SIGGRAPH 2004.
The implementation is OpenCV's.
"""

import cv2
import numpy as np

from harmony_diffusion.boxes import Box, bounding_box
from harmony_diffusion.errors import MaskError

_SIDE = 512  # pixels of the longer side that GrabCut works on
_ITERATIONS = 5
_COLLAPSED = 0.35  # share of a box below which the object found in it is not the one meant
_FEATHER = 1.5  # pixels, at that size
_AROUND = 0.4  # background around a box, as a share of its longer side
_WHOLE = 0.97  # a box of this share leaves no background to learn from
_DRAW = "Draw a tighter box around the object, or a stroke inside it and one outside."

Fractions = tuple[float, float, float, float]


def find_object(
    pixels: np.ndarray,
    box: Fractions | None = None,
    inside: np.ndarray | None = None,
    outside: np.ndarray | None = None,
    *,
    largest: bool = True,
) -> np.ndarray:
    """Return the mask of the object in a box, or under a stroke.

    Args:
        pixels: RGB picture, `(H, W, 3)` uint8.
        box: Left, top, right and bottom as shares of width and height; None = anywhere.
        inside: Boolean `(h, w)`, a stroke on the object; any size.
        outside: Boolean `(h, w)`, a stroke on the background.
        largest: Keep the largest connected part, and parts with a stroke inside.

    Returns:
        `(H, W)` float32 in [0, 1], with a soft edge. The same input gives the same mask.

    Raises:
        MaskError: There is neither box nor stroke, or nothing was found.
    """
    if box is None and (inside is None or not inside.any()):
        raise MaskError("mask", "has neither a box nor a stroke inside the object", _DRAW)
    height, width = pixels.shape[:2]
    window = _window(box, inside, height, width)
    part = pixels[window]
    scale = min(1.0, _SIDE / max(part.shape[:2]))
    size = max(1, round(part.shape[1] * scale)), max(1, round(part.shape[0] * scale))
    small = np.ascontiguousarray(cv2.resize(part, size, interpolation=cv2.INTER_AREA)[..., ::-1])
    labels: np.ndarray = np.full((height, width), cv2.GC_PR_BGD if box is None else cv2.GC_BGD, np.uint8)
    if box is not None:
        rows, columns = _span(box[1], box[3], height), _span(box[0], box[2], width)
        if (rows.stop - rows.start) * (columns.stop - columns.start) > _WHOLE * labels.size:
            raise MaskError("box", "covers nearly the whole picture", _DRAW)
        labels[rows, columns] = cv2.GC_PR_FGD
    labels = cv2.resize(labels[window], size, interpolation=cv2.INTER_NEAREST)
    strokes = [
        None if s is None else _resized(_resized(s, (width, height))[window], size) for s in (inside, outside)
    ]
    for stroke, label in zip(strokes, (cv2.GC_FGD, cv2.GC_BGD), strict=True):
        if stroke is not None:
            labels[stroke] = label
    in_question = labels == cv2.GC_PR_FGD
    found = _cut(small, labels.copy())
    if box is not None and found.sum() < _COLLAPSED * in_question.sum():
        # The object was taken for background, which it resembles. Its middle is certain.
        found = _cut(small, np.where(_middle(in_question) & in_question, np.uint8(cv2.GC_FGD), labels))
    if largest:
        found = _largest(found, strokes[0])
    if not found.any():
        raise MaskError("mask", "no object was found there", _DRAW)
    soft = cv2.GaussianBlur(found.astype(np.float32), (0, 0), _FEATHER / 2)
    mask = np.zeros((height, width), np.float32)
    mask[window] = cv2.resize(soft, part.shape[1::-1], interpolation=cv2.INTER_LINEAR).clip(0, 1)
    return mask


def _middle(box: np.ndarray) -> np.ndarray:
    """Return the ellipse in the middle of a box, half as wide and high, boolean `(h, w)`."""
    bounds = bounding_box(box)
    assert bounds is not None
    rows, columns = bounds
    centre = (columns.start + columns.stop) // 2, (rows.start + rows.stop) // 2
    axes = max(1, (columns.stop - columns.start) // 4), max(1, (rows.stop - rows.start) // 4)
    return cv2.ellipse(np.zeros(box.shape, np.uint8), centre, axes, 0, 0, 360, 1, -1) > 0


def _span(first: float, last: float, length: int) -> slice:
    low, high = sorted(round(min(max(share, 0), 1) * length) for share in (first, last))
    return slice(low, high)


def _window(box: Fractions | None, inside: np.ndarray | None, height: int, width: int) -> Box:
    """Return the box with as much around it as shows its background."""
    if box is None:
        return slice(0, height), slice(0, width)
    spans = _span(box[1], box[3], height), _span(box[0], box[2], width)
    longer = max(span.stop - span.start for span in spans)
    margin = max(8, round(_AROUND * longer))
    rows, columns = (
        slice(max(0, span.start - margin), min(length, span.stop + margin))
        for span, length in zip(spans, (height, width), strict=True)
    )
    return rows, columns


def _cut(small: np.ndarray, labels: np.ndarray) -> np.ndarray:
    cv2.setRNGSeed(0)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    try:
        cv2.grabCut(small, labels, None, *models, _ITERATIONS, cv2.GC_INIT_WITH_MASK)  # type: ignore[call-overload]
    except cv2.error:
        raise MaskError("mask", "object and background could not be told apart", _DRAW) from None
    return (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)


def _largest(found: np.ndarray, inside: np.ndarray | None) -> np.ndarray:
    count, parts, boxes, _ = cv2.connectedComponentsWithStats(found.astype(np.uint8))
    if count < 2:
        return found
    kept = {1 + int(np.argmax(boxes[1:, cv2.CC_STAT_AREA]))}
    if inside is not None:
        kept |= set(np.unique(parts[inside]).tolist()) - {0}
    return np.isin(parts, list(kept))


def _resized(stroke: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return a stroke at another size; a thin one does not vanish."""
    return cv2.resize(stroke.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0.25
