"""Whether one set of results lies nearer to the real images than another, and how sure that is."""

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
        mean: Over the halves.
        low: Lower end of the 95 % interval.
        high: Upper end.
    """

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class SetComparison:
    """Distances of one set less those of another; negative where the first lies nearer.

    Attributes:
        fid: Of the Fréchet distance.
        kid: Of the squared kernel distance.
        images: Images in each set.
        halves: Number of halves drawn.
    """

    fid: Difference
    kid: Difference
    images: int
    halves: int


def compare_sets(first: Tensor, second: Tensor, real: Tensor, *, seed: int = 0) -> SetComparison:
    """Compare two methods on the same images, by the features of their results.

    Both distances are taken on random halves of the images, the same for the three sets. Halves drawn
    without replacement scatter about the whole as wholes scatter about the truth, and hold no image twice,
    which would bias both distances (Politis, Romano and Wolf, "Subsampling", 1999).

    Args:
        first: Features of a method's results, `(N, D)`.
        second: Those of another method, image by image.
        real: Those of the real images.
        seed: Of the draws.

    Raises:
        SizeMismatchError: The sets are not of one size.
        InputError: Fewer than four images.
    """
    count = len(real)
    if not len(first) == len(second) == count:
        raise SizeMismatchError(
            "sets", f"hold {len(first)}, {len(second)} and {count} images, not the same ones"
        )
    if count < 4:
        raise InputError("sets", f"hold {count} images", "Give at least four.")
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
