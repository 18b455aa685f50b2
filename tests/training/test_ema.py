import pytest
import torch
from torch import nn

from harmony_diffusion.training.ema import MovingAverage


def test_moving_average_is_the_weighted_sum_and_gives_the_weights_back():
    model = nn.BatchNorm1d(1)
    with torch.no_grad():
        model.weight.fill_(1)
    average = MovingAverage(model, decay=0.15)
    for updates, value in enumerate((3.0, 5.0)):
        with torch.no_grad():
            model.weight.fill_(value)
            model.num_batches_tracked.fill_(updates + 7)
        average.update(model, updates)
    # Decays are min(0.15, 1/10) and min(0.15, 2/11).
    expected = 0.15 * (0.1 * 1 + 0.9 * 3) + 0.85 * 5
    with average.in_place_of(model):
        assert model.weight.item() == pytest.approx(expected, rel=1e-6)
        assert model.num_batches_tracked.item() == 8
    assert model.weight.item() == 5
