"""ColorGrid: what its network reads, what its grid does, and the weights that come with the package."""

import pytest
import torch
from overfit import overfit

from harmony_diffusion.errors import InputError
from harmony_diffusion.models import create_model
from harmony_diffusion.models.color_grid import (
    ColorGrid,
    RimPairs,
    region_moments,
    region_statistics,
    region_sums,
    tone_quantiles,
)

SMALL = {"encoder_size": 64, "channels": 32, "depth": 1, "heads": 2}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return create_model("color_grid", **SMALL).eval()


@pytest.fixture
def trained(model):
    """The model with random heads, so that it changes pictures."""
    for layer in (model.to_local, model.to_global):
        torch.nn.init.normal_(layer.weight, std=0.02)
    return model


def test_parameters_and_size():
    model = create_model("color_grid")
    assert model.num_parameters() == 4_160_874
    # Stored in half precision the weights stay below 12 MB.
    assert 2 * model.num_parameters() < 12e6


def test_fresh_model_changes_nothing(model, tiny_sample):
    composite, mask = tiny_sample
    assert torch.equal(model(composite, mask), composite)
    assert torch.count_nonzero(model.predict_filters(composite, mask)) == 0


def test_a_mask_that_covers_everything_changes_nothing(trained, tiny_sample):
    composite, mask = tiny_sample
    mask = torch.stack((torch.ones_like(mask[0]), mask[1]))
    filters = trained.predict_filters(composite, mask)
    assert not filters[0].any() and filters[1].any()


def test_border_dropout_hides_the_border_in_training_alone(trained, tiny_sample):
    composite, mask = tiny_sample
    trained.border_dropout = 1.0
    seen = trained.predict_filters(composite, mask)
    hidden = trained.train().predict_filters(composite, mask)
    for part in (*trained.borders, trained.rim):
        for parameter in part.parameters():
            parameter.data.zero_()
    assert not torch.allclose(seen, hidden)
    torch.testing.assert_close(trained.predict_filters(composite, mask), hidden)


def test_frozen_layers_run_in_half_precision_in_training_alone(model, tiny_sample):
    composite, _ = tiny_sample
    image = torch.nn.functional.interpolate(composite, (64, 64))
    exact = model.backbone(image)
    for name, parameter in model.backbone.named_parameters():
        parameter.requires_grad_(not name.startswith(("stem.", "blocks.0.", "blocks.1.")))
    assert all(torch.equal(a, b) for a, b in zip(exact, model.backbone(image), strict=True))
    rounded = model.backbone.train()(image)
    assert rounded[-1].dtype == torch.float32 and rounded[-1].requires_grad
    for level, wanted in zip(rounded, exact, strict=True):
        assert not torch.equal(level, wanted)
        assert (level - wanted).std() < 0.05 * wanted.std()


def test_tone_quantiles_are_those_of_object_ring_and_rest():
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, 64, 64, generator=generator).square()
    mask = torch.zeros(2, 1, 64, 64)
    mask[:, :, 20:44, 16:40] = 1
    found = tone_quantiles(image, mask).view(2, 3, 4, 7)
    small, object_ = image[..., ::2, ::2], mask[:, 0, ::2, ::2] > 0
    around = torch.zeros_like(object_)
    around[:, 10 - 4 : 22 + 4, 8 - 4 : 20 + 4] = True
    levels = torch.tensor((0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99))
    luma = (small * torch.tensor((0.299, 0.587, 0.114)).view(3, 1, 1)).sum(1, keepdim=True)
    for region, inside in enumerate((object_, around & ~object_, ~around)):
        for channel, values in enumerate(torch.cat((small, luma), 1).unbind(1)):
            wanted = values[1][inside[1]].quantile(levels) * 2 - 1
            torch.testing.assert_close(found[1, region, channel], wanted, rtol=0, atol=2 * 2 / 64)
    empty = tone_quantiles(image, torch.zeros_like(mask)).view(2, 3, 28)
    assert (empty[:, :2] == 0).all() and (empty[:, 2] != 0).any()


