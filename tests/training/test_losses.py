"""Losses against values worked out by hand."""

import math

import pytest
import torch

from harmony_diffusion.errors import InputError
from harmony_diffusion.training.losses import (
    fn_mse,
    harmonizer_coarse_loss,
    harmonizer_fine_loss,
    harmonizer_stage_loss,
    parameter_smoothness,
)


def flat(value, batch=1, size=4):
    return torch.full((batch, 3, size, size), float(value))


def test_fn_mse_divides_by_the_foreground_and_never_by_less_than_min_area():
    mask = torch.zeros(2, 1, 20, 20)
    mask[0, :, :15] = 1  # 300 pixels
    mask[1, 0, 0, :5] = 1  # 5 pixels
    harmonized, real = torch.zeros(2, 3, 20, 20), torch.zeros(2, 3, 20, 20)
    harmonized[0, 0, 0, :3] = 0.5  # sum of squares 0.75
    harmonized[1, :, 0, 0] = 0.2  # sum of squares 0.12
    expected = torch.tensor([0.75 / (3 * 300), 0.12 / (3 * 100)])
    torch.testing.assert_close(fn_mse(harmonized, real, mask), expected)
    expected[1] = 0.12 / (3 * 5)
    torch.testing.assert_close(fn_mse(harmonized, real, mask, min_area=1), expected)


def test_fn_mse_counts_errors_outside_the_mask_and_weighs_area_softly():
    mask = torch.full((1, 1, 2, 2), 0.5)
    mask[..., 0, 0] = 0
    harmonized = torch.zeros(1, 3, 2, 2)
    harmonized[..., 0, 0] = 1
    torch.testing.assert_close(fn_mse(harmonized, flat(0, size=2), mask, 1.0), torch.tensor([3 / (3 * 1.5)]))


def test_fn_mse_computes_bfloat16_in_float32():
    loss = fn_mse(flat(0.5).bfloat16(), flat(0.25), torch.ones(1, 1, 4, 4), 1)
    assert loss.dtype == torch.float32 and loss.item() == 0.0625


def test_stage_loss_is_charbonnier_plus_ten_squares_summed_over_channels():
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., :2, :] = 1
    expected = 3 * (math.sqrt(0.01 + 1e-6) + 10 * 0.01)
    torch.testing.assert_close(
        harmonizer_stage_loss(flat(0.6), flat(0.5), mask), torch.tensor([expected]), rtol=1e-5, atol=0
    )
    outside = flat(0.5)
    outside[..., 2:, :] = 0.9
    torch.testing.assert_close(
        harmonizer_stage_loss(outside, flat(0.5), mask), torch.tensor([3e-3]), rtol=1e-4, atol=0
    )
    torch.testing.assert_close(
        harmonizer_coarse_loss(flat(0.6), flat(0.5), mask), torch.tensor([10 * expected]), rtol=1e-5, atol=0
    )


def stage_value(error):
    return 3 * (math.sqrt(error**2 + 1e-6) + 10 * error**2)


def stage_slope(error):
    """Derivative of the stage loss by the value of one channel everywhere, times 3 channels."""
    return 3 * (error / math.sqrt(error**2 + 1e-6) + 20 * error)


def test_fine_loss_charges_a_stage_with_what_it_adds():
    # Errors 0.1, 0.3, 0.2: the second stage adds, the third does not and gets no gradient.
    errors = (0.1, 0.3, 0.2)
    values = torch.tensor([0.5 + e for e in errors], requires_grad=True)
    stages = [values[k].expand(1, 3, 4, 4) for k in range(3)]
    loss = harmonizer_fine_loss(stages, [flat(0.5)] * 3, torch.ones(1, 1, 4, 4))
    assert loss.item() == pytest.approx(1, abs=1e-5)
    loss.sum().backward()
    scale = stage_value(0.1) + (stage_value(0.3) - stage_value(0.1))
    expected = [stage_slope(0.1) / scale, stage_slope(0.3) / scale, 0.0]
    assert values.grad.tolist() == pytest.approx(expected, rel=1e-4)


def test_fine_loss_scales_each_image_by_itself():
    targets = [torch.full((2, 3, 4, 4), 0.5)] * 2
    shift = torch.tensor([0.01, 0.2], requires_grad=True)
    errors = shift.view(2, 1, 1, 1).expand(2, 3, 4, 4)
    stages = [targets[0] + errors, targets[0] + 2 * errors]
    harmonizer_fine_loss(stages, targets, torch.ones(2, 1, 4, 4)).sum().backward()
    # The sum telescopes to the loss of the last stage; the slopes of both stages are charged.
    expected = [(stage_slope(e) + 2 * stage_slope(2 * e)) / stage_value(2 * e) for e in (0.01, 0.2)]
    assert shift.grad.tolist() == pytest.approx(expected, rel=1e-4)


def test_fine_loss_asks_for_a_target_a_stage():
    with pytest.raises(InputError, match="one for each"):
        harmonizer_fine_loss([flat(0)], [], torch.ones(1, 1, 4, 4))


def test_smoothness_of_a_ramp_is_its_slope_and_of_a_constant_almost_nothing():
    ramp = torch.arange(6.0).expand(2, 3, 5, 6) * 0.5
    # Replicated borders halve the slope in the first and last column.
    expected = (4 * 0.5 + 2 * 0.25) / 6
    torch.testing.assert_close(parameter_smoothness(ramp), torch.full((2,), expected), rtol=1e-4, atol=0)
    torch.testing.assert_close(parameter_smoothness(torch.ones(1, 2, 4, 4)), torch.tensor([1e-3]))


def test_smoothness_is_differentiable_on_constant_maps_and_refuses_vectors():
    maps = torch.ones(1, 2, 4, 4, requires_grad=True)
    parameter_smoothness(maps).sum().backward()
    assert torch.isfinite(maps.grad).all()
    with pytest.raises(InputError, match="maps"):
        parameter_smoothness(torch.ones(1, 6))
