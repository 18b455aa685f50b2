"""Gain of a method over the composites, by kind of mismatch, with intervals and the share made worse."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from harmony_diffusion.errors import InputError
from harmony_diffusion.metrics.bootstrap import Interval, bootstrap_intervals, bootstrap_ratio
from harmony_diffusion.metrics.score_rows import Row

ALL = "all"


@dataclass(frozen=True)
class Gain:
    """Scores of a method compared with the scores of the unchanged composites.

    Attributes:
        subset: Kind of mismatch, or `"all"`.
        images: Number of composites.
        psnr: Mean difference of PSNR, in dB.
        interval: Bootstrap interval of `psnr`, resampling photographs.
        fmse_ratio: Mean fMSE of the results divided by mean fMSE of the composites.
        worse: Share of the composites with an increased MSE, in [0, 1].
        ratio_interval: Bootstrap interval of `fmse_ratio`.
        fab_ratio: Mean colour error of the results divided by that of the composites; NaN if not computed.
    """

    subset: str
    images: int
    psnr: float
    interval: Interval
    fmse_ratio: float
    worse: float
    ratio_interval: Interval
    fab_ratio: float = math.nan


def gains(
    rows: Sequence[Row], composites: Sequence[Row], *, resamples: int = 2000, seed: int = 0
) -> list[Gain]:
    """Compare the rows of a method with those of the method `identity`, over all images and by subset.

    Args:
        rows: Scores of the method under one protocol.
        composites: Scores of the composites (method `identity`) on the same images.
        resamples: Number of bootstrap draws.
        seed: Seed of the draws.

    Raises:
        InputError: There are no rows, or the images differ.
    """
    before = {row.image: row for row in composites}
    same = {row.image for row in rows} == before.keys() and len(rows) == len(before) == len(composites)
    if not rows or not same:
        raise InputError(
            "rows",
            "of the method and of the composites must have the same images, one row each",
            "Score both on the same set with the same protocol.",
        )
    subsets = sorted({row.subset for row in rows})
    groups = [(ALL, list(rows))]
    if len(subsets) > 1:
        groups += [(subset, [row for row in rows if row.subset == subset]) for subset in subsets]
    return [_gain(name, members, before, resamples, seed) for name, members in groups]


def mean_psnr(rows: Sequence[Row], *, resamples: int = 2000, seed: int = 0) -> tuple[float, Interval]:
    """Return the mean PSNR of rows and its bootstrap interval, for images that need no change.

    Raises:
        InputError: There are no rows.
    """
    if not rows:
        raise InputError("rows", "are none")
    values = np.array([[row.scores["psnr"]] for row in rows])
    photographs = [row.photograph for row in rows]
    return float(values.mean()), bootstrap_intervals(values, photographs, resamples=resamples, seed=seed)[0]


def gains_markdown(sets: Mapping[str, Sequence[Gain]]) -> str:
    """Format several sets of composites as one Markdown table, a row for each set and kind of mismatch."""
    colors = any(not math.isnan(gain.fab_ratio) for found in sets.values() for gain in found)
    heads = ["composites", "kind", "images", "PSNR gain (dB)", "95 % interval"]
    heads += [*(["fΔab left"] if colors else []), "fMSE left", "made worse"]
    lines = ["| " + " | ".join(heads) + " |", "|---|---|" + "---:|" * (len(heads) - 2)]
    for name, found in sets.items():
        for gain in found:
            color = "–" if math.isnan(gain.fab_ratio) else f"{100 * gain.fab_ratio:.0f} %"
            cells = (
                name,
                gain.subset,
                f"{gain.images:,}",
                f"{gain.psnr:+.2f}",
                f"{gain.interval.low:+.2f} to {gain.interval.high:+.2f}",
                *([color] if colors else []),
                f"{100 * gain.fmse_ratio:.0f} %",
                f"{100 * gain.worse:.0f} %",
            )
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def untouched_markdown(sets: Mapping[str, Sequence[Row]]) -> str:
    """Format the PSNR of results on photographs that need no change as a Markdown table, one row per set."""
    lines = ["| photographs | images | PSNR (dB) | 95 % interval |", "|---|---:|---:|---:|"]
    for name, rows in sets.items():
        mean, interval = mean_psnr(rows)
        bounds = f"{interval.low:.1f} to {interval.high:.1f}"
        lines.append(f"| {name} | {len(rows):,} | {mean:.1f} | {bounds} |")
    return "\n".join(lines) + "\n"


def _gain(
    name: str, rows: Sequence[Row], before: Mapping[tuple[str, str], Row], resamples: int, seed: int
) -> Gain:
    pairs = [(row.scores, before[row.image].scores) for row in rows]
    differences = np.array([[after["psnr"] - first["psnr"]] for after, first in pairs])
    photographs = [row.photograph for row in rows]
    interval = bootstrap_intervals(differences, photographs, resamples=resamples, seed=seed)[0]
    worse = float(np.mean([after["mse"] > first["mse"] for after, first in pairs]))
    left, whole, known = _errors(pairs, "fmse")
    interval_of_ratio = Interval(math.nan, math.nan)
    if whole.sum() > 0:
        groups = [photographs[place] for place in known]
        interval_of_ratio = bootstrap_ratio(left, whole, groups, resamples=resamples, seed=seed)
    return Gain(
        subset=name,
        images=len(rows),
        psnr=float(differences.mean()),
        interval=interval,
        fmse_ratio=_ratio(left, whole),
        worse=worse,
        ratio_interval=interval_of_ratio,
        fab_ratio=_ratio(*_errors(pairs, "fab")[:2]),
    )


def _errors(
    pairs: Sequence[tuple[Mapping[str, float], Mapping[str, float]]], metric: str
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Return a metric of the results, that of the composites, and the places of the pairs that have both."""
    # Foreground metrics are undefined for an empty foreground; such an image counts in neither mean.
    known = [place for place, (after, first) in enumerate(pairs) if metric in after and metric in first]
    left, whole = (np.array([pairs[place][side][metric] for place in known]) for side in (0, 1))
    return left, whole, known


def _ratio(left: np.ndarray, whole: np.ndarray) -> float:
    return float(left.sum() / whole.sum()) if whole.sum() > 0 else math.nan
