"""The fast conversions of colours agree with scikit-image and with `harmony_diffusion.color`."""

import numpy as np
import skimage.color
import torch

from harmony_diffusion.color import lab_to_srgb
from harmony_diffusion.models.classical_lab import lab_to_srgb_list, srgb_to_lab_list


def colors_with_dark_ones():
    colors = np.random.default_rng(0).random((3, 4096), dtype=np.float32)
    colors[:, :500] *= 0.05
    colors[:, :2] = [[0, 1]] * 3
    return colors


def test_lab_agrees_with_scikit_image():
    colors = colors_with_dark_ones()
    expected = skimage.color.rgb2lab(colors.T.astype(np.float64)).T
    np.testing.assert_allclose(srgb_to_lab_list(colors), expected, atol=2e-3)


def test_lab_returns_to_the_same_colours():
    colors = colors_with_dark_ones()
    np.testing.assert_allclose(lab_to_srgb_list(srgb_to_lab_list(colors)), colors, atol=1e-5)


def test_colours_outside_the_gamut_are_clipped_as_by_the_other_conversion():
    lab = srgb_to_lab_list(colors_with_dark_ones()) * np.float32(1.5) - np.float32(20)
    expected = lab_to_srgb(torch.from_numpy(lab).double()[None, :, None])[0, :, 0].numpy()
    result = lab_to_srgb_list(lab)
    np.testing.assert_allclose(result, expected, atol=1e-5)
    assert result.min() == 0 and 1 - 1e-6 < result.max() <= 1
