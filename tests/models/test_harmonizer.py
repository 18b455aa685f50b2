import numpy as np
import pytest
import torch
from official_cases import assert_close, load_case, load_official

from harmony_diffusion import color
from harmony_diffusion.errors import CheckpointError, InputError
from harmony_diffusion.models.harmonizer import FILTER_NAMES, Harmonizer

# The ranges the official training draws its arguments from.
RANGES = torch.tensor([0.3, 0.5, 0.5, 0.6, 0.4, 0.4])


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Harmonizer().eval()


@pytest.fixture
def frame():
    """Composite (2, 3, 60, 90) with black, white and extreme colours, soft mask, arguments of both signs."""
    generator = torch.Generator().manual_seed(3)
    composite = torch.rand(2, 3, 60, 90, generator=generator)
    composite = (composite * 1.6 - 0.3).clamp(0, 1)
    mask = torch.zeros(2, 1, 60, 90)
    mask[..., 10:30, 20:60] = 1
    mask[..., 30:33, 20:60] = torch.rand(2, 1, 3, 40, generator=generator)
    filters = (2 * torch.rand(2, 6, generator=generator) - 1) * RANGES
    return composite, mask, filters


def assert_arguments_and_image_match(case):
    model = load_official(Harmonizer(), case)
    with torch.no_grad():
        filters = model.predict_filters(case.composite, case.mask)
        harmonized = model(case.composite, case.mask)
        stages = model.filter_stages(case.composite, filters, case.mask)
        applied = model.apply_filters(case.composite, filters, case.mask)
    np.testing.assert_allclose(filters, case.stored["extra_arguments"], rtol=0, atol=1e-5)
    for image in (harmonized, stages[-1], applied):
        assert_close(image, case.stored["output"], int(case.stored["stride"]))
    return stages


def test_arguments_and_image_equal_the_official_ones():
    assert_arguments_and_image_match(load_case("harmonizer_s11_300x420"))


def test_every_stage_equals_the_official_one(shared):
    case = load_case("harmonizer_s11_256x256", shared / "oracles" / "dev")
    assert_close(torch.stack(assert_arguments_and_image_match(case)), case.stored["extra_stages"], 8)


def test_size_of_the_published_network(model):
    assert model.num_parameters() == 4_726_882
    assert len(model.state_dict()) == 392


def test_converter_knows_every_key_and_no_other(model):
    official = load_case("harmonizer_s11_300x420").official
    assert Harmonizer.convert_official(official).keys() == model.state_dict().keys()
    for stray in ("backbone._fc.weight", "regressor.h.weight", "backbone._blocks.x._bn1.bias", "mean"):
        with pytest.raises(CheckpointError, match=stray):
            Harmonizer.convert_official({**official, stray: torch.zeros(1)})
    partial = Harmonizer.convert_official({k: v for k, v in official.items() if "_conv_fg" not in k})
    with pytest.raises(RuntimeError, match="Missing key"):
        Harmonizer().load_state_dict(partial, strict=True)


def test_unknown_encoder_is_refused():
    with pytest.raises(InputError, match="efficientnet_lite0"):
        Harmonizer(encoder="resnet")


def test_frame_at_working_size_is_not_resampled(model):
    composite, mask = torch.rand(1, 3, 256, 256), torch.rand(1, 1, 256, 256)
    with torch.no_grad():
        direct = model.regressor(model.backbone(composite, mask).mean((2, 3)))
        torch.testing.assert_close(model.predict_filters(composite, mask), direct, rtol=0, atol=1e-6)


