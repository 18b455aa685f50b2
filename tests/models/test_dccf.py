import colorsys

import pytest
import torch
from network_checks import (
    assert_bfloat16_is_close,
    assert_checkpointing_changes_memory_only,
    assert_compiles_without_graph_breaks,
    assert_converter_is_strict,
    picture_and_mask,
)
from official_cases import assert_close, assert_matches_official, load_case, load_official
from overfit import overfit

from harmony_diffusion.color import hsv_to_rgb, rgb_to_hsv
from harmony_diffusion.errors import InputError
from harmony_diffusion.models.dccf import DCCF, filter_hue, filter_luminance, filter_saturation
from harmony_diffusion.models.pct_net import resize_maps

both = pytest.mark.parametrize("base", ["idih", "is2am"])
BY_COLUMN = [0, 3, 6, 1, 4, 7, 2, 5, 8, 9, 10, 11]
IDENTITY = [1.0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]


@both
def test_matches_a_small_case_of_the_official_code(base):
    assert_matches_official(DCCF(base), load_case(f"dccf_{base}_s11_448x576"))


@both
@pytest.mark.parametrize("size", ["256x256", "448x576"])
def test_matches_the_official_code(base, size, shared):
    assert_matches_official(DCCF(base), load_case(f"dccf_{base}_s11_{size}", shared / "oracles" / "dev"))


@both
def test_maps_and_hue_stage_are_the_official_ones(base, shared):
    case = load_case(f"dccf_{base}_s11_256x256", shared / "oracles" / "dev")
    model = load_official(DCCF(base), case)
    with torch.no_grad():
        maps = model.predict_filters(case.composite, case.mask)
        turned = model.apply_stages(case.composite, maps)[2]
    assert_close(maps[:, BY_COLUMN], case.stored["extra_filters_hue"], 8)
    assert_close(maps[:, 12:21], case.stored["extra_filters_lum"], 8)
    assert_close(maps[:, 21:22], case.stored["extra_filters_sat"], 8)
    assert_close(turned * case.mask + case.composite * (1 - case.mask), case.stored["extra_stage3_masked"], 4)


@pytest.mark.parametrize(("base", "count"), [("idih", 8_302_307), ("is2am", 2_186_462)])
def test_has_the_official_number_of_parameters(base, count):
    assert DCCF(base).num_parameters() == count


@both
def test_converter_is_strict(base):
    assert_converter_is_strict(DCCF(base), load_case(f"dccf_{base}_s11_448x576").official)


def test_refuses_unknown_base_and_thumbnail():
    with pytest.raises(InputError, match="base"):
        DCCF("vit")
    with pytest.raises(InputError, match="thumbnail_size"):
        DCCF("idih", thumbnail_size=128)


def pixels(count: int = 64) -> torch.Tensor:
    return torch.rand(1, 3, 1, count, generator=torch.Generator().manual_seed(0))


def test_filters_without_effect_give_the_picture_back():
    rgb = pixels()
    hsv = rgb_to_hsv(rgb)
    curve = torch.tensor([1.0] + 8 * [0.0]).view(1, 9, 1, 1).expand(-1, -1, 1, 64)
    affine = torch.tensor(IDENTITY).view(1, 12, 1, 1).expand(-1, -1, 1, 64)
    for changed in (
        filter_luminance(hsv, curve),
        filter_saturation(hsv, torch.zeros(1, 1, 1, 64)),
        filter_hue(hsv, affine),
    ):
        torch.testing.assert_close(hsv_to_rgb(changed), rgb, rtol=0, atol=1e-5)


def test_each_filter_changes_its_own_coordinate_only():
    hsv = rgb_to_hsv(pixels())
    brighter = filter_luminance(hsv, torch.full((1, 9, 1, 64), 0.1))
    paler = filter_saturation(hsv, torch.full((1, 1, 1, 64), -0.5))
    swapped = filter_hue(hsv, torch.tensor([0.0, 1, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0]).view(1, 12, 1, 1))
    for changed, coordinate in ((swapped, 0), (paler, 1), (brighter, 2)):
        others = [i for i in range(3) if i != coordinate]
        assert torch.equal(changed[:, others], hsv[:, others])
        assert (changed - hsv)[:, coordinate].abs().mean() > 0.05
    assert (paler[:, 1] < hsv[:, 1]).all()
    # R, G, B <- G, B, R turns every hue by a third of the circle.
    turn = (swapped - hsv)[:, 0].remainder(1)
    torch.testing.assert_close(turn, torch.full_like(turn, 2 / 3), rtol=0, atol=1e-5)


