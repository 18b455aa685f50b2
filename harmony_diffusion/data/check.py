"""Check of a data set: find unusable files before training starts."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from harmony_diffusion.data.iharmony4 import OtherCount, count_problems
from harmony_diffusion.data.layouts import detect_layout, list_dataset
from harmony_diffusion.data.photographs import Photograph
from harmony_diffusion.data.sample import HarmonySample, Problem
from harmony_diffusion.data.web_shards import list_shards, read_shards
from harmony_diffusion.errors import InputError
from harmony_diffusion.images.arrays import MIN_SIDE
from harmony_diffusion.images.quick_decoding import read_mask, read_picture
from harmony_diffusion.images.sources import Source


@dataclass
class Report:
    """The result of a check.

    Attributes:
        layout: Layout of the data set.
        count: Number of samples checked.
        problems: One entry per fault, with the file.
    """

    layout: str
    count: int = 0
    problems: list[Problem] = field(default_factory=list)

    @property
    def faults(self) -> list[Problem]:
        """The problems, without counts that only differ from the published iHarmony4."""
        return [problem for problem in self.problems if not isinstance(problem, OtherCount)]


def check_dataset(
    path: Path,
    split: str = "train",
    *,
    filters: Mapping[str, Sequence[str]] | None = None,
    shards: Collection[int] | None = None,
) -> Report:
    """Check every sample of a data set and decode every file.

    Args:
        path: Folder or file, of any layout.
        split: Part of the data set. For iHarmony4, `"all"` checks train and test.
        filters: Accepted values by column, for photographs.
        shards: Numbers of the sixteen parts to check, for Open Images.

    Returns:
        The report. Problems are listed in it and raise no exception.

    Raises:
        InputError: The path is not a data set of a known layout.
    """
    report = Report(detect_layout(path))
    for sample in _list(path, split, filters, shards, report.problems):
        report.count += 1
        report.problems += check_sample(sample)
    return report


def check_sample(sample: HarmonySample | Photograph) -> list[Problem]:
    """Decode the files of one sample and return their problems.

    Problems are: a missing or damaged file, a mask or real image whose size differs from its picture, a mask
    without foreground or without background, and a picture with a side below `MIN_SIDE` pixels.
    """
    problems: list[Problem] = []

    def attempt(read: Callable[[Source], np.ndarray], source: Source) -> np.ndarray | None:
        try:
            return read(source)
        except InputError as error:
            problems.append(Problem(error.subject, error.reason))
            return None

    first = sample.picture if isinstance(sample, Photograph) else sample.composite
    picture, mask = attempt(read_picture, first), attempt(read_mask, sample.mask)
    others = [(sample.mask, mask)]
    if isinstance(sample, HarmonySample):
        others.append((sample.real, attempt(read_picture, sample.real)))
    elif sample.resize_mask:
        others = []
    for source, other in others:
        if picture is not None and other is not None and picture.shape[:2] != other.shape[:2]:
            sizes = [f"{array.shape[1]}x{array.shape[0]}" for array in (other, picture)]
            problems.append(Problem(str(source), f"is {sizes[0]}, its picture is {sizes[1]}"))
    if mask is not None and not (mask > 127).any():
        problems.append(Problem(str(sample.mask), "is empty: no pixel is foreground"))
    if mask is not None and not (mask < 128).any():
        problems.append(Problem(str(sample.mask), "covers the whole picture: there is no background"))
    if picture is not None and min(picture.shape[:2]) < MIN_SIDE:
        problems.append(Problem(str(first), f"has a side shorter than {MIN_SIDE} pixels"))
    return problems


def _list(
    path: Path,
    split: str,
    filters: Mapping[str, Sequence[str]] | None,
    shards: Collection[int] | None,
    problems: list[Problem],
) -> Iterator[HarmonySample | Photograph]:
    layout = detect_layout(path)
    if layout == "shards":
        yield from read_shards([path] if path.is_file() else list_shards(path), problems)
        return
    both = layout == "iharmony4" and split == "all"
    for part in ("train", "test") if both else (split,):
        listing = list_dataset(path, part, filters=filters, shards=shards, problems=problems)
        if layout == "iharmony4":
            problems += count_problems(path, part)
        yield from listing.samples or listing.photographs
