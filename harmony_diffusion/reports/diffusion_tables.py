"""Scores of diffusion models in four variants, and the sweep over the control scale.

Decoding in a latent diffusion model slightly changes the background. Some pipelines paste the original
background back, and papers seldom state which result they scored. This module therefore reports both: {raw
decode, pasted} x {whole image, foreground}. In `rows.csv` they are the protocols `raw` and `pasted`, each
with `mse` and `psnr` over the whole image and `fmse` and `fpsnr` over the foreground. The mean colour error
`fab` and the agreement of edges concern the foreground only, so both lines of a protocol show the same value.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path

from harmony_diffusion.errors import InputError
from harmony_diffusion.metrics.score_rows import read_rows
from harmony_diffusion.reports.tables import Tables, make_tables

RAW, PASTED, LEGACY = "raw", "pasted", "legacy_uint8"
# Columns that tables have if the rows do: metric, head, decimals.
_MORE = (("fab", "fΔab ↓", 2), ("edges", "edges ↑", 3))
_WHOLE, _FOREGROUND = ("psnr", "mse"), ("fpsnr", "fmse")
# Variant, protocol of its rows, metrics, label in the table.
_VARIANTS = (
    ("raw", RAW, _WHOLE, "raw, whole"),
    ("raw_foreground", RAW, _FOREGROUND, "raw, foreground"),
    ("pasted", PASTED, _WHOLE, "pasted, whole"),
    ("pasted_foreground", PASTED, _FOREGROUND, "pasted, foreground"),
    ("legacy_uint8", LEGACY, _WHOLE, "raw, whole, wrapped 8-bit arithmetic"),
)
_MOST_SCALES = 1000


@dataclass(frozen=True)
class Distances:
    """The results of `eval_fid.py` that the tables show."""

    fid: float
    kid: float
    images: int


def read_distances(rows: str | os.PathLike[str]) -> dict[str, Distances]:
    """Read the results of `eval_fid.py` from the folder of the rows of a method.

    Args:
        rows: `rows.csv`. Its folder may contain `fid_raw.json`, `fid_pasted.json`, `fid_raw_foreground.json`
            and `fid_pasted_foreground.json`.

    Returns:
        Distances by variant, for the files that exist.

    Raises:
        InputError: A file was not written by `eval_fid.py`.
    """
    found = {}
    for variant, *_ in _VARIANTS:
        path = Path(rows).with_name(f"fid_{variant}.json")
        if path.exists():
            try:
                content = json.loads(path.read_text("utf-8"))
                found[variant] = Distances(
                    float(content["fid"]), float(content["kid"]), int(content["generated"])
                )
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise InputError(path, f"is not a result of eval_fid.py: {error!r}") from None
    return found


def variants_markdown(
    tables: Tables,
    distances: Mapping[str, Mapping[str, Distances]] | None = None,
    absent: Mapping[str, str] | None = None,
) -> str:
    """Format the scores of every variant as Markdown, one line per variant, with FID and KID if given.

    Args:
        tables: Tables with the protocols `raw`, `pasted` and optionally `legacy_uint8`.
        distances: Distances by method and variant, from `read_distances`.
        absent: Methods that were not run, with the command that scores each.

    Raises:
        InputError: The tables have none of these protocols.
    """
    groups = {(group.method, group.protocol): group for group in tables.groups if group.kind == "all"}
    more = [column for column in _MORE if any(column[0] in group.scores for group in groups.values())]
    heads = ["method", "variant", "images", "FID ↓", "KID x 1000 ↓", "PSNR ↑", "MSE ↓"]
    heads += [head for _, head, _ in more]
    lines = ["| " + " | ".join(heads) + " |", "|---|---|" + "---:|" * (len(heads) - 2)]
    for method in dict.fromkeys(method for method, _ in groups):
        for variant, protocol, metrics, label in _VARIANTS:
            if (group := groups.get((method, protocol))) is None:
                continue
            distance = (distances or {}).get(method, {}).get(variant)
            cells = [method, label, f"{group.count:,}"]
            cells += [f"{distance.fid:.2f}", f"{1000 * distance.kid:.2f}"] if distance else ["not run"] * 2
            scores = [group.scores.get(metric) for metric in metrics]
            cells += ["not run" if score is None else f"{score.mean:.2f}" for score in scores]
            if protocol == LEGACY:
                cells += ["–"] * len(more)
            else:
                found = [(group.scores.get(metric), digits) for metric, _, digits in more]
                cells += [f"{score.mean:.{digits}f}" if score else "not run" for score, digits in found]
            lines.append("| " + " | ".join(cells) + " |")
    if len(lines) == 2:
        raise InputError("tables", f"have no rows of the protocols {RAW}, {PASTED}, {LEGACY}")
    absent = absent or {}
    lines += [f"| {method} | all |" + " not run |" * (len(heads) - 2) for method in absent]
    lines += [line for method, command in absent.items() for line in ("", f"{method}: not run. `{command}`")]
    return "\n".join(lines) + "\n"


def parse_scales(text: str) -> tuple[float, ...]:
    """Parse the values of a sweep: `START:STOP:STEP` including both ends, or comma-separated values.

    Raises:
        InputError: The text has another form, a value is negative, or the steps from START do not reach STOP.

    Example:
        >>> parse_scales("0.1:1.0:0.3"), parse_scales("0.5,1")
        ((0.1, 0.4, 0.7, 1.0), (0.5, 1.0))
    """
    try:
        # Decimal arithmetic, because 0.1 + 0.1 + 0.1 is not 0.3 in binary.
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
    """Scores at one control scale. NaN means "not run"."""

    scale: float
    fid: float
    psnr: float
    mse: float


def scale_name(scale: float) -> str:
    """Return the folder name of a scale in a sweep, for example "0.35" or "1.0"."""
    return f"{scale:g}" if scale % 1 else f"{scale:.1f}"


def read_sweep(
    rows: str | os.PathLike[str], scales: Sequence[float], protocol: str | None = None
) -> list[SweepPoint]:
    """Read the scores of a sweep.

    Args:
        rows: Path of `rows.csv` with {} in place of the scale (`scale_name`). FID is read from the same
            folder.
        scales: Control scales, in the order of the table.
        protocol: Protocol of the rows. None selects `raw` if it exists, else the first protocol.

    Raises:
        InputError: A file is missing or unusable, or does not have the protocol.
    """
    points = []
    for scale in scales:
        path = Path(os.fspath(rows).replace("{}", scale_name(scale)))
        totals = make_tables({"": read_rows(path)}, resamples=0)
        own = protocol or (RAW if RAW in totals.protocols else totals.protocols[0])
        if own not in totals.protocols:
            raise InputError(path, f"has no row of the protocol {own}")
        distance = read_distances(path).get(own)
        scores = totals.of(own, "all")[0].scores
        psnr, mse = (scores[metric].mean if metric in scores else math.nan for metric in ("psnr", "mse"))
        points.append(SweepPoint(scale, distance.fid if distance else math.nan, psnr, mse))
    return points


def sweep_markdown(points: Sequence[SweepPoint]) -> str:
    """Format a sweep like Table 2 of the paper: two halves side by side, best values in bold.

    Args:
        points: Points in the order of the table.

    Raises:
        InputError: There is no point.
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
    cells = [scale_name(point.scale)]
    for name in ("fid", "psnr", "mse"):
        value = getattr(point, name)
        text = "not run" if math.isnan(value) else f"{value:.2f}"
        # Compare printed values, so that equal-looking values are both bold or both not.
        cells.append(f"**{text}**" if text == f"{best[name]:.2f}" else text)
    return cells
