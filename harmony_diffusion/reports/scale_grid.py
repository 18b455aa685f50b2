"""FID and PSNR for every pair of control scales, as tables and as a heat map (figure 6 of the paper)."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from harmony_diffusion.errors import InputError
from harmony_diffusion.reports.diffusion_tables import read_sweep, scale_name

_CELL, _MARGIN = 64, 56  # pixels
# Attribute of a cell, title, and whether higher is better.
_PANELS = (("fid", "FID", False), ("psnr", "PSNR / dB", True))


@dataclass(frozen=True)
class GridCell:
    """Scores at one pair of control scales. NaN means "not run"."""

    high: float
    low: float
    fid: float
    psnr: float


def cell_name(high: float, low: float) -> str:
    """Return the folder name of a pair of scales.

    Example:
        >>> cell_name(0.5, 1)
        '0.5_1.0'
    """
    return f"{scale_name(high)}_{scale_name(low)}"


def read_grid(folder: Path, scales: Sequence[float]) -> list[GridCell]:
    """Read the scores of a grid, row by row: all scales for colours, for each scale for edges.

    Args:
        folder: Folder with `HIGH_LOW/rows.csv` and, for FID, `HIGH_LOW/fid_raw.json`.
        scales: Scales of either ControlNet.

    Raises:
        InputError: A file is missing or unusable.
    """
    cells = []
    for high in scales:
        points = read_sweep(folder / f"{scale_name(high)}_{{}}" / "rows.csv", scales)
        cells += [GridCell(high, point.scale, point.fid, point.psnr) for point in points]
    return cells


def grid_markdown(cells: Sequence[GridCell]) -> str:
    """Format a table of FID and one of PSNR, scales for edges by rows, the best value in bold.

    Raises:
        InputError: There is no cell, or a pair of scales is missing.
    """
    highs, lows = _scales(cells)
    lines = []
    for name, title, higher_is_better in _PANELS:
        values = _matrix(cells, name)
        known = values[~np.isnan(values)]
        best = (known.max() if higher_is_better else known.min()) if len(known) else math.nan
        lines += [f"## {title} {'↑' if higher_is_better else '↓'}", ""]
        lines += [f"| λh, down; λl, across | {' | '.join(map(scale_name, lows))} |"]
        lines += ["|---|" + "---:|" * len(lows)]
        for high, row in zip(highs, values, strict=True):
            texts = ["not run" if math.isnan(value) else f"{value:.2f}" for value in row]
            shown = [f"**{text}**" if text == f"{best:.2f}" else text for text in texts]
            lines.append(f"| {scale_name(high)} | {' | '.join(shown)} |")
        lines.append("")
    return "\n".join(lines)


def grid_csv(cells: Sequence[GridCell]) -> str:
    """Return CSV with one line per pair of scales; FID is empty if it was not run."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("high_scale", "low_scale", "fid", "psnr"))
    for cell in cells:
        scores = ("" if math.isnan(value) else f"{value:.6f}" for value in (cell.fid, cell.psnr))
        writer.writerow((scale_name(cell.high), scale_name(cell.low), *scores))
    return buffer.getvalue()


def draw_grid(cells: Sequence[GridCell]) -> Image.Image:
    """Draw the heat map: a panel for each metric that was run, brighter cells are better.

    Raises:
        InputError: There is no cell, or a pair of scales is missing.
    """
    _scales(cells)
    panels = [panel for panel in _PANELS if not np.isnan(_matrix(cells, panel[0])).all()]
    return Image.fromarray(np.hstack([_draw_panel(cells, *panel) for panel in panels]))


def _draw_panel(cells: Sequence[GridCell], name: str, title: str, higher_is_better: bool) -> np.ndarray:
    highs, lows = _scales(cells)
    values = _matrix(cells, name)
    low, high = np.nanmin(values), np.nanmax(values)
    share = (values - low) / (high - low) if high > low else np.ones_like(values)
    share = np.nan_to_num(share if higher_is_better else 1 - share)
    colors = cv2.applyColorMap((255 * share).round().astype(np.uint8), cv2.COLORMAP_VIRIDIS)[..., ::-1]
    large = colors.repeat(_CELL, 0).repeat(_CELL, 1)
    canvas = np.full((large.shape[0] + 2 * _MARGIN, large.shape[1] + 2 * _MARGIN, 3), 255, np.uint8)
    canvas[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN] = large
    _write(canvas, f"{title} (edges down, colours across)", (_MARGIN, _MARGIN - 24))
    for column, scale in enumerate(lows):
        _write(canvas, scale_name(scale), (_MARGIN + column * _CELL + 18, _MARGIN - 6))
    for row, scale in enumerate(highs):
        top = _MARGIN + row * _CELL + 37
        _write(canvas, scale_name(scale), (_MARGIN - 36, top))
        for column, value in enumerate(values[row]):
            text = "-" if math.isnan(value) else f"{value:.1f}" if value >= 100 else f"{value:.2f}"
            # Dark text on bright cells.
            ink = 0 if share[row, column] > 0.6 else 255
            _write(canvas, text, (_MARGIN + column * _CELL + 8, top), ink)
    return canvas


def _write(canvas: np.ndarray, text: str, place: tuple[int, int], ink: int = 0) -> None:
    cv2.putText(canvas, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.42, (ink,) * 3, 1, cv2.LINE_AA)


def _scales(cells: Sequence[GridCell]) -> tuple[list[float], list[float]]:
    highs, lows = (sorted({getattr(cell, name) for cell in cells}) for name in ("high", "low"))
    pairs = {(cell.high, cell.low) for cell in cells}
    if not cells or len(cells) != len(pairs) or len(pairs) != len(highs) * len(lows):
        raise InputError("cells", f"must be one for each pair of scales, got {len(cells)}")
    return highs, lows


def _matrix(cells: Sequence[GridCell], name: str) -> np.ndarray:
    """Return the values of a score, `(scales for edges, scales for colours)`."""
    highs, lows = _scales(cells)
    values = np.full((len(highs), len(lows)), math.nan)
    for cell in cells:
        values[highs.index(cell.high), lows.index(cell.low)] = getattr(cell, name)
    return values
