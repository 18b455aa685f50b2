"""How steady a harmonized clip is: flicker of the correction, fR-RTC and the temporal loss.

All functions take one clip without cuts; a clip with cuts is scored shot by shot. `tl_dis` follows the
temporal loss of CO2Net (Lu et al., IJCAI 2022), but with OpenCV's DIS flow instead of FlowNet2: its values
must not be compared with published ones. fR-RTC follows the video triplet transformer (CVPR 2024); masks stay
soft here, theirs are thresholded.
"""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from harmony_diffusion.boxes import bounding_box

CELLS = 4  # cells in either direction of the foreground's bounding box
_LEAST_COVERAGE = 0.25
_SIDE = 256  # at which `tl_dis` is computed


def cell_corrections(correction: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Average the correction of one frame in 4x4 cells of the foreground's bounding box.

    Args:
        correction: Output minus composite, `(h, w, 3)`, 0 where the mask is 0.
        mask: 1 on the foreground, `(h, w)`.

    Returns:
        Mean correction of the foreground in each cell `(16, 3)`, and how much of the cell is foreground
        `(16,)`; zeros for an empty mask.
    """
    means, coverage = np.zeros((CELLS**2, 3)), np.zeros(CELLS**2)
    box = bounding_box(mask > 0)
    if box is None:
        return means, coverage
    rows, columns = (np.linspace(span.start, span.stop, CELLS + 1).round().astype(int) for span in box)
    for i in range(CELLS**2):
        row, column = divmod(i, CELLS)
        cell = slice(rows[row], rows[row + 1]), slice(columns[column], columns[column + 1])
        inside = mask[cell]
        total = float(inside.sum(dtype=np.float64))
        if total > 0:
            coverage[i] = total / inside.size
            means[i] = correction[cell].sum((0, 1), dtype=np.float64) / total
    return means, coverage


def flicker_of_shots(shots: Sequence[Sequence[tuple[np.ndarray, np.ndarray]]]) -> float:
    """Compute the flicker of a clip from the `cell_corrections` of the frames of each shot.

    Returns:
        255 times the root mean square of the change from frame to frame, over pairs of frames, channels, and
        cells that are foreground by more than a quarter in both frames; 0 when there is none.
    """
    changes = [np.zeros((0, 3))]
    for cells in shots:
        for (before, covered_before), (after, covered_after) in zip(cells, cells[1:], strict=False):
            both = (covered_before > _LEAST_COVERAGE) & (covered_after > _LEAST_COVERAGE)
            changes.append((after - before)[both])
    flat = np.concatenate(changes)
    return 255 * float(np.sqrt(np.square(flat).mean())) if flat.size else 0.0


def flicker(harmonized: Tensor, composite: Tensor, mask: Tensor) -> float:
    """Measure how much the correction changes from frame to frame, in levels of 255.

    It needs neither ground truth nor optical flow. The composite itself scores 0, so read it beside fMSE.

    Args:
        harmonized: Frames of the result in [0, 1], `(T, 3, H, W)`.
        composite: Frames that went in, `(T, 3, H, W)`.
        mask: 1 on the foreground, `(T, 1, H, W)`.

    Example:
        >>> still = torch.rand(4, 3, 32, 32)
        >>> flicker(still * 0.9 + 0.05, still, torch.ones(4, 1, 32, 32)) < 40
        True
    """
    corrections = ((harmonized - composite) * (mask > 0)).permute(0, 2, 3, 1).double().numpy()
    masks = mask[:, 0].double().numpy()
    return flicker_of_shots([[cell_corrections(c, m) for c, m in zip(corrections, masks, strict=True)]])


def r_rtc(harmonized: Tensor, real: Tensor, mask: Tensor | None = None) -> float:
    """Compare how the brightness of a harmonized clip and of the real one change over time.

    Args:
        harmonized: Frames of the result in [0, 1], `(T, 3, H, W)`, at least two.
        real: Frames of the real clip, `(T, 3, H, W)`.
        mask: 1 on the foreground, `(T, 1, H, W)`, which gives fR-RTC; None = the whole frame, R-RTC.

    Returns:
        With g the differences over time of the mean HSV value (in 8 bits), the mean over time of
        `(g_harmonized - g_real)^2 + max(|g_harmonized - g_real| - mean, 0)^2`.
    """
    weight = torch.ones_like(real[:, :1]) if mask is None else mask
    weight = weight.double()
    area = weight.sum((1, 2, 3))
    seen = area > 0
    values = []
    for frames in (harmonized, real):
        value = 255 * frames.double().amax(1, keepdim=True)
        values.append((value * weight).sum((1, 2, 3)) / area.clamp_min(1e-12))
    gap = (values[0] - values[1]).diff().abs()[seen[1:] & seen[:-1]]
    if not gap.numel():
        return 0.0
    return float((gap.square() + (gap - gap.mean()).clamp_min(0).square()).mean())


def tl_dis(harmonized: Tensor, real: Tensor, mask: Tensor) -> float:
    """Compute the temporal loss with DIS optical flow of the real clip.

    Most of it is the error of the flow itself: print it beside that of the composite and of the real clip.

    Args:
        harmonized: Frames of the result in [0, 1], `(T, 3, H, W)`, at least two.
        real: Frames of the real clip, `(T, 3, H, W)`.
        mask: 1 on the foreground, `(T, 1, H, W)`.

    Returns:
        Mean over pairs of frames, at 256x256.
    """
    flow_of = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    frames, truth, masks = (_small(clip) for clip in (harmonized, real, mask))
    grey = [cv2.cvtColor(np.rint(255 * t).astype(np.uint8), cv2.COLOR_RGB2GRAY) for t in truth]
    columns, rows = np.meshgrid(np.arange(_SIDE, dtype=np.float32), np.arange(_SIDE, dtype=np.float32))
    losses = []
    for t in range(len(frames) - 1):
        flow = flow_of.calc(grey[t + 1], grey[t], None)  # type: ignore[call-overload]
        at = (columns + flow[..., 0], rows + flow[..., 1])
        warped, warped_truth, warped_mask = (
            cv2.remap(image, *at, cv2.INTER_LINEAR) for image in (frames[t], truth[t], masks[t])
        )
        sure = np.exp(-np.abs(warped_truth - truth[t + 1])).mean(2)
        weight = warped_mask * sure
        error = weight[..., None] * (warped - frames[t + 1])
        total = float(weight.sum())
        if total > 0:
            losses.append(255**2 * float(np.square(error, dtype=np.float64).sum()) / total)
    return float(np.mean(losses)) if losses else 0.0


def _small(clip: Tensor) -> list[np.ndarray]:
    frames = clip.float().permute(0, 2, 3, 1).numpy().clip(0, 1)
    return [cv2.resize(frame, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA) for frame in frames]
