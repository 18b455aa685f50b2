import colorsys
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.color import lab2rgb, rgb2lab

from harmony_diffusion import color

ORACLE = Path(__file__).parent / "oracles" / "part_harmonizer_filters_s11.npz"
FILTERS = ("temperature", "brightness", "contrast", "saturation", "highlight", "shadow")
every_filter = pytest.mark.parametrize("name", FILTERS)


@pytest.fixture
def image():
    return torch.rand(2, 3, 9, 7, generator=torch.Generator().manual_seed(0))


def pixels(*rgb):
    """The given pixels side by side, `(1, 3, 1, N)`."""
    return torch.tensor(rgb).T[None, :, None]


def apply(name, image, argument, **options):
    return getattr(color, name)(image, torch.tensor([argument]).expand(len(image)), **options)


def test_lab_equals_scikit_image_and_back(image):
    lab = color.srgb_to_lab(image)
    expected = rgb2lab(image.permute(0, 2, 3, 1).double().numpy())
    np.testing.assert_allclose(lab.permute(0, 2, 3, 1), expected, rtol=0, atol=2e-3)
    back = color.lab_to_srgb(lab)
    np.testing.assert_allclose(back, image, rtol=0, atol=1e-5)
    np.testing.assert_allclose(back.permute(0, 2, 3, 1), lab2rgb(expected), rtol=0, atol=1e-4)


