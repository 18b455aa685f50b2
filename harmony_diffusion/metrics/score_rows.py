"""Scores of one method, one row per image and protocol, read from a file for tables and reports."""

import csv
import gzip
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from harmony_diffusion.errors import InputError

# In the order of the tables.
METRICS = ("psnr", "fab", "mse", "fmse", "fpsnr", "ssim", "fssim", "bmse", "lpips", "edges")
HIGHER_IS_BETTER = frozenset({"psnr", "fpsnr", "ssim", "fssim", "edges"})


@dataclass(frozen=True)
class Row:
    """The scores of one image under one protocol.

    Attributes:
        name: Name of the composite.
        subset: Subset of the data set.
        foreground_ratio: Foreground share of the image, in [0, 1]; NaN if the file does not give it.
        protocol: Name of the protocol; empty if the file names none.
        scores: Value by metric. A metric that is undefined for the image (empty foreground) is left out.
    """

    name: str
    subset: str
    foreground_ratio: float
    protocol: str
    scores: Mapping[str, float]

    @property
    def image(self) -> tuple[str, str]:
        """Identifier of the image in its data set."""
        return self.subset, self.name

    @property
    def photograph(self) -> str:
        """Photograph or clip from which the composite was made.

        A composite `X_m_k`, as in iHarmony4, belongs to the photograph `X`, and `CLIP@FRAMES_m_k` to the clip
        (`eval/make_frame_composites.py`). Any other name is its own photograph.

        Example:
            >>> Row("a0008_1_2", "HAdobe5k", 0.3, "", {}).photograph
            'a0008'
            >>> Row("camel@00000-00020_1_1", "HLight", 0.3, "", {}).photograph
            'camel'
        """
        parts = self.name.rsplit("_", 2)
        return parts[0].rsplit("@", 1)[0] if len(parts) == 3 else f"{self.subset}/{self.name}"


def read_rows(path: str | os.PathLike[str]) -> list[Row]:
    """Read the scores of one method.

    Files of other tools are accepted. Unknown columns are ignored. If `height`, `width` and `foreground_area`
    are given, `foreground_ratio` is computed from them. An empty or `nan` cell means that the image does not
    have the metric.

    Args:
        path: `rows.csv`, optionally compressed with gzip (suffix `.gz`).

    Returns:
        The rows in the order of the file.

    Raises:
        InputError: The file does not exist or is not a table of scores, a value is not a finite number, or an
            image occurs twice under one protocol.
    """
    path = Path(path)
    try:
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
            return list(_parsed(csv.DictReader(file), path))
    except (OSError, EOFError) as error:
        raise InputError(path, f"cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(path, f"is not a table of comma-separated values: {error}") from None


def _parsed(reader: "csv.DictReader[str]", path: Path) -> Iterator[Row]:
    columns = reader.fieldnames or ()
    if "name" not in columns or not set(METRICS) & set(columns):
        raise InputError(
            path, f"has the columns {', '.join(columns) or 'none'}", "Expected name, subset, mse, psnr, …"
        )
    seen: set[tuple[str, tuple[str, str]]] = set()
    for cells in reader:
        place = f"{path}:{reader.line_num}"
        if None in cells or None in cells.values():
            raise InputError(place, f"does not have the {len(columns)} cells of the header line")
        scores = {metric: _number(cells.get(metric), metric, place) for metric in METRICS}
        row = Row(
            cells["name"],
            cells.get("subset") or "",
            _ratio(cells, place),
            cells.get("protocol") or "",
            {metric: value for metric, value in scores.items() if not math.isnan(value)},
        )
        if (row.protocol, row.image) in seen:
            raise InputError(place, f"{row.name} is there twice", "List each image once per protocol.")
        seen.add((row.protocol, row.image))
        yield row


def _number(cell: str | None, column: str, place: str) -> float:
    """Parse a cell; a missing or empty cell gives NaN."""
    try:
        value = float(cell) if cell else math.nan
    except ValueError:
        raise InputError(place, f"{column} is {cell!r}, expected a number") from None
    if math.isinf(value):
        raise InputError(place, f"{column} is infinite", "Cap it (PSNR of identical images: 100 dB).")
    return value


def _ratio(cells: Mapping[str, str], place: str) -> float:
    """Return the foreground ratio, from areas if given, because published ratios are rounded."""
    area, *sides = (_number(cells.get(key), key, place) for key in ("foreground_area", "height", "width"))
    value = area / math.prod(sides) if all(side > 0 for side in sides) else math.nan
    if math.isnan(value):
        value = _number(cells.get("foreground_ratio"), "foreground_ratio", place)
    if not math.isnan(value) and not 0 <= value <= 1:
        raise InputError(place, f"foreground_ratio is {value:g}, outside 0 to 1")
    return value


def protocols_of(rows: Iterable[Row]) -> list[str]:
    """Return the names of the protocols in order of first occurrence."""
    return list(dict.fromkeys(row.protocol for row in rows))