def test_luminance_curve_has_a_slope_for_each_eighth():
    value = torch.tensor([0.0, 0.125, 0.25, 0.5])
    hsv = torch.stack((torch.zeros(4), torch.zeros(4), value)).view(1, 3, 1, 4)
    parameters = torch.tensor([1.0, 0.5, 0, 0, 0, 0, 0, 0, 0.7]).view(1, 9, 1, 1)
    expected = 0.2 + value + 0.5 * (value - 0.125).clamp_min(0)  # the offset stops at 0.2
    torch.testing.assert_close(filter_luminance(hsv, parameters)[0, 2, 0], expected)


def test_hsv_agrees_with_the_standard_library():
    rgb = torch.cat(
        (pixels(), torch.tensor([[0.0, 0, 0], [1, 1, 1], [1, 0, 0], [0, 1, 1]]).T[None, :, None]), 3
    )
    hsv = rgb_to_hsv(rgb)
    expected = torch.tensor([colorsys.rgb_to_hsv(*p) for p in rgb[0, :, 0].T.tolist()]).T
    torch.testing.assert_close(hsv[0, :, 0], expected, rtol=0, atol=2e-6)
    torch.testing.assert_close(hsv_to_rgb(hsv), rgb, rtol=0, atol=2e-6)


@both
def test_windows_of_image_and_maps_give_the_same_pixels(base):
    torch.manual_seed(0)
    model = DCCF(base).eval()
    composite, mask = picture_and_mask(1, 96, 96)
    with torch.no_grad():
        filters = model.predict_filters(composite, mask)
        whole = model.apply_filters(composite, filters, mask)
        maps = resize_maps(filters, composite, model.filter_upsampling)
        window = (slice(None), slice(None), slice(20, 61), slice(11, 80))
        part = model.apply_filters(composite[window], maps[window], mask[window])
    torch.testing.assert_close(part, whole[window], rtol=0, atol=1e-6)


@pytest.mark.parametrize("detach", [False, True])
def test_detached_refinement_teaches_no_other_filter(detach):
    model = DCCF("is2am", thumbnail_size=32, detach_refinement=detach)
    composite, mask = picture_and_mask(2, 32, 32)
    model(composite, mask).square().sum().backward()
    assert model.to_filters.weight.grad.any() != detach
    assert model.to_refinement.weight.grad.abs().sum() > 0
    model.apply_stages(composite, model.predict_filters(composite, mask))[2].square().sum().backward()
    assert model.to_filters.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_gradient_is_finite_on_grey(level):
    torch.manual_seed(0)
    model = DCCF("is2am", thumbnail_size=32)
    composite = torch.full((2, 3, 32, 32), level, requires_grad=True)
    model(composite, torch.ones(2, 1, 32, 32)).square().sum().backward()
    assert torch.isfinite(composite.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_runs_in_bfloat16():
    torch.manual_seed(0)
    assert_bfloat16_is_close(DCCF("is2am", thumbnail_size=32), *picture_and_mask(), atol=0.03)


@both
def test_gradient_checkpointing_changes_nothing(base):
    assert_checkpointing_changes_memory_only(
        DCCF(base, thumbnail_size=256 if base == "idih" else 32), *picture_and_mask(), saving=2
    )


@pytest.mark.slow
@both
def test_compiles_without_graph_break(base):
    assert_compiles_without_graph_breaks(DCCF(base), *picture_and_mask())


@pytest.mark.slow
@both
def test_learns_one_real_picture(base, shared):
    torch.manual_seed(0)
    thumbnail_size, size, steps, lr = {"idih": (256, 32, 400, 6e-3), "is2am": (64, 64, 500, 3e-3)}[base]
    model = DCCF(base, thumbnail_size=thumbnail_size)
    before, after, _ = overfit(model, size=size, steps=steps, shared=shared, lr=lr)
    assert before < 25 and after > 40
