"""What a training step minimises."""

import pytest
import torch

from harmony_diffusion.data.synthesis.composites import reversed_filters
from harmony_diffusion.errors import InputError
from harmony_diffusion.models import create_model
from harmony_diffusion.training.losses import fn_mse, parameter_smoothness
from harmony_diffusion.training.objectives import ForegroundObjective, HarmonizerObjective


@pytest.fixture
def pct_net():
    torch.manual_seed(0)
    return create_model("pct_net", thumbnail_size=32).eval()


def test_foreground_objective_scores_the_result_or_the_whole_frame(tiny_sample, pct_net):
    composite, mask = tiny_sample
    real = composite.flip(-1)
    losses = ForegroundObjective(pct_net, min_area=50)(composite, mask, real)
    expected = fn_mse(pct_net(composite, mask), real, mask, 50).mean()
    torch.testing.assert_close(losses["loss"], expected)
    raw = ForegroundObjective(pct_net, min_area=50, raw_output=True)(composite, mask, real)
    expected = fn_mse(pct_net.predict(composite, mask), real, mask, 50).mean()
    torch.testing.assert_close(raw["loss"], expected)
    assert raw["loss"] != losses["loss"]


@pytest.mark.parametrize("stride", [1, 2])
def test_with_an_opacity_the_error_counts_on_opaque_pixels_alone(tiny_sample, pct_net, stride):
    composite, mask = tiny_sample
    real, opacity = composite.flip(-1), torch.zeros_like(mask)
    opacity[..., 8:24, 8:24] = 1.0
    opacity[..., 7, 8:24] = 0.5
    objective = ForegroundObjective(pct_net, min_area=stride**2, stride=stride)
    losses = objective(composite, mask, real, opacity)
    filters = pct_net.predict_filters(composite, mask)
    some = composite[..., ::stride, ::stride]
    harmonized = pct_net.apply_filters(some, filters, torch.ones_like(some[:, :1]))
    square = (..., slice(8 // stride, 24 // stride), slice(8 // stride, 24 // stride))
    expected = (harmonized[square] - real[..., ::stride, ::stride][square]).square().mean()
    torch.testing.assert_close(losses["loss"], expected)


def test_smoothness_is_added_with_its_weight(tiny_sample, pct_net):
    composite, mask = tiny_sample
    plain = ForegroundObjective(pct_net)(composite, mask, composite)["loss"]
    losses = ForegroundObjective(pct_net, smoothness=0.1)(composite, mask, composite)
    smoothness = parameter_smoothness(pct_net.predict_filters(composite, mask)).mean()
    torch.testing.assert_close(losses["smoothness"], smoothness)
    torch.testing.assert_close(losses["loss"], plain + 0.1 * smoothness)


def test_root_is_taken_of_each_image(tiny_sample, pct_net):
    composite, mask = tiny_sample
    real = composite.flip(-1)
    losses = ForegroundObjective(pct_net, root=True)(composite, mask, real)
    errors = fn_mse(pct_net(composite, mask), real, mask)
    torch.testing.assert_close(losses["loss"], (errors + 1.5e-5).sqrt().mean())
    torch.testing.assert_close(losses["fn_mse"], errors.mean())


def test_stride_scores_some_of_the_pixels_at_their_own_place(tiny_sample, pct_net):
    composite, mask = tiny_sample
    real = composite.flip(-1)
    losses = ForegroundObjective(pct_net, min_area=400, stride=2)(composite, mask, real)
    filters = pct_net.predict_filters(composite, mask)
    some = [image[..., ::2, ::2] for image in (composite, mask, real)]
    expected = fn_mse(pct_net.apply_filters(some[0], filters, some[1]), some[2], some[1], 100).mean()
    torch.testing.assert_close(losses["loss"], expected)
    whole = ForegroundObjective(pct_net, min_area=400)(composite, mask, real)
    assert losses["loss"].item() == pytest.approx(whole["loss"].item(), rel=0.2)


def test_smoothness_without_maps_and_stages_without_filters_are_refused(pct_net):
    with pytest.raises(InputError, match="parameter maps"):
        ForegroundObjective(create_model("idih", depth=4, base_channels=4), smoothness=0.1)
    with pytest.raises(InputError, match="filter stages"):
        HarmonizerObjective(pct_net)


@pytest.fixture
def harmonizer():
    torch.manual_seed(0)
    return create_model("harmonizer_lite").eval()


def test_harmonizer_objective_is_the_sum_of_its_streams(tiny_sample, harmonizer):
    real, mask = tiny_sample
    composite, targets = reversed_filters(real[:1], mask[:1], torch.tensor([5]))
    composites = torch.cat((composite, real[1:] * 0.8))
    losses = HarmonizerObjective(harmonizer)(composites, mask, real, targets)
    # The fine stream is 1 by its scaling; ten stage losses of the coarse one, worked out here.
    with torch.no_grad():
        harmonized = harmonizer.filter_stages(
            composites, harmonizer.predict_filters(composites, mask), mask, smooth=True
        )[-1]
    squared = (harmonized[1:] - real[1:]).square()
    coarse = 10 * (((squared + 1e-6).sqrt() + 10 * squared) * mask[1:]).sum() / mask[1:].sum()
    torch.testing.assert_close(losses["coarse"], coarse, rtol=1e-4, atol=0)
    torch.testing.assert_close(losses["loss"], 1 + coarse, rtol=1e-4, atol=0)
    losses["loss"].backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in harmonizer.parameters())


def test_targets_of_the_fine_stream_undo_one_filter_after_another(tiny_sample):
    real, mask = tiny_sample
    composite, targets = reversed_filters(real, mask, torch.tensor([1, 2]))
    assert len(targets) == 6 and torch.equal(targets[-1], real)
    errors = [fn_mse(image, real, mask).mean().item() for image in (composite, *targets)]
    assert errors[0] > errors[-1] == 0
