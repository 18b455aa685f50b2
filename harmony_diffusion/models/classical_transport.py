"""Methods without trained weights that match whole distributions of colour, by channel or along turned axes.

Both use one-dimensional optimal transport. It is computed from fine histograms and stored as a table, which
acts on each pixel alone and therefore gives the same result at any resolution.
"""

from typing import NamedTuple

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from harmony_diffusion.models.classical import ClassicalMethod, Region
from harmony_diffusion.models.origin import Origin

# Levels of the histograms between 0 and 1: 16 for each step of 8 bits, whose values they hold exactly.
_LEVELS = 16 * 255
# Levels between the ends of a turned axis.
_AXIS_LEVELS = 4096
# Entries of the table of an axis.
_ENTRIES = 128


class Histogram(NamedTuple):
    """Values `(K,)`, in order, and the share of the weight that each holds, `(K,)`, above 0 and of sum 1."""

    values: np.ndarray
    shares: np.ndarray


def histogram_of(values: np.ndarray, weights: np.ndarray, low: float, high: float, steps: int) -> Histogram:
    """Count weighted values to the nearest of `steps + 1` levels from `low` to `high`.

    Args:
        values: `(N,)` in [`low`, `high`]; values beyond count to the ends.
        weights: `(N,)`, 0 or more, of sum 1.
        low: First level.
        high: Last level.
        steps: Steps between the levels.
    """
    scale = steps / (high - low) if high > low else 0.0
    level = ((values - low) * scale + 0.5).astype(np.int64)
    np.clip(level, 0, steps, out=level)
    shares = np.bincount(level, weights, steps + 1)
    held = np.flatnonzero(shares)
    return Histogram(low + held * ((high - low) / steps), shares[held])


def match_quantiles(
    values: np.ndarray,
    weights: np.ndarray,
    target_values: np.ndarray,
    target_weights: np.ndarray,
    positions: np.ndarray,
) -> np.ndarray:
    """Evaluate the monotone map that gives weighted values the distribution of others.

    A value that holds the share `(p, q]` of the weight is mapped to the mean of the target's quantiles from p
    to q, which is exact one-dimensional optimal transport. The map is linear between values. It has slope 1
    beyond the first and the last value, which keeps detail there.

    Args:
        values: `(N,)`, any order.
        weights: `(N,)`, positive, of sum 1.
        target_values: `(M,)`, any order.
        target_weights: `(M,)`, positive, of sum 1.
        positions: Where to evaluate the map, `(K,)`.

    Returns:
        `(K,)`, non-decreasing where `positions` are.
    """
    order = np.argsort(values)
    values, weights = values[order], weights[order]
    first = np.flatnonzero(np.diff(values, prepend=-np.inf) > 0)
    values, shares = values[first], np.add.reduceat(weights, first)
    order = np.argsort(target_values)
    level = np.concatenate(([0.0], np.cumsum(target_weights[order])))
    integral = np.concatenate(([0.0], np.cumsum((target_weights * target_values)[order])))
    bounds = np.concatenate(([0.0], np.cumsum(shares)))
    matched = np.diff(np.interp(bounds, level, integral)) / np.diff(bounds).clip(np.finfo(float).tiny)
    # The mean of a very small share is inexact because the sums are rounded; clip it to its neighbours.
    lowest, highest = target_values[order][[0, -1]]
    matched = np.maximum.accumulate(matched.clip(lowest, highest))
    inside = positions.clip(values[0], values[-1])
    return np.interp(inside, values, matched) + positions - inside


