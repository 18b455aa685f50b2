"""Tables from per-image rows: all images, by subset, by foreground ratio, and comparisons of two methods.

Every number is the mean over the images of its group; "all" is never a mean of subset means. Sums are exact,
so means do not depend on the order of the rows.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from harmony_diffusion.errors import InputError
from harmony_diffusion.metrics.bootstrap import Interval, PairedTest, bootstrap_intervals, paired_test
from harmony_diffusion.metrics.score_rows import METRICS, Row, protocols_of

# The lower bound is excluded, the upper bound included. The first bin also contains 0.
RATIO_BINS = {"0-5": (0.0, 0.05), "5-15": (0.05, 0.15), "15-100": (0.15, 1.0)}
_SUBSET_ORDER = ("HCOCO", "HAdobe5k", "HFlickr", "Hday2night")


@dataclass(frozen=True)
class Score:
    """Mean of one metric over a group.

    Attributes:
        count: Number of images that have the metric.
        mean: Mean over these images; NaN if there is none.
        interval: Bootstrap interval of the mean; None if not requested or if there is no image.
    """

    count: int
    mean: float
    interval: Interval | None = None


@dataclass(frozen=True)
class Group:
    """Scores of one method under one protocol over one group of images.

    Attributes:
        method: Name of the method.
        protocol: Name of the protocol; empty if there is none.
        kind: `"all"`, `"subset"` or `"ratio"`.
        name: `"all"`, the subset, or a key of `RATIO_BINS`.
        count: Number of images in the group.
        scores: Scores by metric, for metrics that at least one row of the method has.
    """

    method: str
    protocol: str
    kind: str
    name: str
    count: int
    scores: Mapping[str, Score]


@dataclass(frozen=True)
class Comparison:
    """Comparison of two methods on the same images under one protocol, with `tests` by metric."""

    first: str
    second: str
    protocol: str
    tests: Mapping[str, PairedTest]


@dataclass(frozen=True)
class Tables:
    """Result of `make_tables`: groups, comparisons, and notes for the reader of the numbers."""

    groups: tuple[Group, ...]
    comparisons: tuple[Comparison, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def protocols(self) -> list[str]:
        """Names of the protocols in order of first occurrence."""
        return list(dict.fromkeys(group.protocol for group in self.groups))

    def of(self, protocol: str, kind: str) -> list[Group]:
        """Return the groups of one protocol and kind."""
        return [group for group in self.groups if (group.protocol, group.kind) == (protocol, kind)]


def make_tables(
    methods: Mapping[str, Sequence[Row]],
    *,
    comparisons: Sequence[tuple[str, str]] = (),
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Tables:
    """Average the rows of methods over all images, by subset and by foreground ratio.

    Args:
        methods: Rows by method.
        comparisons: Pairs of methods to compare.
        resamples: Number of bootstrap draws; 0 computes no intervals.
        confidence: Confidence of the intervals, in (0, 1).
        seed: Seed of the draws.

    Returns:
        The tables. Groups without images are left out.

    Raises:
        InputError: A method has no rows, an option is out of range, or methods to compare do not exist or
            have no image in common.
    """
    if not methods or not all(methods.values()):
        empty = [method for method, rows in methods.items() if not rows]
        raise InputError(", ".join(empty) or "rows", "has no row", "Evaluate some images first.")
    if resamples < 0 or not 0 < confidence < 1:
        raise InputError(
            "resamples, confidence", f"are {resamples}, {confidence}", "Give 0 or more, and 0 to 1."
        )
    groups: list[Group] = []
    for protocol in protocols_of(row for rows in methods.values() for row in rows):
        for method, rows in methods.items():
            for kind, name, members in _split([row for row in rows if row.protocol == protocol]):
                scores = _scores(members, resamples, confidence, seed)
                groups.append(Group(method, protocol, kind, name, len(members), scores))
    compared = [
        comparison
        for first, second in comparisons
        for comparison in _compare(methods, first, second, resamples or 2000, confidence, seed)
    ]
    return Tables(tuple(groups), tuple(compared), tuple(_notes(methods)))


def ratio_bin(foreground_ratio: float) -> str | None:
    """Return the key of `RATIO_BINS` for a foreground ratio, or None if the ratio is NaN.

    Example:
        >>> ratio_bin(0.05), ratio_bin(0.0501), ratio_bin(1.0)
        ('0-5', '5-15', '15-100')
    """
    for name, (_, high) in RATIO_BINS.items():
        if foreground_ratio <= high:
            return name
    return None


def _split(rows: list[Row]) -> list[tuple[str, str, list[Row]]]:
    if not rows:
        return []
    known = [name for name in _SUBSET_ORDER if any(row.subset == name for row in rows)]
    subsets = known + sorted({row.subset for row in rows} - {*known, ""})
    by_subset = [("subset", name, [row for row in rows if row.subset == name]) for name in subsets]
    bins = {row.image: ratio_bin(row.foreground_ratio) for row in rows}
    by_ratio = [("ratio", name, [row for row in rows if bins[row.image] == name]) for name in RATIO_BINS]
    return [part for part in (("all", "all", rows), *by_subset, *by_ratio) if part[2]]


def _scores(rows: list[Row], resamples: int, confidence: float, seed: int) -> dict[str, Score]:
    metrics = [metric for metric in METRICS if any(metric in row.scores for row in rows)]
    values = np.array([[row.scores.get(metric, math.nan) for metric in metrics] for row in rows])
    intervals: list[Interval | None] = [None] * len(metrics)
    if resamples:
        photographs = [row.photograph for row in rows]
        intervals = [
            *bootstrap_intervals(values, photographs, resamples=resamples, confidence=confidence, seed=seed)
        ]
    scores = {}
    for metric, column, interval in zip(metrics, values.T, intervals, strict=True):
        known = column[~np.isnan(column)]
        scores[metric] = Score(len(known), math.fsum(known) / len(known), interval)
    return scores


def _compare(
    methods: Mapping[str, Sequence[Row]],
    first: str,
    second: str,
    resamples: int,
    confidence: float,
    seed: int,
) -> list[Comparison]:
    for name in (first, second):
        if name not in methods:
            raise InputError(name, f"is not among the methods {', '.join(methods)}")
    compared = []
    for protocol in protocols_of(methods[first]):
        a, b = ({row.image: row for row in methods[n] if row.protocol == protocol} for n in (first, second))
        common = sorted(a.keys() & b.keys())
        tests = {}
        for metric in METRICS:
            images = [image for image in common if metric in a[image].scores and metric in b[image].scores]
            if images:
                tests[metric] = paired_test(
                    np.array([a[image].scores[metric] for image in images]),
                    np.array([b[image].scores[metric] for image in images]),
                    [a[image].photograph for image in images],
                    resamples=resamples,
                    confidence=confidence,
                    seed=seed,
                )
        if tests:
            compared.append(Comparison(first, second, protocol, tests))
    if not compared:
        raise InputError(f"{first} and {second}", "have no image and protocol in common")
    return compared


def _notes(methods: Mapping[str, Sequence[Row]]) -> list[str]:
    """Describe images that a mean leaves out, and methods that were scored on different images."""
    notes = []
    images: dict[str, set[tuple[str, str]]] = {}
    for method, rows in methods.items():
        for protocol in protocols_of(rows):
            members = [row for row in rows if row.protocol == protocol]
            shown = f"{method}, {protocol}" if protocol else method
            images.setdefault(protocol, {row.image for row in members})
            if images[protocol] != {row.image for row in members}:
                notes.append(f"{shown}: scored on other images than the first method; compare with care.")
            present = {metric for row in members for metric in row.scores}
            missing: dict[int, list[str]] = {}
            for metric in METRICS:
                if metric in present and (n := sum(metric not in row.scores for row in members)):
                    missing.setdefault(n, []).append(metric)
            for n, names in missing.items():
                plural = "image" if n == 1 else "images"
                notes.append(
                    f"{shown}: {n} {plural} without {', '.join(names)} (empty foreground), "
                    "left out of these means."
                )
            if n := sum(math.isnan(row.foreground_ratio) for row in members):
                notes.append(f"{shown}: {n} of {len(members)} images without a foreground ratio, in no bin.")
    return notes
