"""Scores of diffusion models in four variants, and the sweep over the control scale.

A latent diffusion model changes the background a little when it decodes, and pipelines may or may not paste
the original background back; papers seldom say which was scored. So both are, {raw decode, pasted} x {whole
image, foreground}: `rows.csv` has the two as the protocols `raw` and `pasted`, in each `mse` and `psnr` over
the whole image and `fmse` and `fpsnr` over the foreground.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path

from harmony_diffusion.errors import InputError
from harmony_diffusion.metrics.tables import Group, Tables

RAW, PASTED = "raw", "pasted"
_MOST_SCALES = 1000


@dataclass(frozen=True)
class Distances:
    """What `eval_fid.py` writes beside `rows.csv`, as far as tables show it."""

    fid: float
    kid: float
    images: int


def read_distances(path: str | os.PathLike[str]) -> Distances | None:
    """Read `fid.json`; None where there is no such file.

    Raises:
        InputError: It is there, and not what `eval_fid.py` writes.
    """
    path = Path(path)
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text("utf-8"))
        return Distances(float(content["fid"]), float(content["kid"]), int(content["generated"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(path, f"is not what eval_fid.py writes: {error!r}") from None


def variants_markdown(tables: Tables, distances: Mapping[str, Distances | None] | None = None) -> str:
    """Return the table of the four variants, a line a method, with FID and KID where they are given.

    Args:
        tables: With the protocols `raw` and `pasted`.
        distances: By method.

    Raises:
        InputError: The tables have neither protocol.
    """
    groups = {
        (group.method, group.protocol): group
        for protocol in (RAW, PASTED)
        for group in tables.of(protocol, "all")
    }
    methods = list(dict.fromkeys(method for method, _ in groups))
    if not methods:
        raise InputError("tables", f"have no rows of the protocols {RAW!r} and {PASTED!r}")
    heads = ["method", "images", "FID ↓", "KID x 1000 ↓"]
    for variant in ("raw", "pasted"):
        heads += [
            f"{variant}, {part} {metric}"
            for part in ("whole", "foreground")
            for metric in ("PSNR ↑", "MSE ↓")
        ]
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
    for method in methods:
        counts = {groups[key].count for key in groups if key[0] == method}
        distance = (distances or {}).get(method)
        cells = [method, f"{max(counts):,}"]
        cells += [f"{distance.fid:.2f}", f"{1000 * distance.kid:.2f}"] if distance else ["not run"] * 2
        for variant in (RAW, PASTED):
            group = groups.get((method, variant))
            cells += [_mean(group, metric) for metric in ("psnr", "mse", "fpsnr", "fmse")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _mean(group: Group | None, metric: str) -> str:
    if group is None or metric not in group.scores:
        return "not run"
    return f"{group.scores[metric].mean:.2f}"


def parse_scales(text: str) -> tuple[float, ...]:
    """Read the values of a sweep, `START:STOP:STEP` with both ends or values separated by commas.

    Raises:
        InputError: It is neither, a value is negative, or the step does not lead from start to stop.

    Example:
        >>> parse_scales("0.1:1.0:0.3"), parse_scales("0.5,1")
        ((0.1, 0.4, 0.7, 1.0), (0.5, 1.0))
    """
    try:
        # Decimal, since 0.1 + 0.1 + 0.1 is not 0.3 in binary.
        values = [Decimal(part) for part in text.replace(":", ",").split(",")]
    except InvalidOperation:
        values = []
    if not values or not all(value.is_finite() and value >= 0 for value in values):
        raise InputError("control scale", f"is {text!r}", "Give START:STOP:STEP or values with commas.")
    if ":" not in text:
        return tuple(float(value) for value in values)
    if text.count(":") != 2 or "," in text or values[2] == 0 or values[1] < values[0]:
        raise InputError("control scale", f"is {text!r}", "Give START:STOP:STEP, such as 0.1:1.0:0.1.")
    start, stop, step = values
    count = (stop - start) / step
    if count != int(count) or count >= _MOST_SCALES:
        raise InputError(
            "control scale", f"{text!r} does not step from {start} to {stop}", "Choose another step."
        )
    return tuple(float(start + i * step) for i in range(int(count) + 1))


@dataclass(frozen=True)
class SweepPoint:
    """Scores at one control scale; NaN is "not run"."""

    scale: float
    fid: float
    psnr: float
    mse: float


def sweep_markdown(points: Sequence[SweepPoint]) -> str:
    """Return the sweep in the form of Table 2 of the paper: two halves side by side, the best bold.

    Args:
        points: In the order to print.

    Raises:
        InputError: No point.
    """
    if not points:
        raise InputError("sweep", "has no point")
    best = {
        name: choose([v for p in points if not math.isnan(v := getattr(p, name))], default=math.nan)
        for name, choose in (("fid", min), ("psnr", max), ("mse", min))
    }
    half = (len(points) + 1) // 2
    heads = ["λc", "FID ↓", "PSNR / dB ↑", "MSE ↓"]
    sides = 2 if len(points) > 1 else 1
    lines = ["| " + " | ".join(heads * sides) + " |", "|" + "---:|" * len(heads) * sides]
    for i in range(half):
        row = [points[i], *points[half + i : half + i + 1]]
        cells = [cell for point in row for cell in _sweep_cells(point, best)]
        cells += [""] * (len(heads) * sides - len(cells))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _sweep_cells(point: SweepPoint, best: Mapping[str, float]) -> list[str]:
    cells = [f"{point.scale:g}" if point.scale != int(point.scale) else f"{point.scale:.1f}"]
    for name in ("fid", "psnr", "mse"):
        value = getattr(point, name)
        text = "not run" if math.isnan(value) else f"{value:.2f}"
        # As printed, so that two values that look equal are both bold or neither.
        cells.append(f"**{text}**" if text == f"{best[name]:.2f}" else text)
    return cells
