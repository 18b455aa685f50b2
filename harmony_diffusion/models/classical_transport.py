"""Methods without trained weights that match whole distributions of colour: by channel, or by turning axes.

Both rest on one-dimensional optimal transport, computed exactly from weighted pixels and kept as a table, so
that applying it is pointwise and the same at any resolution.
"""

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from harmony_diffusion.models.classical import Region, fit_filters, recolor
from harmony_diffusion.models.origin import Origin


def match_quantiles(
    values: np.ndarray,
    weights: np.ndarray,
    target_values: np.ndarray,
    target_weights: np.ndarray,
    positions: np.ndarray,
) -> np.ndarray:
    """Evaluate the monotone map that gives weighted values the distribution of others.

    A value that holds the share `(p, q]` of the weight goes to the mean of the target's quantiles from p to
    q: one-dimensional optimal transport, exact. Between values the map is linear,
    beyond the first and the last it has slope 1, so that detail there is kept.

    Args:
        values: `(N,)`, any order.
        weights: `(N,)`, positive, of sum 1.
        target_values: `(M,)`, any order.
        target_weights: `(M,)`, positive, of sum 1.
        positions: Where to evaluate the map, `(K,)`.

    Returns:
        `(K,)`, non-decreasing where `positions` are.
    """
    order = np.argsort(values, kind="stable")
    values, weights = values[order], weights[order]
    first = np.flatnonzero(np.diff(values, prepend=-np.inf) > 0)
    values, shares = values[first], np.add.reduceat(weights, first)
    order = np.argsort(target_values, kind="stable")
    level = np.concatenate(([0.0], np.cumsum(target_weights[order])))
    integral = np.concatenate(([0.0], np.cumsum((target_weights * target_values)[order])))
    bounds = np.concatenate(([0.0], np.cumsum(shares)))
    matched = np.diff(np.interp(bounds, level, integral)) / np.diff(bounds).clip(np.finfo(float).tiny)
    # A share near the rounding of the sums has no reliable mean, but it lies between its neighbours' bounds.
    lowest, highest = target_values[order][[0, -1]]
    matched = np.maximum.accumulate(matched.clip(lowest, highest))
    inside = positions.clip(values[0], values[-1])
    return np.interp(inside, values, matched) + positions - inside


