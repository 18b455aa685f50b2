"""Intervals of the difference of two methods' FID and KID."""

import pytest
import torch

from harmony_diffusion.errors import InputError, SizeMismatchError
from harmony_diffusion.metrics.fid import frechet_distance, kid_distances
from harmony_diffusion.reports.fid_comparison import compare_sets


def draw(count, seed):
    """Real images, results that are a little off, and results that are more so."""
    generator = torch.Generator().manual_seed(seed)
    real, noise, more = torch.randn(3, count, 4, generator=generator)
    return real + 0.3 * noise + 0.2, real + 0.3 * more + 0.4, real


def test_intervals_are_as_wide_as_the_scatter_of_whole_sets():
    wholes = []
    for seed in range(150):
        near, far, real = draw(200, seed)
        options = {"subsets": 1, "subset_size": 200}
        kid = [float(kid_distances(x, real, **options)[0]) for x in (near, far)]
        wholes.append([frechet_distance(near, real) - frechet_distance(far, real), kid[0] - kid[1]])
    scatter = torch.tensor(wholes).std(0)
    for seed in (1000, 1001):
        result = compare_sets(*draw(200, seed))
        for difference, deviation in zip((result.fid, result.kid), scatter, strict=True):
            assert (difference.high - difference.low) / (2 * 1.96) == pytest.approx(
                deviation.item(), rel=0.35
            )
            assert difference.low < difference.mean < difference.high < 0


def test_methods_that_are_alike_are_not_told_apart_and_swapping_changes_the_sign():
    near, _, real = draw(300, 0)
    alike = real + (near - real).flip(0)
    result, swapped = compare_sets(near, alike, real), compare_sets(alike, near, real)
    for a, b in ((result.fid, swapped.fid), (result.kid, swapped.kid)):
        assert a.low < 0 < a.high
        assert (a.mean, a.low, a.high) == pytest.approx((-b.mean, -b.high, -b.low), rel=1e-6, abs=1e-12)


def test_sets_of_other_images_are_refused():
    near, far, real = draw(10, 0)
    with pytest.raises(SizeMismatchError, match="10, 9 and 10"):
        compare_sets(near, far[:9], real)
    with pytest.raises(InputError, match="at least four"):
        compare_sets(near[:3], far[:3], real[:3])
