"""Comparison of two sets of results by their distances to the real images, with confidence intervals."""

from dataclasses import dataclass

import torch
from torch import Tensor

from harmony_diffusion.errors import InputError, SizeMismatchError
from harmony_diffusion.metrics.fid import frechet_distance, kid_distances

HALVES = 200


@dataclass(frozen=True)
class Difference:
    """A difference of two distances.

    Attributes:
        mean: Mean over the halves.
        low: Lower bound of the 95 % interval.
        high: Upper bound of the 95 % interval.
    """

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class SetComparison:
    """Distances of the first set minus those of the second. Negative means that the first set is closer.

    Attributes:
        fid: Difference of the Fréchet distances.
        kid: Difference of the squared kernel distances.
        images: Number of images in each set.
        halves: Number of halves drawn.
    """

    fid: Difference
    kid: Difference
    images: int
    halves: int


def compare_sets(first: Tensor, second: Tensor, real: Tensor, *, seed: int = 0) -> SetComparison:
    """Compare two methods on the same images, by the features of their results.

    Both distances are computed on random halves of the images, the same halves for the three sets. The halves
    are drawn without replacement, because repeated images would bias both distances. The spread of halves
    around the full set estimates the spread of full sets around the true value (Politis, Romano and Wolf,
    "Subsampling", 1999).

    Args:
        first: Features of the results of the first method, `(N, D)`.
        second: Features of the results of the second method on the same images, `(N, D)`.
        real: Features of the real images, `(N, D)`.
        seed: Seed of the draws.

    Raises:
        SizeMismatchError: The sets differ in size.
        InputError: There are fewer than four images.
    """
    count = len(real)
    if not len(first) == len(second) == count:
        raise SizeMismatchError(
            "sets", f"must hold the same images, got {len(first)}, {len(second)} and {count} images"
        )
    if count < 4:
        raise InputError("sets", f"hold {count} images", "Give at least four images.")
    generator = torch.Generator().manual_seed(seed)
    size = count // 2
    rows = []
    for _ in range(HALVES):
        half = torch.randperm(count, generator=generator)[:size]
        a, b, target = (features[half] for features in (first, second, real))
        fid = frechet_distance(a, target) - frechet_distance(b, target)
        kid = [kid_distances(x, target, subsets=1, subset_size=size) for x in (a, b)]
        rows.append([fid, float(kid[0] - kid[1])])
    values = torch.tensor(rows, dtype=torch.float64)
    ends = torch.quantile(values, torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0)
    fid_difference, kid_difference = (
        Difference(float(values[:, i].mean()), float(ends[0, i]), float(ends[1, i])) for i in (0, 1)
    )
    return SetComparison(fid_difference, kid_difference, count, HALVES)