def test_filters_are_a_matrix_on_seven_functions_of_the_color(model):
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, 5, 7, generator=generator)
    filters = torch.randn(1, 21, 5, 7, generator=generator) * 0.05
    mask = torch.rand(1, 1, 5, 7, generator=generator)
    result = model.apply_filters(image, filters, mask)
    for y in range(5):
        for x in range(7):
            color = image[0, :, y, x]
            functions = torch.cat((color - 0.5, color * (1 - color), torch.ones(1)))
            wanted = (color + filters[0, :, y, x].view(3, 7) @ functions).clamp(0, 1)
            wanted = color + mask[0, 0, y, x] * (wanted - color)
            torch.testing.assert_close(result[0, :, y, x], wanted, rtol=0, atol=1e-6)


def test_a_window_with_its_window_of_the_maps_gives_the_same(trained, tiny_sample):
    composite, mask = tiny_sample
    maps = torch.nn.functional.interpolate(
        trained.predict_filters(composite, mask), composite.shape[-2:], mode="bilinear"
    )
    whole = trained.apply_filters(composite, maps, mask)
    window = (..., slice(8, 30), slice(5, 40))
    part = trained.apply_filters(composite[window], maps[window], mask[window])
    torch.testing.assert_close(part, whole[window], rtol=0, atol=1e-6)


def test_statistics_are_those_of_the_pixels_of_each_region():
    generator = torch.Generator().manual_seed(2)
    image = torch.rand(1, 3, 24, 24, generator=generator)
    mask = (torch.rand(1, 1, 24, 24, generator=generator) > 0.6).float()
    statistics = region_statistics(image, mask)
    assert statistics.shape == (1, 86)
    pixels, inside = image[0, :, ::2, ::2].flatten(1), mask[0, 0, ::2, ::2].flatten() > 0
    for part, chosen in ((statistics[0, :42], inside), (statistics[0, 42:84], ~inside)):
        colors = pixels[:, chosen].double()
        logarithm = (colors + 0.02).log()
        covariance = torch.cov(colors, correction=0)
        bins = [[(1 - (8 * c - k).abs()).clamp_min(0).mean() for k in range(9)] for c in colors]
        expected = torch.cat(
            (
                2 * colors.mean(1) - 1,
                4 * colors.std(1, correction=0),
                logarithm.mean(1) + 1,
                2 * logarithm.std(1, correction=0),
                20 * covariance[[0, 0, 1], [1, 2, 2]],
                3 * torch.tensor(bins).flatten(),
            )
        )
        torch.testing.assert_close(part.double(), expected, rtol=1e-3, atol=1e-3)
    assert statistics[0, 84] == pytest.approx(inside.float().mean().item())


