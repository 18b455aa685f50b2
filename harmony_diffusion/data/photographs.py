"""Photographs with a foreground mask. Synthetic composites are made from them.

A folder of photographs contains `index.csv` with the columns `source`, `id`, `split` and any further columns,
which are kept with each photograph. `SOURCE/ID.jpg` is the photograph, `SOURCE/ID.png` its mask, white on the
foreground.
"""

import csv
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harmony_diffusion.data.sample import Problem, report_duplicate
from harmony_diffusion.errors import InputError
from harmony_diffusion.images.sources import Source

REQUIRED = ("source", "id", "split")


@dataclass(frozen=True)
class Photograph:
    """One photograph and the mask of one object in it.

    Attributes:
        name: Name, unique in the data set.
        subset: Source of the photograph. Sampling weights apply per subset.
        picture: File of the photograph.
        mask: File of the mask.
        record: Metadata by column, such as licence, origin, author and label.
        resize_mask: True if the mask may differ in size from the photograph and must be resized.
    """

    name: str
    subset: str
    picture: Source
    mask: Source
    record: Mapping[str, str] = field(default_factory=dict)
    resize_mask: bool = False


def read_photographs(
    root: Path,
    split: str | None = "train",
    filters: Mapping[str, Sequence[str]] | None = None,
    problems: list[Problem] | None = None,
) -> list[Photograph]:
    """List the photographs of a split, in the order of `index.csv`. The files are not opened.

    Args:
        root: Folder that contains `index.csv`.
        split: Value of the column `split`. None selects all.
        filters: Accepted values by column, from `parse_filters`.
        problems: List that collects repeated rows. None logs them. A repeated row is returned once.

    Raises:
        InputError: The index or a column is missing, or no row is left.
    """
    index = root / "index.csv"
    if not index.is_file():
        raise InputError(root, "holds no index.csv")
    filters = dict(filters or {}) | ({"split": [split]} if split else {})
    with index.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        _check_columns(index, [*REQUIRED, *filters], reader.fieldnames or ())
        rows = [row for row in reader if _is_accepted(row, filters)]
    _check_any_left(index, rows, filters)
    photographs: dict[str, Photograph] = {}
    for row in rows:
        name, stem = f"{row['source']}/{row['id']}", root / row["source"] / row["id"]
        if name in photographs:
            report_duplicate(str(index), f"{name} is listed twice", problems)
            continue
        picture, mask = (stem.with_name(f"{stem.name}{suffix}") for suffix in (".jpg", ".png"))
        photographs[name] = Photograph(name, row["source"], picture, mask, row)
    return list(photographs.values())


def filter_photographs(
    photographs: Sequence[Photograph], filters: Mapping[str, Sequence[str]], place: Path
) -> list[Photograph]:
    """Keep the photographs whose record has an accepted value in every column.

    Args:
        photographs: Photographs to filter.
        filters: Accepted values by column, from `parse_filters`.
        place: Path of the data set, for error messages.

    Raises:
        InputError: No record has a column, or no photograph is left.
    """
    if not photographs or not filters:
        return list(photographs)
    _check_columns(place, filters, set().union(*(photograph.record for photograph in photographs)))
    kept = [photograph for photograph in photographs if _is_accepted(photograph.record, filters)]
    _check_any_left(place, kept, filters)
    return kept


def _check_columns(place: Path, wanted: Iterable[str], found: Collection[str]) -> None:
    if missing := [name for name in wanted if name not in found]:
        raise InputError(place, f"has no column {', '.join(missing)}")


def _is_accepted(record: Mapping[str, str], filters: Mapping[str, Sequence[str]]) -> bool:
    return all(record.get(key) in accepted for key, accepted in filters.items())


def _check_any_left(place: Path, kept: Collection[object], filters: Mapping[str, Sequence[str]]) -> None:
    if not kept:
        wanted = " ".join(f"{key}={','.join(accepted)}" for key, accepted in filters.items())
        raise InputError(place, f"has no row with {wanted}")


def parse_filters(texts: Iterable[str]) -> dict[str, list[str]]:
    """Parse filters of the form `column=value` or `column=value,value`.

    Raises:
        InputError: A text does not have this form.

    Example:
        >>> parse_filters(["licence_class=permissive"])
        {'licence_class': ['permissive']}
    """
    filters: dict[str, list[str]] = {}
    for text in texts:
        column, equals, values = text.partition("=")
        if not (column and equals and values):
            raise InputError(text, "is not a filter", "Write COLUMN=VALUE or COLUMN=VALUE,VALUE")
        filters.setdefault(column, []).extend(values.split(","))
    return filters


def subset_weights(
    subsets: Sequence[str], power: float = 0.5, factors: Mapping[str, float] | None = None
) -> list[float]:
    """Compute sampling weights that raise the share of small subsets.

    The share of a subset of n samples is proportional to n**power. With power 1 all samples have the same
    weight; with power 0 all subsets have the same share.

    Args:
        subsets: Subset of each sample.
        power: Exponent in [0, 1].
        factors: Factors that multiply the shares of some subsets.

    Returns:
        One weight per sample, with mean 1.

    Raises:
        InputError: `factors` has a subset that does not exist.
    """
    counts, factors = Counter(subsets), dict(factors or {})
    if unknown := sorted(set(factors) - set(counts)):
        raise InputError(", ".join(unknown), f"is not a subset; subsets are {', '.join(sorted(counts))}")
    weights = [factors.get(subset, 1.0) * counts[subset] ** (power - 1) for subset in subsets]
    mean = sum(weights) / len(weights)
    return [weight / mean for weight in weights]