def look_up(values: Tensor, tables: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Interpolate linearly in tables of evenly spaced entries; slope 1 beyond their ends.

    Args:
        values: `(C, N)`.
        tables: `(C, K)`.
        low: Where the first entries stand, `(C, 1)`.
        high: Where the last entries stand, `(C, 1)`.

    Returns:
        `(C, N)`.
    """
    inside = values.clamp(low, high)
    at = (inside - low) / (high - low).clamp_min(1e-6) * (tables.shape[1] - 1)
    left = at.long().clamp_max(tables.shape[1] - 2)
    return torch.lerp(tables.gather(1, left), tables.gather(1, left + 1), at - left) + values - inside


def uniform_rotations(count: int) -> np.ndarray:
    """Return `(count, 3, 3)` rotations, the identity first, that fill the space of all of them.

    A Kronecker sequence whose steps are powers of 1/1.2207, the root of x^4 = x + 1 (the golden ratio's kin
    in three dimensions), taken to rotations by Shoemake's uniform map onto unit quaternions.
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
    """Return `(count, 3, 3)` rotations, the identity first, each with axes far from all axes before."""
    candidates = uniform_rotations(1000)
    chosen, closeness = [candidates[0]], np.zeros(len(candidates))
    while len(chosen) < count:
        cosines = np.abs(candidates @ chosen[-1].T)
        closeness = np.maximum(closeness, cosines.max((1, 2)))
        chosen.append(candidates[closeness.argmin()])
    return np.stack(chosen)


class HistogramMatching(ModelMixin, ConfigMixin):
    """Give each of R, G and B of the foreground the histogram of the background.

    Histogram specification (Gonzalez, Woods: Digital Image Processing, section 3.3), channel by channel, as
    tables of 256 entries, one for each level of an 8-bit image, with linear interpolation between them.
    """

    origin = Origin(
        title="Histogram specification, Gonzalez and Woods: Digital Image Processing",
        paper="https://www.imageprocessingplace.com",
    )
    working_size = 512
    takes_reference = True

    @register_to_config
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("version", torch.ones(()))

    def forward(self, composite: Tensor, mask: Tensor, reference: Tensor | None = None) -> Tensor:
        """Harmonize; arguments as in `predict_filters`, result `(B, 3, H, W)` in [0, 1]."""
        return self.apply_filters(composite, self.predict_filters(composite, mask, reference), mask)

    def predict_filters(self, composite: Tensor, mask: Tensor, reference: Tensor | None = None) -> Tensor:
        """Return one table a channel.

        Args:
            composite: `(B, 3, H, W)` in [0, 1].
            mask: 1 on the foreground, soft values weigh, `(B, 1, H, W)`.
            reference: Weight of the background pixels to harmonize to, `(B, 1, H, W)`; None: all alike.

        Returns:
            `(B, 768)`: new values of 0, 1/255, ..., 1, for R, then G, then B. The identity where there is no
            foreground or no background.
        """
        identity = np.tile(np.linspace(0, 1, 256), 3)
        return fit_filters(composite, mask, reference, self._fit, identity)

    @staticmethod
    def _fit(foreground: Region, background: Region) -> np.ndarray:
        levels = np.linspace(0, 1, 256)
        channels = zip(foreground.colors.T, background.colors.T, strict=True)
        tables = [
            match_quantiles(values, foreground.weights, target, background.weights, levels)
            for values, target in channels
        ]
        return np.concatenate(tables).clip(0, 1)

    def apply_filters(self, image: Tensor, filters: Tensor, mask: Tensor) -> Tensor:
        """Look every colour up.

        Args:
            image: `(B, 3, H, W)` in [0, 1], any size.
            filters: `(B, 768)` from `predict_filters`.
            mask: `(B, 1, H, W)`, the size of `image`.

        Returns:
            `(B, 3, H, W)` in [0, 1].
        """
        return recolor(image, filters, mask, self._map)

    @staticmethod
    def _map(colors: Tensor, filters: Tensor) -> Tensor:
        return look_up(colors, filters.view(3, -1), colors.new_zeros(3, 1), colors.new_ones(3, 1))


class IDT(ModelMixin, ConfigMixin):
    """Give the foreground the whole colour distribution of the background, by matching along turned axes.

    Iterative distribution transfer: Pitié, Kokaram, Dahyot: N-dimensional probability density function
    transfer and its application to colour transfer, ICCV 2005; Automated colour grading using colour
    distribution transfer, CVIU 2007. Each iteration turns RGB, matches the distribution along each of the
    three axes, and turns back. The rotations are fixed and chosen so that axes keep clear of earlier ones, in
    the spirit of the optimised sequence of the 2007 paper (`spread_rotations`). The regraining that hides
    stretched noise in the papers is left out: it is no map of colours.

    Args:
        iterations: Rotations matched one after the other.
    """

    origin = Origin(
        title="Automated colour grading using colour distribution transfer, CVIU 2007",
        paper="https://doi.org/10.1016/j.cviu.2006.11.011",
    )
    working_size = 256
    takes_reference = True

    @register_to_config
    def __init__(self, iterations: int = 20) -> None:
        super().__init__()
        self.rotations = spread_rotations(iterations)
        self.register_buffer("version", torch.ones(()))

    def forward(self, composite: Tensor, mask: Tensor, reference: Tensor | None = None) -> Tensor:
        """Harmonize; arguments as in `predict_filters`, result `(B, 3, H, W)` in [0, 1]."""
        return self.apply_filters(composite, self.predict_filters(composite, mask, reference), mask)

    def predict_filters(self, composite: Tensor, mask: Tensor, reference: Tensor | None = None) -> Tensor:
        """Return one table for each axis of each iteration.

        Args:
            composite: `(B, 3, H, W)` in [0, 1].
            mask: 1 on the foreground, soft values weigh, `(B, 1, H, W)`.
            reference: Weight of the background pixels to harmonize to, `(B, 1, H, W)`; None: all alike.

        Returns:
            `(B, iterations * 3 * 130)`: for each iteration and axis, where the table begins, where it ends,
            and its 128 entries. The identity where there is no foreground or no background.
        """
        identity = np.tile(np.concatenate(([0.0, 1.0], np.linspace(0, 1, 128))), 3 * len(self.rotations))
        return fit_filters(composite, mask, reference, self._fit, identity)

    def _fit(self, foreground: Region, background: Region) -> np.ndarray:
        colors, filters = foreground.colors, []
        for rotation in self.rotations:
            turned, target = rotation @ colors.T, rotation @ background.colors.T
            for axis in range(3):
                ends = turned[axis].min(), turned[axis].max()
                positions = np.linspace(*ends, 128)
                table = match_quantiles(
                    turned[axis], foreground.weights, target[axis], background.weights, positions
                )
                filters.append(np.concatenate((ends, table)))
                turned[axis] = np.interp(turned[axis], positions, table)
            colors = (rotation.T @ turned).T
        return np.concatenate(filters)

    def apply_filters(self, image: Tensor, filters: Tensor, mask: Tensor) -> Tensor:
        """Turn, look up and turn back, iteration by iteration.

        Args:
            image: `(B, 3, H, W)` in [0, 1], any size.
            filters: As `predict_filters` returns them.
            mask: `(B, 1, H, W)`, the size of `image`.

        Returns:
            `(B, 3, H, W)` in [0, 1].
        """
        return recolor(image, filters, mask, self._map)

    def _map(self, colors: Tensor, filters: Tensor) -> Tensor:
        rotations = torch.from_numpy(self.rotations).to(colors)
        for rotation, tables in zip(rotations, filters.view(len(rotations), 3, -1), strict=True):
            low, high, entries = tables[:, :1], tables[:, 1:2], tables[:, 2:]
            colors = rotation.T @ look_up(rotation @ colors, entries, low, high)
        return colors