@pytest.mark.parametrize("size", [(24, 40), (33, 47), (330, 400)])
def test_sums_are_averages_of_small_cells(size):
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(2, 3, *size, generator=generator)
    mask = torch.rand(2, 1, *size, generator=generator).round()
    mask[..., :9] = 0.5  # a soft edge is of neither region
    sums = region_sums(image, mask)
    assert sums.shape == (2, 8, *(min(length // 2, 160) for length in size))
    parts = torch.cat((mask == 1, image * (mask == 1), mask == 0, image * (mask == 0)), 1)
    expected = torch.nn.functional.adaptive_avg_pool2d(parts, sums.shape[2:])
    torch.testing.assert_close(sums, expected, rtol=0, atol=1e-6)


def test_moments_hold_the_means_of_each_region():
    image, mask = torch.full((1, 3, 40, 40), 0.2), torch.zeros(1, 1, 40, 40)
    image[..., 10:20, :], mask[..., 10:20, :] = 0.6, 1
    moments = region_moments(region_sums(image, mask), 4)[0, :, :, 0]
    for first, row, color in ((0, 1, 0.6), (7, 0, 0.2), (7, 3, 0.2)):
        expected = torch.tensor([1.0, *[color] * 3, *[color**2] * 3])
        torch.testing.assert_close(moments[first : first + 7, row], expected)
    assert not moments[7:, 1].any() and not moments[:7, 0].any()


def test_rim_is_all_that_rim_pairs_see():
    torch.manual_seed(0)
    rim, image, mask = RimPairs(), torch.rand(1, 3, 64, 64), torch.zeros(1, 1, 64, 64)
    mask[..., 32:] = 1
    far, near = image.clone(), image.clone()
    far[..., :20], far[..., 44:] = 0, 1
    near[..., 33] = 0
    local, overall = rim(region_sums(image, mask), 4)
    assert local.shape == (1, 49, 4, 4) and overall.shape == (1, 49)
    assert local[:, -1, :, 1:3].all() and not local[:, -1, :, [0, 3]].any()
    torch.testing.assert_close(rim(region_sums(far, mask), 4)[1], overall)
    assert (rim(region_sums(near, mask), 4)[1] - overall).abs().max() > 1e-3


def test_rim_pairs_average_over_the_cells_at_the_border():
    torch.manual_seed(0)
    rim, image, mask = RimPairs(), torch.full((1, 3, 64, 64), 0.3), torch.zeros(1, 1, 64, 64)
    mask[..., 32:], image[..., 32:] = 1, 0.7
    local, overall = rim(region_sums(image, mask), 4)
    near, log_ratio = torch.tensor([0.4] * 3 + [-0.4] * 3), torch.tensor(0.73 / 0.33).log()
    middle = slice(1, 3)  # away from the frame, where less is near
    # Two columns of cells touch the border, with two thirds of one side near and one third of the other.
    descriptors = [
        torch.cat(
            (near, near, log_ratio.expand(3), torch.zeros(6), torch.tensor([a, 1 - a, b, 1 - b])),
        )
        for a, b in ((2 / 3, (45 - 6) / 72), (1 / 3, (36 - 3) / 72))
    ]
    with torch.no_grad():
        expected = torch.stack([rim.layers(descriptor) for descriptor in descriptors]).mean(0)
    found = local[0, :-1, middle, middle].mean((1, 2))
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-3)


def test_foreground_is_judged_by_the_background(trained, tiny_sample):
    composite, mask = tiny_sample
    other = torch.where(mask > 0, composite, composite.flip(1) * 0.3)
    first, second = (trained.predict_filters(image, mask) for image in (composite, other))
    assert (first - second).abs().max() > 1e-4


def test_average_of_mirrored_pictures_mirrors_with_them(trained, tiny_sample):
    composite, mask = tiny_sample
    trained.average_mirrored = True
    filters = trained.predict_filters(composite, mask)
    mirrored = trained.predict_filters(composite.flip(3), mask.flip(3)).flip(3)
    torch.testing.assert_close(filters, mirrored, rtol=0, atol=1e-5)


@pytest.mark.parametrize("config", [{"encoder_size": 100}, {"channels": 100, "heads": 3}])
def test_sizes_that_do_not_fit_are_refused(config):
    with pytest.raises(InputError, match="must be a multiple"):
        ColorGrid(**config)


@pytest.mark.slow
def test_overfits_one_picture(shared):
    torch.manual_seed(0)
    before, after, _ = overfit(create_model("color_grid", **SMALL), 64, 600, shared, lr=1e-3)
    assert before < 25 and after > 40


def test_weights_move_to_another_encoder_size():
    model = ColorGrid(encoder_size=64, channels=32, depth=1, heads=2).eval()
    other = model.with_encoder_size(128)
    assert other.config.encoder_size == 128 and not other.training
    assert other.position.shape == (64, 32)
    assert torch.allclose(other.position.mean(0), model.position.mean(0), atol=1e-6)
    back = other.with_encoder_size(64)
    for name, weight in model.state_dict().items():
        if name != "position":
            assert torch.equal(weight, back.state_dict()[name]), name
    with pytest.raises(InputError, match="multiple of 32"):
        model.with_encoder_size(100)
