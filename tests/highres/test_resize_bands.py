import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from harmony_diffusion.highres.resize_bands import bicubic_windows, shrink_by_area
from harmony_diffusion.highres.windows import BAND_PIXELS
from harmony_diffusion.images.picture import Picture


@pytest.mark.parametrize(
    ("size", "small"), [((300, 401), (64, 96)), ((1201, 903), (128, 96)), ((1024, 2048), (64, 128))]
)
def test_shrinking_in_bands_averages_the_area_of_the_whole(size, small):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    expected = cv2.resize(pixels.astype(np.float32) / 255, small[::-1], interpolation=cv2.INTER_AREA)
    result = shrink_by_area(Picture(pixels), small)
    assert result.shape == (1, 3, *small) and result.is_contiguous()
    np.testing.assert_allclose(result[0].permute(1, 2, 0), expected, atol=2e-6)


@pytest.mark.parametrize("size", [(64, 96), (128, 100), (700, 901), (40, 9000)])
def test_windows_are_those_of_the_antialiased_whole(size):
    image = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(image, size, mode="bicubic", align_corners=False, antialias=True)
    window_of = bicubic_windows(image, size)
    whole = (slice(0, size[0]), slice(0, size[1]))
    windows = [whole, (slice(7, 23), slice(31, 95)), (slice(39, 40), slice(0, 1))]
    for rows, columns in windows:
        assert torch.allclose(window_of((rows, columns)), expected[..., rows, columns], atol=2e-6)
    if size[0] * size[1] <= BAND_PIXELS:
        assert torch.equal(window_of(windows[0]), expected)