def look_up(values: Tensor, tables: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Interpolate linearly in tables of evenly spaced entries; slope 1 beyond their ends.

    Args:
        values: `(C, N)`.
        tables: `(C, K)`.
        low: Positions of the first entries, `(C, 1)`.
        high: Positions of the last entries, `(C, 1)`.

    Returns:
        `(C, N)`.
    """
    inside = values.clamp(low, high)
    at = (inside - low) / (high - low).clamp_min(1e-6) * (tables.shape[1] - 1)
    left = at.long().clamp_max(tables.shape[1] - 2)
    return torch.lerp(tables.gather(1, left), tables.gather(1, left + 1), at - left) + values - inside


def uniform_rotations(count: int) -> np.ndarray:
    """Return `(count, 3, 3)` rotations, the identity first, that fill the space of rotations evenly.

    A Kronecker sequence with the powers of 1/1.2207 as steps, where 1.2207 is the root of x^4 = x + 1, the
    counterpart of the golden ratio in three dimensions. Shoemake's uniform map onto unit quaternions turns
    the points into rotations.
    """
    step = 1.2207440846057596 ** -np.arange(1.0, 4.0)
    u, v, w = (np.array([0.0, 0.25, 0.25]) + np.arange(count)[:, None] * step).T % 1
    a, b = np.sqrt(1 - u) * np.sin(2 * np.pi * v), np.sqrt(1 - u) * np.cos(2 * np.pi * v)
    c, d = np.sqrt(u) * np.sin(2 * np.pi * w), np.sqrt(u) * np.cos(2 * np.pi * w)
    rows = (
        (1 - 2 * (c * c + d * d), 2 * (b * c - a * d), 2 * (b * d + a * c)),
        (2 * (b * c + a * d), 1 - 2 * (b * b + d * d), 2 * (c * d - a * b)),
        (2 * (b * d - a * c), 2 * (c * d + a * b), 1 - 2 * (b * b + c * c)),
    )
    return np.stack([np.stack(row, -1) for row in rows], 1)


def spread_rotations(count: int) -> np.ndarray:
    """Return `(count, 3, 3)` rotations, the identity first, each with axes far from all earlier axes."""
    candidates = uniform_rotations(1000)
    chosen, closeness = [candidates[0]], np.zeros(len(candidates))
    while len(chosen) < count:
        cosines = np.abs(candidates @ chosen[-1].T)
        closeness = np.maximum(closeness, cosines.max((1, 2)))
        chosen.append(candidates[closeness.argmin()])
    return np.stack(chosen)


class HistogramMatching(ClassicalMethod, ModelMixin, ConfigMixin):
    """Give each of R, G and B of the foreground the histogram of the background.

    Histogram specification (Gonzalez, Woods: Digital Image Processing, section 3.3), channel by channel, as
    tables of 256 entries, one for each level of an 8-bit image, with linear interpolation between them.

    Filters are the new values of 0, 1/255, ..., 1 for R, then G, then B, `(B, 768)`.
    """

    origin = Origin(
        title="Histogram specification, Gonzalez and Woods: Digital Image Processing",
        paper="https://www.imageprocessingplace.com",
    )

    @register_to_config
    def __init__(self) -> None:
        super().__init__()

    @property
    def identity(self) -> np.ndarray:
        """Tables that map each level to itself."""
        return np.tile(np.linspace(0, 1, 256), 3)

    def fit(self, foreground: Region, background: Region) -> np.ndarray:
        """Match the distribution of each channel."""
        levels = np.linspace(0, 1, 256)
        tables = []
        for channel in range(3):
            own, target = (
                histogram_of(region.colors[:, channel], region.weights, 0, 1, _LEVELS)
                for region in (foreground, background)
            )
            tables.append(match_quantiles(*own, *target, levels))
        return np.concatenate(tables).clip(0, 1)

    def map_colors(self, colors: Tensor, filters: Tensor) -> Tensor:
        """Look every value up in the table of its channel."""
        return look_up(colors, filters.view(3, -1), colors.new_zeros(3, 1), colors.new_ones(3, 1))


def _without_empty(region: Region) -> Region:
    """Leave out the pixels of weight 0."""
    held = np.flatnonzero(region.weights)
    return Region(region.colors.T[:, held].T, region.weights[held])


class IDT(ClassicalMethod, ModelMixin, ConfigMixin):
    """Give the foreground the whole colour distribution of the background, by matching along turned axes.

    Iterative distribution transfer: Pitié, Kokaram, Dahyot: N-dimensional probability density function
    transfer and its application to colour transfer, ICCV 2005; Automated colour grading using colour
    distribution transfer, CVIU 2007. Each iteration turns RGB, matches the distribution along each of the
    three axes, and turns back. The rotations are fixed. Their axes keep away from earlier ones, similar to
    the optimised sequence of the 2007 paper (`spread_rotations`). The regraining that hides stretched noise
    in the papers is left out, because it is no map of colours.

    Filters are, for each iteration and axis, the first and the last position of the table and its 128
    entries, `(B, iterations * 3 * 130)`.

    Args:
        iterations: Rotations matched one after the other.
    """

    origin = Origin(
        title="Automated colour grading using colour distribution transfer, CVIU 2007",
        paper="https://doi.org/10.1016/j.cviu.2006.11.011",
    )
    working_size = 256

    @register_to_config
    def __init__(self, iterations: int = 20) -> None:
        super().__init__()
        self.rotations = spread_rotations(iterations)

    @property
    def identity(self) -> np.ndarray:
        """Tables that map each position to itself."""
        return np.tile(np.concatenate(([0.0, 1.0], np.linspace(0, 1, _ENTRIES))), 3 * len(self.rotations))

    def fit(self, foreground: Region, background: Region) -> np.ndarray:
        """Match the distributions along the axes of each rotation."""
        foreground, background = (_without_empty(region) for region in (foreground, background))
        colors, filters = foreground.colors.T, []
        for rotation in self.rotations.astype(colors.dtype):
            turned, target = rotation @ colors, rotation @ background.colors.T
            for axis in range(3):
                own, wanted = (
                    histogram_of(values, region.weights, values.min(), values.max(), _AXIS_LEVELS)
                    for values, region in ((turned[axis], foreground), (target[axis], background))
                )
                positions = np.linspace(own.values[0], own.values[-1], _ENTRIES)
                table = match_quantiles(*own, *wanted, positions)
                filters.append(np.concatenate((positions[[0, -1]], table)))
                turned[axis] = np.interp(turned[axis], positions, table)
            colors = rotation.T @ turned
        return np.concatenate(filters)

    def map_colors(self, colors: Tensor, filters: Tensor) -> Tensor:
        """Turn, look up and turn back, iteration by iteration."""
        rotations = torch.from_numpy(self.rotations).to(colors)
        for rotation, tables in zip(rotations, filters.view(len(rotations), 3, -1), strict=True):
            low, high, entries = tables[:, :1], tables[:, 1:2], tables[:, 2:]
            colors = rotation.T @ look_up(rotation @ colors, entries, low, high)
        return colors
