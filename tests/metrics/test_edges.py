import math

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from harmony_diffusion.errors import InputError
from harmony_diffusion.metrics.edges import edge_agreement


def lines(*columns, size=16):
    drawn = np.zeros((size, size))
    drawn[:, list(columns)] = 1
    return drawn


def test_edges_agree_within_the_tolerance_and_not_beyond():
    assert edge_agreement(lines(4), lines(4)) == edge_agreement(lines(5), lines(4)) == 1
    assert edge_agreement(lines(6), lines(4)) == 0 == edge_agreement(lines(), lines(4))
    assert edge_agreement(lines(6), lines(4), tolerance=2) == 1
    assert edge_agreement(lines(5), lines(4), tolerance=0) == 0


def test_missing_and_superfluous_edges_cost_recall_and_precision():
    # Precision 1, recall 1/2; and precision 1/3, recall 1.
    assert edge_agreement(lines(4), lines(4, 9)) == pytest.approx(2 / 3)
    assert edge_agreement(lines(1, 6, 11), lines(6)) == pytest.approx(1 / 2)


def test_only_the_region_counts_and_its_surroundings_still_match():
    region = np.zeros((16, 16))
    region[:, :8] = 1
    assert edge_agreement(lines(4, 12), lines(4), region) == 1
    # The edge at 8 is outside the region, but the one wanted at 7 finds it.
    assert edge_agreement(lines(3, 8), lines(3, 7), region) == 1
    assert math.isnan(edge_agreement(lines(4), lines(12), region))


def test_score_is_that_of_distances():
    generator = np.random.default_rng(0)
    drawn, wanted = (generator.random((40, 30)) < 0.05 for _ in range(2))
    far = [distance_transform_edt(~plane) for plane in (drawn, wanted)]
    for tolerance in (0, 1, 1.5, 3):
        precision = (far[1][drawn] <= tolerance).mean()
        recall = (far[0][wanted] <= tolerance).mean()
        expected = 2 * precision * recall / (precision + recall)
        assert edge_agreement(drawn, wanted, tolerance=tolerance) == pytest.approx(expected)


def test_maps_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="must all be"):
        edge_agreement(lines(1), lines(1, size=8))
    with pytest.raises(InputError, match="tolerance"):
        edge_agreement(lines(1), lines(1), tolerance=-1)
