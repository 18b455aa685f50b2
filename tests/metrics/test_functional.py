import numpy as np
import pytest
import torch
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio, structural_similarity

from harmony_diffusion.errors import InputError
from harmony_diffusion.metrics.functional import bmse, fmse, fpsnr, fssim, mse, psnr, ssim

REL = 1e-6
KINDS = ("random", "close", "identical", "constant", "one_pixel")
SKIMAGE = {
    "gaussian": {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False},
    "uniform": {},
}


@pytest.fixture(params=KINDS)
def triple(request):
    """Two images of each kind, as `(2, 3, 37, 29)` of whole numbers, with a mask."""
    generator = torch.Generator().manual_seed(0)
    real, noise = (torch.randint(0, 256, (2, 3, 37, 29), generator=generator).float() for _ in range(2))
    mask = (torch.rand(2, 1, 37, 29, generator=generator) > 0.6).float()
    if request.param == "one_pixel":
        mask = torch.zeros_like(mask)
        mask[0, 0, 0, 0] = mask[1, 0, 20, 11] = 1
    harmonized = {"identical": real.clone(), "close": (real + noise % 3 - 1).clamp(0, 255)}.get(
        request.param, noise
    )
    if request.param == "constant":
        real, harmonized = torch.full_like(real, 7), torch.full_like(real, 8)
    return harmonized, real, mask


def arrays(triple):
    for harmonized, real, mask in zip(*triple, strict=True):
        yield tuple(tensor.permute(1, 2, 0).double().numpy() for tensor in (harmonized, real, mask))


def test_errors_agree_with_scikit_image(triple):
    for i, (a, b, m) in enumerate(arrays(triple)):
        assert mse(*triple[:2])[i].item() == pytest.approx(mean_squared_error(a, b), rel=REL)
        inside = np.broadcast_to(m > 0, a.shape)
        for ours, kept in ((fmse, inside), (bmse, ~inside)):
            assert ours(*triple)[i].item() == pytest.approx(mean_squared_error(a[kept], b[kept]), rel=REL)


def test_decibels_agree_with_scikit_image_up_to_the_cap(triple):
    for i, (a, b, m) in enumerate(arrays(triple)):
        inside = np.broadcast_to(m > 0, a.shape)
        for value, x, y in ((psnr(*triple[:2]), a, b), (fpsnr(*triple), a[inside], b[inside])):
            with np.errstate(divide="ignore"):
                expected = min(100.0, peak_signal_noise_ratio(y, x, data_range=255))
            assert value[i].item() == pytest.approx(expected, rel=REL)


@pytest.mark.parametrize("window", ["gaussian", "uniform"])
def test_structural_similarity_agrees_with_scikit_image(triple, window):
    for i, (a, b, m) in enumerate(arrays(triple)):
        mean, full = structural_similarity(a, b, channel_axis=2, data_range=255, full=True, **SKIMAGE[window])
        assert ssim(*triple[:2], window)[i].item() == pytest.approx(mean, rel=REL)
        expected = (full.mean(2) * m[..., 0]).sum() / m.sum()
        assert fssim(*triple, window)[i].item() == pytest.approx(expected, rel=REL, abs=1e-9)


def test_images_agree_with_torchmetrics(triple):
    functional = pytest.importorskip("torchmetrics.functional.image")
    harmonized, real = triple[0].double(), triple[1].double()
    _, full = functional.structural_similarity_index_measure(
        harmonized, real, data_range=255.0, reduction="none", return_full_image=True
    )
    # torchmetrics averages windows that reach over the border, too.
    expected = full[..., 5:-5, 5:-5].mean((1, 2, 3))
    assert torch.allclose(ssim(harmonized, real), expected, rtol=REL, atol=0)
    expected = functional.peak_signal_noise_ratio(
        harmonized, real, data_range=255.0, reduction="none", dim=(1, 2, 3)
    )
    assert torch.allclose(psnr(harmonized, real), expected.clamp_max(100), rtol=REL, atol=0)


def test_bands_of_a_tall_picture_do_not_show():
    generator = np.random.default_rng(0)
    a, b = generator.integers(0, 256, (2, 600, 20, 3)).astype(np.float64)
    expected = structural_similarity(a, b, channel_axis=2, data_range=255)
    tensors = [torch.from_numpy(x).permute(2, 0, 1)[None] for x in (a, b)]
    assert ssim(*tensors, "uniform").item() == pytest.approx(expected, rel=REL)


def test_one_value_an_image_in_float64(triple):
    values = [metric(*triple[:2]) for metric in (mse, psnr, ssim)]
    values += [metric(*triple) for metric in (fmse, fpsnr, bmse, fssim)]
    for value in values:
        assert value.shape == (2,) and value.dtype == torch.float64


def test_identical_images_are_capped_and_regions_without_pixels_are_nan():
    image = torch.rand(1, 3, 16, 16) * 255
    assert psnr(image, image).item() == 100 and ssim(image, image).item() == 1
    empty, full = torch.zeros(1, 1, 16, 16), torch.ones(1, 1, 16, 16)
    for metric in (fmse, fpsnr, fssim):
        assert metric(image, image + 1, empty).isnan().all()
    assert bmse(image, image + 1, full).isnan().all()


def test_soft_mask_weighs():
    harmonized = torch.tensor([[10.0, 0.0]]).expand(1, 3, 1, 2)
    mask = torch.tensor([1.0, 0.5]).view(1, 1, 1, 2)
    assert fmse(harmonized, torch.zeros(1, 3, 1, 2), mask).item() == pytest.approx(100 / 1.5)
    assert bmse(harmonized, torch.zeros(1, 3, 1, 2), mask).item() == 0


def test_peak_of_each_image():
    images = torch.tensor([1.0, 2.0]).view(2, 1, 1, 1).expand(2, 3, 1, 1)
    values = psnr(images, torch.zeros_like(images), torch.tensor([10.0, 20.0]))
    assert values.tolist() == pytest.approx([20, 20])


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(InputError, match="must both be"):
        mse(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 5))
    with pytest.raises(InputError, match="smaller than the window of 11x11"):
        ssim(torch.zeros(1, 3, 4, 40), torch.zeros(1, 3, 4, 40))
    with pytest.raises(InputError, match="must be one of gaussian, uniform"):
        ssim(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 16), "square")
