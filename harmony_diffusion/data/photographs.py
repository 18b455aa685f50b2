"""Photographs with a foreground mask: the raw material of synthetic composites.

A folder of photographs holds `index.csv` (columns `source`, `id`, `split`, and any others, kept with each
photograph) and the files `SOURCE/ID.jpg` with `SOURCE/ID.png`, white on the foreground.
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
        name: Unique in the data set.
        subset: Where it comes from; the sampling is weighted by it.
        picture: File of the photograph.
        mask: File of the mask.
        record: What the data set says of it (licence, origin, author, label, …), column by column.
        resize_mask: The data set distributes masks at another size than the photographs.
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
    """List the photographs of a split, in the order of `index.csv`; the files are not opened.

    Args:
        root: Folder that holds `index.csv`.
        split: Value of the column `split`, None for all.
        filters: Accepted values by column, as `parse_filters` makes them.
        problems: Where rows that are there twice are appended; None to log them. They are taken once.

    Raises:
        InputError: No index, a column that is missing, or nothing left.
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
        photographs: What to choose from.
        filters: Accepted values by column, as `parse_filters` makes them.
        place: Data set, for the errors.

    Raises:
        InputError: A column that no record has, or nothing left of what there was.
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
    """Read filters of the form `column=value` or `column=value,value`.

    Raises:
        InputError: Another form.

    Example:
        >>> parse_filters(["licence_class=permissive"])
        {'licence_class': ['permissive']}
    """
    filters: dict[str, list[str]] = {}
    for text in texts:
        column, equals, values = text.partition("=")
        if not (column and equals and values):
            raise InputError(text, "is no filter", "Write COLUMN=VALUE or COLUMN=VALUE,VALUE")
        filters.setdefault(column, []).extend(values.split(","))
    return filters


def subset_weights(
    subsets: Sequence[str], power: float = 0.5, factors: Mapping[str, float] | None = None
) -> list[float]:
    """Weigh samples so that large subsets do not drown small ones.

    A subset of n samples gets a share in proportion to n to a power: 1 leaves all samples alike, 0 gives
    every subset the same share.

    Args:
        subsets: Subset of each sample.
        power: Between 0 and 1.
        factors: Factors of the shares of some subsets.

    Returns:
        One weight a sample, of mean 1.

    Raises:
        InputError: A factor for a subset that is not there.
    """
    counts, factors = Counter(subsets), dict(factors or {})
    if unknown := sorted(set(factors) - set(counts)):
        raise InputError(", ".join(unknown), f"is no subset; there are {', '.join(sorted(counts))}")
    weights = [factors.get(subset, 1.0) * counts[subset] ** (power - 1) for subset in subsets]
    mean = sum(weights) / len(weights)
    return [weight / mean for weight in weights]
