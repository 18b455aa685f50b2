"""Scatter plots as SVG without scripts. Colours and fonts come from the style sheet of the page."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

_WIDTH, _HEIGHT = 520, 440
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 22, 14, 48


@dataclass(frozen=True)
class Axis:
    """One axis of a plot.

    Attributes:
        label: Quantity and unit.
        low: Lower end.
        high: Upper end.
        ticks: Values with a tick mark.
        logarithmic: True for a logarithmic scale.
        percent: True if tick labels are printed in per cent.
    """

    label: str
    low: float
    high: float
    ticks: tuple[float, ...]
    logarithmic: bool = False
    percent: bool = False

    def place(self, values: np.ndarray | float) -> np.ndarray:
        """Return positions of values on the axis, 0 at the lower and 1 at the upper end."""
        low, high, at = self.low, self.high, np.asarray(values, np.float64)
        if self.logarithmic:
            # Values below the lower end are placed at the lower end.
            low, high, at = math.log(low), math.log(high), np.log(np.maximum(at, low))
        return (at - low) / (high - low)


def linear_axis(label: str, values: np.ndarray) -> Axis:
    """Return an axis with round tick values that covers all values.

    Example:
        >>> linear_axis("PSNR", np.array([21.0, 38.5])).ticks
        (20.0, 25.0, 30.0, 35.0, 40.0)
    """
    low, high = float(values.min()), float(values.max())
    span = max(high - low, 1e-9 * max(abs(high), 1.0), 1e-6)
    rough = span / 8
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    last += first == last
    ticks = tuple(round(i * step, 10) for i in range(first, last + 1))
    return Axis(label, ticks[0], ticks[-1], ticks)


def ratio_axis(label: str, values: np.ndarray) -> Axis:
    """Return a logarithmic axis for shares in (0, 1]."""
    candidates = (0.0001, 0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
    low = max([tick for tick in candidates if tick <= values.min()], default=candidates[0])
    return Axis(label, low, 1.0, tuple(t for t in candidates if t >= low), True, True)


def scatter_svg(
    points: Mapping[str, tuple[np.ndarray, np.ndarray]],
    x_axis: Axis,
    y_axis: Axis,
    *,
    title: str,
    reference: Sequence[tuple[float, float]] = (),
    rings: Sequence[tuple[float, float, str]] = (),
) -> str:
    """Draw points by group, a reference line, and rings around points that the page shows in detail.

    Args:
        points: x and y of each group, `(N,)` each. Groups have the classes `p0`, `p1`, ….
        x_axis: Horizontal axis.
        y_axis: Vertical axis.
        title: Text description of the plot, for screen readers.
        reference: Points of the line that separates gain from loss.
        rings: x, y and tooltip of each ring.

    Returns:
        An `<svg>` element.
    """
    lines = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">',
        f"<title>{escape(title)}</title>",
    ]
    for tick in x_axis.ticks:
        at, mark = _x(x_axis, tick), _mark(tick, x_axis)
        lines.append(f'<path class="grid" d="M{at:.1f} {_TOP}V{_HEIGHT - _BOTTOM}"/>')
        lines.append(f'<text class="tick" x="{at:.1f}" y="{_HEIGHT - _BOTTOM + 18}">{mark}</text>')
    for tick in y_axis.ticks:
        at, mark = _y(y_axis, tick), _mark(tick, y_axis)
        lines.append(f'<path class="grid" d="M{_LEFT} {at:.1f}H{_WIDTH - _RIGHT}"/>')
        lines.append(f'<text class="tick end" x="{_LEFT - 8}" y="{at + 4:.1f}">{mark}</text>')
    if reference:
        path = "L".join(f"{_x(x_axis, x):.1f} {_y(y_axis, y):.1f}" for x, y in reference)
        lines.append(f'<path class="reference" d="M{path}"/>')
    count = sum(len(xs) for xs, _ in points.values())
    dot = min(7.0, max(2.4, 5 * (300 / max(count, 1)) ** 0.22))  # many points are drawn small
    for index, (xs, ys) in enumerate(points.values()):
        centers = zip(_x(x_axis, xs), _y(y_axis, ys), strict=True)
        path = "".join(f"M{a:.1f} {b:.1f}h0" for a, b in centers)
        lines.append(f'<path class="points p{index}" stroke-width="{dot:.1f}" d="{path}"/>')
    for x, y, text in rings:
        center = f'cx="{_x(x_axis, x):.1f}" cy="{_y(y_axis, y):.1f}"'
        lines.append(f'<circle class="ring" {center} r="7"><title>{escape(text)}</title></circle>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    lines.append(f'<text class="axis" x="{middle:.0f}" y="{_HEIGHT - 6}">{escape(x_axis.label)}</text>')
    turn = f'transform="translate(13 {(_TOP + _HEIGHT - _BOTTOM) / 2:.0f}) rotate(-90)"'
    lines.append(f'<text class="axis" {turn}>{escape(y_axis.label)}</text></svg>')
    return "\n".join(lines)


def _x(axis: Axis, values: np.ndarray | float) -> np.ndarray:
    return _LEFT + axis.place(values) * (_WIDTH - _LEFT - _RIGHT)


def _y(axis: Axis, values: np.ndarray | float) -> np.ndarray:
    return _HEIGHT - _BOTTOM - axis.place(values) * (_HEIGHT - _TOP - _BOTTOM)


def _mark(tick: float, axis: Axis) -> str:
    return f"{100 * tick:g} %" if axis.percent else f"{tick:g}".replace("-", "−")
