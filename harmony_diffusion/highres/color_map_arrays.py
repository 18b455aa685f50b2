"""The fit of `harmony_diffusion.highres.color_map` on the CPU, by OpenCV and NumPy.

The same equations in a third of the time: running sums in place of sums of shifted images, each symmetric
product once, and 3x3 systems solved in closed form. All images are stacks of planes, `(C, h, w)` float32.
"""

import cv2
import numpy as np

_IDENTITY = np.append(np.eye(3, dtype=np.float32).ravel(), np.zeros(3, np.float32))[:, None, None]
# Products of two channels of the source that differ from one another: both indices in 0..2.
_PAIRS = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))


def fit_planes(
    source: np.ndarray,
    target: np.ndarray,
    weight: np.ndarray,
    radius: int,
    eps: float,
    global_eps: float,
    scarce: float,
) -> np.ndarray:
    """Fit a colour map: that of the picture at half the size, then its residual.

    Args:
        source: Colours measured from the mean of the foreground, `(3, h, w)`.
        target: What they shall become, `(3, h, w)`.
        weight: `(h, w)`, 0 or more.
        radius: As in `fit_color_map`.
        eps: As in `fit_color_map`.
        global_eps: Variance of colour below which the map of the whole foreground keeps the identity matrix.
        scarce: Foreground pixels that a neighbourhood needs before its own fit counts.

    Returns:
        The colour map, `(12, h, w)`.
    """
    height, width = weight.shape
    side = 2 * radius + 1
    if max(height, width) <= side:
        whole = _moments(source, target - source, weight).mean((1, 2), dtype=np.float64, keepdims=True)
        return np.broadcast_to(
            _IDENTITY + _regress(whole.astype(np.float32), global_eps), (12, height, width)
        )
    half_weight = _halve(weight)
    half_source, half_target = (
        np.stack([_halve(weight * plane) for plane in image]) / np.maximum(half_weight, 1e-12)
        for image in (source, target)
    )
    coarse = fit_planes(half_source, half_target, half_weight, radius, eps, global_eps, scarce)
    size = (width, height)
    coarse = np.stack([cv2.resize(plane, size, interpolation=cv2.INTER_LINEAR) for plane in coarse])
    rest = target - coarse[9:]
    for row in range(3):
        for column in range(3):
            rest[row] -= coarse[3 * row + column] * source[column]
    gathered = _box_mean(_moments(source, rest, weight), radius)
    fitted = _regress(gathered, eps)
    # Each position averages the fits of all neighbourhoods it lies in, the fuller ones counting more. Where
    # all of them are nearly empty, the coarser map remains.
    amount = gathered[:1]
    fitted *= amount
    share = 1 / (_box_mean(amount, radius) + np.float32(scarce / side**2))
    fitted = _box_mean(fitted, radius)
    fitted *= share
    coarse += fitted
    return coarse


def _halve(plane: np.ndarray) -> np.ndarray:
    """Average pairs of rows and of columns; an odd last one counts for both of its pair."""
    height, width = plane.shape
    if height % 2 or width % 2:
        plane = np.pad(plane, ((0, height % 2), (0, width % 2)), mode="edge")
    rows = plane[::2] + plane[1::2]
    return (rows[:, ::2] + rows[:, 1::2]) * np.float32(0.25)


def _moments(source: np.ndarray, target: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Weight, and weighted source, target, pairs of the source and target source^T, `(22, h, w)`."""
    moments = np.empty((22, *weight.shape), np.float32)
    moments[0] = weight
    np.multiply(source, weight, out=moments[1:4])
    np.multiply(target, weight, out=moments[4:7])
    for index, (row, column) in enumerate(_PAIRS):
        np.multiply(moments[1 + row], source[column], out=moments[7 + index])
    for row in range(3):
        for column in range(3):
            np.multiply(moments[4 + row], source[column], out=moments[13 + 3 * row + column])
    return moments


def _regress(moments: np.ndarray, eps: float) -> np.ndarray:
    """Ridge regression of target on source at each position, `(12, h, w)`."""
    inverse = 1 / np.maximum(moments[0], np.float32(1e-12))
    means = moments[1:] * inverse
    source, target = means[:3], means[3:6]
    c00, c01, c02, c11, c12, c22 = (
        means[6 + index] - source[row] * source[column] for index, (row, column) in enumerate(_PAIRS)
    )
    # Covariance + ridge = L D L^T with ones on the diagonal of L. No covariance has negative eigenvalues, so
    # that D is at least the ridge; rounding of nearly constant colours must not make it smaller. The products
    # of cofactors would lose all digits there.
    least = np.float32(eps)
    d0 = 1 / (np.maximum(c00, 0) + least)
    l10, l20 = c01 * d0, c02 * d0
    d1 = 1 / np.maximum(c11 + least - l10 * c01, least)
    rest = c12 - l10 * c02
    l21 = rest * d1
    d2 = 1 / np.maximum(c22 + least - l20 * c02 - l21 * rest, least)
    fitted = np.empty((12, *moments.shape[1:]), np.float32)
    for row in range(3):
        x0, x1, x2 = (means[12 + 3 * row + column] - target[row] * source[column] for column in range(3))
        x1 -= l10 * x0
        x2 -= l20 * x0 + l21 * x1
        x2 *= d2
        x1 = x1 * d1 - l21 * x2
        x0 = x0 * d0 - l10 * x1 - l20 * x2
        fitted[3 * row], fitted[3 * row + 1], fitted[3 * row + 2] = x0, x1, x2
        fitted[9 + row] = target[row] - x0 * source[0] - x1 * source[1] - x2 * source[2]
    return fitted


def _box_mean(planes: np.ndarray, radius: int) -> np.ndarray:
    """Mean over the square of side `2 * radius + 1`, zeros beyond the border."""
    side = (2 * radius + 1, 2 * radius + 1)
    result = np.empty_like(planes)
    for plane, out in zip(planes, result, strict=True):
        cv2.boxFilter(plane, -1, side, dst=out, borderType=cv2.BORDER_CONSTANT)
    return result