def test_filters_act_one_after_another_on_the_whole_frame(model, frame):
    composite, mask, filters = frame
    image = composite
    for i, name in enumerate(FILTER_NAMES):
        image = getattr(color, name)(image, filters[:, i])
        expected = image * mask + composite * (1 - mask)
        stage = model.filter_stages(composite, filters, mask)[i]
        torch.testing.assert_close(stage, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inference_path_equals_the_differentiable_one(dtype, seed, model, frame, monkeypatch):
    composite, mask = (tensor.to(dtype) for tensor in frame[:2])
    monkeypatch.setattr("harmony_diffusion.models.harmonizer._CHUNK", 1000)  # several, the last cut short
    draws = 2 * torch.rand(2, 6, generator=torch.Generator().manual_seed(seed)) - 1
    filters = (draws * RANGES).to(dtype).requires_grad_()
    slow = model.apply_filters(composite, filters, mask)
    assert slow.requires_grad
    with torch.no_grad():
        fast = model.apply_filters(composite, filters, mask)
    difference = (fast - slow.detach()).abs()
    if dtype == torch.float64:
        assert difference.max() < 1e-8
    else:
        # Power laws are infinitely steep at black and white: the last bit of such a pixel shows.
        assert (difference > 2e-6).float().mean() < 1e-3 and difference.max() < 5e-5


@pytest.mark.parametrize("value", [-2.0, -1.0, 0.0, 1.0])
def test_inference_path_equals_the_differentiable_one_at_the_limits(value, model, frame):
    composite, mask, _ = frame
    for i in range(6):
        filters = torch.zeros(2, 6)
        filters[:, i] = value
        slow = model.filter_stages(composite, filters, mask)[-1]
        # Contrast multiplies by up to 255 here, rounding errors included.
        torch.testing.assert_close(model.apply_filters(composite, filters, mask), slow, rtol=0, atol=4e-5)


def test_statistics_are_those_the_filters_find(model, frame):
    composite, _, filters = frame
    warm = color.temperature(composite, filters[:, 0])
    expected = color.brightness(warm, filters[:, 1]).mean((1, 2, 3))
    statistics = model.frame_statistics(composite, filters)
    torch.testing.assert_close(statistics[:, :3], composite.mean((2, 3)))
    torch.testing.assert_close(statistics[:, 3], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("argument", [-0.5, 0.5])
def test_packed_foreground_is_rendered_as_in_the_frame(argument, model, frame):
    composite, mask, filters = (tensor[:1] for tensor in frame)
    filters = filters.clone()
    filters[:, 1] = argument  # brightening clips the background too, which the mean must know of
    whole = model.apply_filters(composite, filters, mask)
    inside = mask[0, 0] > 0
    pixels, weights = composite[:, :, inside][:, :, None], mask[:, :, inside][:, :, None]
    statistics = model.frame_statistics(composite, filters)
    for packed in (
        model.apply_filters(pixels, filters, weights, statistics),
        model.filter_stages(pixels, filters, weights, statistics)[-1],
    ):
        torch.testing.assert_close(packed[:, :, 0], whole[:, :, inside], rtol=0, atol=2e-6)
    without = model.apply_filters(pixels, filters, weights)
    assert (without[:, :, 0] - whole[:, :, inside]).abs().max() > 1e-3


def test_pixels_stored_channels_last_are_rendered_alike(model, frame):
    composite, mask, filters = frame
    strided = composite.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    rendered = model.apply_filters(strided, filters, mask)
    torch.testing.assert_close(rendered, model.apply_filters(composite, filters, mask), rtol=0, atol=1e-6)


def test_background_and_input_are_untouched_by_inference(model, frame):
    composite, mask, filters = frame
    before = composite.clone()
    rendered = model.apply_filters(composite, filters, mask)
    assert torch.equal(composite, before)
    background = (mask == 0).expand_as(composite)
    assert torch.equal(rendered[background], composite[background])


def test_smooth_stages_give_positive_contrast_a_gradient(model, frame):
    composite, mask, filters = frame
    for smooth in (False, True):
        arguments = filters.abs().requires_grad_()
        model.filter_stages(composite, arguments, mask, smooth=smooth)[-1].sum().backward()
        assert ((arguments.grad != 0).all(0) == torch.tensor([True, True, smooth, True, True, True])).all()


def test_training_mode_leaves_out_the_floor_of_contrast(frame):
    composite, mask, _ = frame
    model = Harmonizer()
    head = model.regressor.heads[2]
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.constant_(head.bias, 0.3)
    gradients = []
    for training in (False, True):
        model.zero_grad()
        model.train(training)(composite, mask).sum().backward()
        gradients.append(head.bias.grad.item())
    assert gradients[0] == 0 and gradients[1] != 0


def test_forward_pastes_the_prediction_on_the_background(model, frame):
    composite, mask, _ = frame
    with torch.no_grad():
        harmonized, prediction = model(composite, mask), model.predict(composite, mask)
    expected = prediction * mask + composite * (1 - mask)
    torch.testing.assert_close(harmonized, expected, rtol=0, atol=1e-6)
    assert (prediction - composite)[(mask == 0).expand_as(composite)].abs().max() > 1e-3


def test_exported_program_computes_the_same(model, frame):
    composite, mask, _ = frame
    program = torch.export.export(model, (composite, mask))
    with torch.no_grad():
        torch.testing.assert_close(
            program.module()(composite, mask), model(composite, mask), rtol=0, atol=1e-5
        )
