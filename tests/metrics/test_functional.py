import numpy as np
import pytest
import torch
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio

from harmony_diffusion.metrics.functional import fmse, fpsnr, mse, psnr


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    harmonized, real = (torch.randint(0, 256, (3, 3, 9, 7), generator=generator).float() for _ in range(2))
    return harmonized, real, (torch.rand(3, 1, 9, 7, generator=generator) > 0.6).float()


def test_values_agree_with_scikit_image(pair):
    harmonized, real, mask = pair
    for i in range(3):
        a, b = harmonized[i].numpy(), real[i].numpy()
        assert mse(harmonized, real)[i].item() == pytest.approx(mean_squared_error(a, b), rel=1e-12)
        assert psnr(harmonized, real)[i].item() == pytest.approx(
            peak_signal_noise_ratio(b, a, data_range=255)
        )
        inside = np.broadcast_to(mask[i].numpy() > 0, a.shape)
        expected = mean_squared_error(a[inside], b[inside])
        assert fmse(harmonized, real, mask)[i].item() == pytest.approx(expected, rel=1e-12)
        assert fpsnr(harmonized, real, mask)[i].item() == pytest.approx(10 * np.log10(255**2 / expected))


def test_one_value_an_image_in_float64(pair):
    for value in (mse(*pair[:2]), psnr(*pair[:2]), fmse(*pair), fpsnr(*pair)):
        assert value.shape == (3,) and value.dtype == torch.float64


def test_identical_images_are_capped_and_empty_masks_are_nan(pair):
    harmonized, _, mask = pair
    assert (psnr(harmonized, harmonized) == 100).all()
    assert fmse(harmonized, harmonized + 1, torch.zeros_like(mask)).isnan().all()


def test_soft_mask_weighs():
    harmonized = torch.tensor([[10.0, 0.0]]).expand(1, 3, 1, 2)
    mask = torch.tensor([1.0, 0.5]).view(1, 1, 1, 2)
    assert fmse(harmonized, torch.zeros(1, 3, 1, 2), mask).item() == pytest.approx(100 / 1.5)


def test_different_sizes_are_refused():
    with pytest.raises(ValueError, match="must both be"):
        mse(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 5))