def test_lab_gradient_is_finite_at_black_and_white():
    image = pixels((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (1.0, 0.0, 0.0)).requires_grad_()
    color.lab_to_srgb(color.srgb_to_lab(image) * 0.9).sum().backward()
    assert torch.isfinite(image.grad).all()


def test_transfer_curve_is_that_of_the_standard():
    encoded = torch.tensor([0.0, 0.04045, 0.5, 1.0], dtype=torch.float64)
    expected = [0.0, 0.04045 / 12.92, (0.555 / 1.055) ** 2.4, 1.0]
    linear = color.srgb_to_linear(encoded)
    np.testing.assert_allclose(linear, expected, atol=1e-12)
    np.testing.assert_allclose(color.linear_to_srgb(linear), encoded, atol=1e-7)


@every_filter
def test_filter_and_its_gradient_equal_the_official_one(name):
    with np.load(ORACLE, allow_pickle=False) as oracle:
        image, weights = (torch.from_numpy(oracle[key]) for key in ("image", "weights"))
        arguments = torch.from_numpy(oracle["arguments"]).requires_grad_()
        filtered = getattr(color, name)(image.expand(len(arguments), -1, -1, -1), arguments)
        (filtered * weights).sum().backward()
        np.testing.assert_allclose(filtered.detach(), oracle[f"output_{name}"], rtol=0, atol=2e-6)
        expected = oracle[f"grad_{name}"]
        smooth = np.isfinite(expected)
        assert smooth.sum() == 7
        np.testing.assert_allclose(arguments.grad[smooth], expected[smooth], rtol=1e-5, atol=1e-5)


@every_filter
def test_zero_changes_nothing(name, image):
    torch.testing.assert_close(apply(name, image, 0.0), image, rtol=0, atol=3e-6)


@every_filter
def test_arguments_are_clamped_to_one(name, image):
    for limit in (-1.0, 1.0):
        assert torch.equal(apply(name, image, 7 * limit), apply(name, image, limit))


@every_filter
def test_each_image_of_a_batch_has_its_own_argument(name, image):
    arguments = torch.tensor([-0.4, 0.6])
    together = getattr(color, name)(image, arguments)
    for i in range(2):
        alone = getattr(color, name)(image[i : i + 1], arguments[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-6)


@every_filter
@pytest.mark.parametrize("argument", [-1.0, -0.3, 0.3, 1.0])
def test_gradient_is_finite_at_the_ends_of_the_range(name, argument):
    image = pixels((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (1.0, 0.0, 0.5)).requires_grad_()
    argument = torch.tensor([argument], requires_grad=True)
    getattr(color, name)(image, argument).sum().backward()
    assert torch.isfinite(image.grad).all() and torch.isfinite(argument.grad).all()


def test_temperature_by_hand():
    # Means (0.4, 0.5, 0.6) move to (0.4, 0.6, 0.8): red is scaled by 0.6 / 0.4 + 1 - 0.5 / 0.4.
    image = pixels((0.3, 0.4, 0.5), (0.5, 0.6, 0.7))
    red, green, blue = 0.6 / 0.4 + 1 - 0.5 / 0.4, 0.6 / 0.6 + 1 - 0.5 / 0.5, 0.6 / 0.8 + 1 - 0.5 / 0.6
    expected = image * torch.tensor([red, green, blue]).view(1, 3, 1, 1)
    torch.testing.assert_close(apply("temperature", image, 0.2), expected, rtol=0, atol=3e-6)


def test_positive_temperature_is_warmer():
    grey = torch.full((1, 3, 2, 2), 0.5)
    warm = apply("temperature", grey, 0.3)[0, :, 0, 0]
    assert warm[0] > warm[2]


def test_brightness_scales_the_value_of_hsv():
    rgb = [(0.2, 0.5, 0.3), (0.9, 0.1, 0.4), (0.05, 0.05, 0.05)]
    for argument, gain in ((0.5, 2.0), (-0.25, 0.75)):
        expected = []
        for pixel in rgb:
            hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
            expected.append(colorsys.hsv_to_rgb(hue, saturation, value * gain))
        filtered = apply("brightness", pixels(*rgb), argument)
        torch.testing.assert_close(filtered, pixels(*expected).clamp(0, 1), rtol=0, atol=4e-6)


def test_contrast_by_hand():
    image = pixels((0.4, 0.4, 0.4), (0.5, 0.5, 0.5))  # mean 0.45
    spread = 255 / (256 - 127) - 1  # of the argument 0.5: 255 * 0.5 = 127.5 is rounded down
    expected = pixels(*[(0.45 - 0.05 * (1 + spread),) * 3, (0.45 + 0.05 * (1 + spread),) * 3])
    torch.testing.assert_close(apply("contrast", image, 0.5), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(apply("contrast", image, -1.0), torch.full_like(image, 0.45))


def test_smooth_contrast_has_a_gradient_and_agrees_where_the_floor_is_idle():
    image = pixels((0.4, 0.4, 0.4), (0.5, 0.5, 0.5))
    argument = torch.tensor([64 / 255 + 1e-5], requires_grad=True)
    smooth = color.contrast(image, argument, smooth=True)
    torch.testing.assert_close(smooth, color.contrast(image, argument), rtol=0, atol=1e-5)
    smooth[..., 1].sum().backward()
    expected = 3 * 0.05 * 255 * 255 / (256 - 64) ** 2
    assert argument.grad.item() == pytest.approx(expected, rel=1e-3)


def official_saturation(pixel, argument):
    high, low = max(pixel), min(pixel)
    middle = (high + low) / 2
    if argument < 0:
        return [middle + (c - middle) * (1 + argument) for c in pixel]
    strength = (high - low) / ((high + low if middle < 0.5 else 2 - high - low) + 1e-6)
    gain = 1 / ((strength if argument + strength > 1 else 1 - argument) + 1e-6) - 1
    return [min(max(c + (c - middle) * gain, 0.0), 1.0) for c in pixel]


@pytest.mark.parametrize("argument", [-1.0, -0.4, 0.3, 0.8, 1.0])
def test_saturation_equals_its_formula_pixel_by_pixel(argument, image):
    rgb = [*image[0].flatten(1).T.double().tolist(), (0.5, 0.5, 0.5), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)]
    expected = pixels(*[official_saturation(pixel, argument) for pixel in rgb]).float()
    filtered = apply("saturation", pixels(*rgb).float(), argument)
    torch.testing.assert_close(filtered, expected, rtol=0, atol=2e-6)


def test_highlight_and_shadow_by_hand():
    image = pixels((0.25, 0.0, 1.0))
    torch.testing.assert_close(apply("shadow", image, 0.5), image.sqrt(), rtol=0, atol=4e-5)
    torch.testing.assert_close(apply("shadow", image, -1.0), image.square())
    bright = 1 - (1 - image).square()
    torch.testing.assert_close(apply("highlight", image, 1.0), bright)


@pytest.mark.parametrize("name", ["temperature", "contrast"])
def test_given_mean_makes_a_crop_equal_the_frame(name, image):
    mean = image.mean((2, 3)) if name == "temperature" else image.mean((1, 2, 3))
    crop = image[..., 2:6, 1:4]
    inside = apply(name, crop, 0.4, mean=mean)
    torch.testing.assert_close(inside, apply(name, image, 0.4)[..., 2:6, 1:4], rtol=0, atol=1e-6)
    assert (apply(name, crop, 0.4) - inside).abs().max() > 1e-3
