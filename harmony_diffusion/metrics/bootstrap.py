"""How sure a mean is, and whether two methods differ: by resampling photographs.

Composites of one photograph are alike, so what is drawn (Efron and Tibshirani 1993) or flipped (Fisher's
randomization test) are photographs with all their composites, not single composites; intervals that treat
iHarmony4's up to ten composites of a photograph as independent are too narrow.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

_CHUNK = 1 << 22  # numbers drawn at a time; bounds the memory


@dataclass(frozen=True)
class Interval:
    """Bounds between which the true mean lies with the given confidence.

    Attributes:
        low: Lower bound.
        high: Upper bound.
    """

    low: float
    high: float


@dataclass(frozen=True)
class PairedTest:
    """Whether one method scores differently from another on the same images.

    Attributes:
        images: Number of images that both have scored.
        difference: Mean of first minus second.
        interval: Bootstrap interval of that mean.
        p_value: Chance of a mean at least as far from 0 if the names of the methods meant nothing.
        first_larger: Share of images in which the first has the larger value; ties count half.
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
    """Return the percentile bootstrap interval of the mean over images of each of several metrics.

    Args:
        values: Scores, `(N, K)` with N > 0; NaN where an image has not got a metric.
        groups: Photograph of each image; they are drawn with replacement, for all metrics alike.
        resamples: Number of draws.
        confidence: Share of the draws inside the bounds.
        seed: Of the random numbers; same input and seed give the same bounds.

    Returns:
        K intervals; both bounds are the mean where there is a single photograph, and NaN where no image has
        the metric.
    """
    present = ~np.isnan(values)
    places = _places(groups, len(values))
    sums, counts = (_summed(column, places) for column in (np.where(present, values, 0.0), present))
    drawn = _draws(len(sums), resamples, seed)
    means = np.empty((resamples, values.shape[1]))
    step = max(1, _CHUNK // len(sums))
    for start in range(0, resamples, step):
        times = drawn[start : start + step].astype(np.float64)
        with np.errstate(invalid="ignore"):  # none of the photographs drawn may have the metric
            means[start : start + step] = (times @ sums) / (times @ counts)
    tail = (1 - confidence) / 2
    intervals = []
    for column in means.T:
        known = column[~np.isnan(column)]
        low, high = np.quantile(known, (tail, 1 - tail)) if len(known) else (np.nan, np.nan)
        intervals.append(Interval(float(low), float(high)))
    return intervals


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

    The sign of each photograph's differences is flipped at random; with few photographs all flips are gone
    through, and the p-value is exact.

    Args:
        first: Scores of one method, `(N,)` with N > 0.
        second: Scores of the other on the same images, `(N,)`.
        groups: Photograph of each image.
        resamples: Number of flips, and of bootstrap draws.
        confidence: Of the interval.
        seed: Of the random numbers.

    Returns:
        The test, two-sided.
    """
    differences = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    sums = _summed(differences[:, None], _places(groups, len(differences)))[:, 0]
    observed = abs(sums.sum())
    # Sums in another order differ in the last bits; as far out as the observed one is meant to count.
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
    """Return how often each group is drawn, `(resamples, groups)`; tables ask for the same repeatedly."""
    generator = np.random.default_rng(seed)
    drawn = np.empty((resamples, groups), np.uint16)
    for i in range(resamples):
        drawn[i] = np.bincount(generator.integers(groups, size=groups), minlength=groups)
    return drawn


def _places(groups: Sequence[Hashable], count: int) -> np.ndarray:
    """Return the number of each image's group, in the order of their names."""
    if count != len(groups) or not count:
        raise ValueError(f"`values` and `groups` must be as long, and not empty, got {count}.")
    return np.unique([str(group) for group in groups], return_inverse=True)[1]


def _summed(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return the sums of columns over the images of each group, `(groups, K)`."""
    return np.stack([np.bincount(places, weights=column.astype(np.float64)) for column in values.T], 1)
