"""The scores of one method, one row an image and protocol, as tables and reports take them from a file."""

import csv
import gzip
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from harmony_diffusion.errors import InputError

# In the order of the tables.
METRICS = ("psnr", "mse", "fmse", "fpsnr", "ssim", "fssim", "bmse", "lpips")
HIGHER_IS_BETTER = frozenset({"psnr", "fpsnr", "ssim", "fssim"})


@dataclass(frozen=True)
class Row:
    """The scores of one image under one protocol.

    Attributes:
        name: Name of the composite.
        subset: Part of the data set it belongs to.
        foreground_ratio: Share of the picture that is foreground, in [0, 1]; NaN where it is not given.
        protocol: Name of the protocol, empty where the file names none.
        scores: Value by metric; a metric that is not defined for the image (empty foreground) is left out.
    """

    name: str
    subset: str
    foreground_ratio: float
    protocol: str
    scores: Mapping[str, float]

    @property
    def image(self) -> tuple[str, str]:
        """What identifies the image among those of its data set."""
        return self.subset, self.name

    @property
    def photograph(self) -> str:
        """The photograph that the composite was made of.

        Composites named `X_m_k`, as in iHarmony4, are of the photograph `X`; any other is one of its own.

        Example:
            >>> Row("a0008_1_2", "HAdobe5k", 0.3, "", {}).photograph
            'a0008'
        """
        parts = self.name.rsplit("_", 2)
        return parts[0] if len(parts) == 3 else f"{self.subset}/{self.name}"


def read_rows(path: str | os.PathLike[str]) -> list[Row]:
    """Read the scores of one method.

    Files of other origin are read, too: columns that are not known are passed over; where `height`, `width`
    and `foreground_area` are given, the ratio is computed from them; cells that are empty or `nan` are
    metrics that the image has not.

    Args:
        path: `rows.csv`, which may be compressed with gzip (suffix `.gz`).

    Returns:
        The rows in the file's order.

    Raises:
        InputError: There is no such file, it is no table of scores, a value is no finite number, or an image
            is there twice under one protocol.
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
            raise InputError(place, f"does not have the {len(columns)} cells of the header")
        scores = {metric: _number(cells.get(metric), metric, place) for metric in METRICS}
        row = Row(
            cells["name"],
            cells.get("subset") or "",
            _ratio(cells, place),
            cells.get("protocol") or "",
            {metric: value for metric, value in scores.items() if not math.isnan(value)},
        )
        if (row.protocol, row.image) in seen:
            raise InputError(place, f"{row.name} is there twice", "Each image counts once a protocol.")
        seen.add((row.protocol, row.image))
        yield row


def _number(cell: str | None, column: str, place: str) -> float:
    """Return NaN for what is not given."""
    try:
        value = float(cell) if cell else math.nan
    except ValueError:
        raise InputError(place, f"{column} is {cell!r}, which is no number") from None
    if math.isinf(value):
        raise InputError(place, f"{column} is infinite", "Cap it (PSNR of identical images: 100 dB).")
    return value


def _ratio(cells: Mapping[str, str], place: str) -> float:
    """Return the foreground's share; from areas where there are any, since published ratios are rounded."""
    area, *sides = (_number(cells.get(key), key, place) for key in ("foreground_area", "height", "width"))
    value = area / math.prod(sides) if all(side > 0 for side in sides) else math.nan
    if math.isnan(value):
        value = _number(cells.get("foreground_ratio"), "foreground_ratio", place)
    if not math.isnan(value) and not 0 <= value <= 1:
        raise InputError(place, f"foreground_ratio is {value:g}, outside 0 to 1")
    return value


def protocols_of(rows: Iterable[Row]) -> list[str]:
    """Return the names of the protocols in the order in which they come up."""
    return list(dict.fromkeys(row.protocol for row in rows))
