"""Tables of Open Images (masks, boxes, images, classes) and the addresses where they are published.

https://storage.googleapis.com/openimages/web/download_v7.html describes the columns.
"""

import csv
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from harmony_diffusion.errors import InputError

MASK_COLUMNS = ("MaskPath", "ImageID", "LabelName", "BoxID", "BoxXMin", "BoxXMax", "BoxYMin", "BoxYMax")
LICENCE_COLUMNS = ("License", "Author", "AuthorProfileURL", "Title", "OriginalLandingURL")
# Columns that mark a box as not containing a single real object seen from outside.
FLAGS = ("IsGroupOf", "IsDepiction", "IsInside")
CLASSES = "class-descriptions-boxable.csv"
PHOTOGRAPHS_URL = "https://open-images-dataset.s3.amazonaws.com"
_URL = "https://storage.googleapis.com/openimages"
# Tolerance for matching a box in two tables, which round coordinates differently.
_SAME_BOX = 1e-4


def published_urls(split: str, shards: Collection[int]) -> dict[str, str]:
    """Return the addresses of the tables and mask archives of a split, by file name.

    Args:
        split: `"train"`, `"validation"` or `"test"`.
        shards: Numbers of the mask archives, from 0 to 15.
    """
    images = f"{split}-images{'-boxable' if split == 'train' else ''}-with-rotation.csv"
    boxes, folder = boxes_tables(split)[0], "v6" if split == "train" else "v5"
    archives = [f"{split}-masks-{shard:x}.zip" for shard in sorted(shards)]
    masks = f"{split}-annotations-object-segmentation.csv"
    return {
        masks: f"{_URL}/v5/{masks}",
        images: f"{_URL}/2018_04/{split}/{images}",
        boxes: f"{_URL}/{folder}/{boxes}",
        CLASSES: f"{_URL}/v5/{CLASSES}",
        **{name: f"{_URL}/v5/{split}-masks/{name}" for name in archives},
    }


def masks_table(root: Path, split: str) -> Path:
    """Return the path of the table of masks of a split.

    Raises:
        InputError: The table is missing.
    """
    table = root / f"{split}-annotations-object-segmentation.csv"
    if not table.is_file():
        raise InputError(root, f"holds no {table.name}")
    return table


def boxes_tables(split: str) -> list[str]:
    """Return the file names that the table of boxes of a split may have, the latest first."""
    names = [f"{split}-annotations-bbox.csv"]
    return [f"oidv6-{names[0]}", *names] if split == "train" else names


def read_table(table: Path, columns: Collection[str]) -> Iterator[dict[str, str]]:
    """Yield the rows of a table.

    Raises:
        InputError: One of `columns` is missing.
    """
    with table.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        if missing := [name for name in columns if name not in (reader.fieldnames or ())]:
            raise InputError(table, f"has no column {', '.join(missing)}")
        yield from reader


def read_image_records(root: Path, split: str, images: Collection[str]) -> dict[str, dict[str, str]]:
    """Read licence and rotation of images from all tables of images in the folder."""
    records: dict[str, dict[str, str]] = {}
    for table in sorted(root.glob(f"{split}-images*-with-rotation.csv")):
        for row in read_table(table, ("ImageID", "License")):
            if row["ImageID"] in images:
                wanted = {name: row.get(name) or "" for name in (*LICENCE_COLUMNS, "Rotation")}
                records[row["ImageID"]] = wanted
    return records


class Box(NamedTuple):
    """Box of an object, in shares of the width and height of the image."""

    left: float
    right: float
    top: float
    bottom: float

    @property
    def area(self) -> float:
        """Area as a share of the image."""
        return (self.right - self.left) * (self.bottom - self.top)


class FlaggedBoxes:
    """Boxes that the table of boxes marks as not containing a single real object.

    Args:
        root: Folder of the data set.
        split: `"train"`, `"validation"` or `"test"`.
        images: Names of the images to read.
        flags: Columns of the table. A box with 1 in any of them is flagged.

    Raises:
        InputError: The table of boxes or a column in it is missing.
    """

    def __init__(self, root: Path, split: str, images: Collection[str], flags: Collection[str]) -> None:
        self._boxes: dict[tuple[str, str], list[tuple[Box, str]]] = {}
        if not flags:
            return
        columns = ("ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax", *flags)
        table = next((root / name for name in boxes_tables(split) if (root / name).is_file()), None)
        if table is None:
            raise InputError(root, f"holds no {' or '.join(boxes_tables(split))}")
        with table.open(encoding="utf-8-sig", newline="") as file:
            # The training table has fourteen million rows; one dictionary per row would be slow.
            reader = csv.reader(file)
            places = _places(table, next(reader, []), columns)
            for row in reader:
                image, label, *rest = (row[place] for place in places)
                if "1" in rest[4:] and image in images:
                    flag = next(name for name, value in zip(flags, rest[4:], strict=True) if value == "1")
                    box = Box(*map(float, rest[:4]))
                    self._boxes.setdefault((image, label), []).append((box, flag))

    def find(self, image: str, label: str, box: Box) -> str:
        """Return the flag of a box, or an empty string if it has none."""
        for other, flag in self._boxes.get((image, label), ()):
            if all(abs(a - b) <= _SAME_BOX for a, b in zip(box, other, strict=True)):
                return flag
        return ""


def _places(table: Path, header: list[str], columns: Collection[str]) -> list[int]:
    if missing := [name for name in columns if name not in header]:
        raise InputError(table, f"has no column {', '.join(missing)}")
    return [header.index(name) for name in columns]


def box_of(row: dict[str, str]) -> Box:
    """Return the box of a mask from its row in the table of masks."""
    return Box(*(float(row[name]) for name in ("BoxXMin", "BoxXMax", "BoxYMin", "BoxYMax")))


def read_class_names(root: Path) -> dict[str, str]:
    """Read class names, for example `{"/m/01yrx": "Cat"}`; empty without `class-descriptions-boxable.csv`."""
    table = root / CLASSES
    if not table.is_file():
        return {}
    with table.open(encoding="utf-8-sig", newline="") as file:
        return {row[0]: row[1] for row in csv.reader(file) if len(row) > 1}
