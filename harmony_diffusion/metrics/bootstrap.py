"""Confidence intervals of means and paired tests of two methods, by resampling photographs.

Composites of the same photograph are correlated. Resampling (Efron and Tibshirani 1993) and sign flips
(Fisher's randomization test) therefore use photographs with all their composites, not single composites.
iHarmony4 has up to ten composites per photograph; intervals that treat them as independent are too narrow.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

_CHUNK = 1 << 22  # numbers drawn at once; limits the memory


@dataclass(frozen=True)
class Interval:
    """Confidence interval of a mean.

    Attributes:
        low: Lower bound.
        high: Upper bound.
    """

    low: float
    high: float


@dataclass(frozen=True)
class PairedTest:
    """Result of a paired test of two methods on the same images.

    Attributes:
        images: Number of images scored by both methods.
        difference: Mean of first minus second.
        interval: Bootstrap interval of `difference`.
        p_value: Probability of a mean difference at least this far from 0 if the methods do not differ.
        first_larger: Share of images where the first method has the larger value. Ties count half.
    """

    images: int
    difference: float
    interval: Interval
    p_value: float
    first_larger: float


def bootstrap_intervals(
    values: np.ndarray,
    groups: Sequence[Hashable],
    *,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> list[Interval]:
    """Compute percentile bootstrap intervals of the mean of several metrics.

    Args:
        values: Scores, `(N, K)` with N > 0. NaN marks a metric that an image does not have.
        groups: Photograph of each image. Photographs are drawn with replacement, with the same draws for all
            metrics.
        resamples: Number of draws.
        confidence: Share of the draws inside the bounds.
        seed: Seed of the random numbers. The same input and seed give the same bounds.

    Returns:
        K intervals. With a single photograph both bounds are the mean. If no image has a metric they are NaN.
    """
    present = ~np.isnan(values)
    places = _places(groups, len(values))
    sums, counts = (_summed(column, places) for column in (np.where(present, values, 0.0), present))
    drawn = _draws(len(sums), resamples, seed)
    means = np.empty((resamples, values.shape[1]))
    step = max(1, _CHUNK // len(sums))
    for start in range(0, resamples, step):
        times = drawn[start : start + step].astype(np.float64)
        with np.errstate(invalid="ignore"):  # possibly none of the drawn photographs has the metric
            means[start : start + step] = (times @ sums) / (times @ counts)
    return [_percentiles(column[~np.isnan(column)], confidence) for column in means.T]


def bootstrap_ratio(
    numerators: np.ndarray,
    denominators: np.ndarray,
    groups: Sequence[Hashable],
    *,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Compute the percentile bootstrap interval of a ratio of two means over the same images.

    Args:
        numerators: `(N,)` with N > 0, without NaN.
        denominators: `(N,)`.
        groups: Photograph of each image.
        resamples: Number of draws.
        confidence: Share of the draws inside the bounds.
        seed: Seed of the random numbers.
    """
    columns = np.stack([numerators, denominators], 1)
    sums = _summed(columns, _places(groups, len(columns)))
    totals = _draws(len(sums), resamples, seed).astype(np.float64) @ sums
    return _percentiles(totals[:, 0] / totals[:, 1], confidence)


def paired_test(
    first: np.ndarray,
    second: np.ndarray,
    groups: Sequence[Hashable],
    *,
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> PairedTest:
    """Test whether the mean difference of two methods on the same images is 0.

    The test flips the sign of the differences of each photograph at random. With few photographs it evaluates
    all flips, and the p-value is exact.

    Args:
        first: Scores of the first method, `(N,)` with N > 0.
        second: Scores of the second method on the same images, `(N,)`.
        groups: Photograph of each image.
        resamples: Number of flips and of bootstrap draws.
        confidence: Confidence of the interval.
        seed: Seed of the random numbers.

    Returns:
        The result of the two-sided test.
    """
    differences = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    sums = _summed(differences[:, None], _places(groups, len(differences)))[:, 0]
    observed = abs(sums.sum())
    # The tolerance counts sums that equal the observed sum except for rounding.
    limit = observed - 1e-9 * np.abs(sums).sum()
    if 2 ** min(len(sums), 63) <= resamples:
        patterns = np.arange(2 ** len(sums))[:, None] >> np.arange(len(sums)) & 1
        p_value = float((np.abs((1 - 2 * patterns) @ sums) >= limit).mean())
    else:
        p_value = (1 + _flips_beyond(limit, sums, resamples, seed)) / (1 + resamples)
    return PairedTest(
        len(differences),
        float(differences.mean()),
        bootstrap_intervals(
            differences[:, None], groups, resamples=resamples, confidence=confidence, seed=seed
        )[0],
        p_value,
        float(((differences > 0) + (differences == 0) / 2).mean()),
    )


def _percentiles(draws: np.ndarray, confidence: float) -> Interval:
    """Return the interval that holds the given share of the draws; NaN without a draw."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, (tail, 1 - tail)) if len(draws) else (np.nan, np.nan)
    return Interval(float(low), float(high))


def _flips_beyond(limit: float, sums: np.ndarray, resamples: int, seed: int) -> int:
    generator = np.random.default_rng(seed)
    count, step = 0, max(1, _CHUNK // len(sums))
    for start in range(0, resamples, step):
        size = (min(step, resamples - start), len(sums))
        signs = generator.integers(2, size=size, dtype=np.int8) * 2 - 1
        count += int((np.abs(signs @ sums) >= limit).sum())
    return count


@lru_cache(maxsize=8)
def _draws(groups: int, resamples: int, seed: int) -> np.ndarray:
    """Return how often each group is drawn, `(resamples, groups)`. Cached, because tables reuse the draws."""
    generator = np.random.default_rng(seed)
    drawn = np.empty((resamples, groups), np.uint16)
    for i in range(resamples):
        drawn[i] = np.bincount(generator.integers(groups, size=groups), minlength=groups)
    return drawn


def _places(groups: Sequence[Hashable], count: int) -> np.ndarray:
    """Return the group number of each image. Groups are numbered in the order of their names."""
    if count != len(groups) or not count:
        raise ValueError(f"`values` and `groups` must have the same length above 0, got {count} values.")
    return np.unique([str(group) for group in groups], return_inverse=True)[1]


def _summed(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Sum each column over the images of each group, `(groups, K)`."""
    return np.stack([np.bincount(places, weights=column.astype(np.float64)) for column in values.T], 1)
