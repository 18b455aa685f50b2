import numpy as np
import pytest
import torch

from harmony_diffusion.metrics.temporal import cell_corrections, flicker, flicker_of_shots, r_rtc, tl_dis


def clip_of(values):
    """Frames (T, 3, 32, 32), each of one value."""
    return torch.tensor(values)[:, None, None, None].expand(-1, 3, 32, 32).clone()


def test_flicker_is_the_rms_of_steps_of_the_correction():
    composite = clip_of([0.5, 0.5, 0.5])
    steps = clip_of([0.0, 0.1, 0.0])
    mask = torch.ones(3, 1, 32, 32)
    assert flicker(composite + steps, composite, mask) == pytest.approx(25.5, abs=1e-4)


def test_a_constant_correction_does_not_flicker_whatever_the_clip_does():
    composite = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) / 2
    mask = torch.zeros(4, 1, 32, 32)
    mask[..., 8:24, 8:24] = 1
    assert flicker(composite + 0.1 * mask, composite, mask) == pytest.approx(0, abs=1e-4)
    assert flicker(composite, composite, mask) == 0


def test_steps_across_a_cut_are_not_counted():
    mask = np.ones((32, 32))
    low, high = (
        cell_corrections(np.zeros((32, 32, 3)), mask),
        cell_corrections(np.full((32, 32, 3), 0.2), mask),
    )
    assert flicker_of_shots([[low, low], [high, high]]) == 0
    assert flicker_of_shots([[low, low, high, high]]) > 0


def test_empty_masks_give_no_flicker():
    composite = torch.rand(2, 3, 32, 32)
    assert flicker(composite, composite, torch.zeros(2, 1, 32, 32)) == 0


def test_r_rtc_is_the_formula_by_hand():
    real, harmonized = clip_of([0.2, 0.2, 0.2]), clip_of([0.2, 0.3, 0.2])
    mask = torch.ones(3, 1, 32, 32)
    # Both gaps are 25.5, and so is their mean: only the first term is left.
    assert r_rtc(harmonized, real, mask) == pytest.approx(25.5**2, rel=1e-5)
    uneven = clip_of([0.2, 0.3, 0.3])
    # Gaps 25.5 and 0, mean 12.75.
    assert r_rtc(uneven, real, mask) == pytest.approx((25.5**2 + 12.75**2) / 2, rel=1e-5)


def test_r_rtc_of_the_foreground_leaves_the_background_out():
    real = clip_of([0.2, 0.2])
    harmonized = real.clone()
    mask = torch.zeros(2, 1, 32, 32)
    mask[..., :16] = 1
    harmonized[1, :, :, 16:] = 0.9
    assert r_rtc(harmonized, real, mask) == pytest.approx(0, abs=1e-9)
    assert r_rtc(harmonized, real) > 100


def test_tl_dis_counts_a_jump_of_the_result_and_not_of_nothing():
    generator = torch.Generator().manual_seed(0)
    still = torch.nn.functional.interpolate(
        torch.rand(1, 3, 8, 8, generator=generator), 64, mode="bicubic"
    ).clamp(0, 1)
    real = 0.8 * still.expand(3, -1, -1, -1)
    mask = torch.ones(3, 1, 64, 64)
    jumping = real.clone()
    jumping[1] += 0.1
    assert tl_dis(real, real, mask) == pytest.approx(0, abs=1e-3)
    # Without motion the warp changes nothing: w = 1, three channels.
    assert tl_dis(jumping, real, mask) == pytest.approx(3 * 25.5**2, rel=0.02)
