import network_checks as checks
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from official_cases import assert_close, assert_matches_official, load_case, load_official
from overfit import foreground_psnr, overfit, real_pair

from harmony_diffusion.errors import InputError
from harmony_diffusion.models.s2cr_net import S2CRNet, apply_curves, crop_foreground

CASES = [
    ("squeezenet", 2, "s2crnet_squeeze_s11_256x256"),
    ("squeezenet", 2, "s2crnet_squeeze_s11_256x256_b2"),
    ("squeezenet", None, "s2crnet_squeeze_nolabel_s11_256x256"),
    ("vgg16", 2, "s2crnet_vgg_s11_256x256"),
]
every_case = pytest.mark.parametrize(("base", "label", "name"), CASES)
both = pytest.mark.parametrize("base", ["squeezenet", "vgg16"])


def random_slopes(seed=0):
    return torch.rand(2, 192, generator=torch.Generator().manual_seed(seed)) + 0.2


def test_matches_a_small_case_of_the_official_code():
    assert_matches_official(S2CRNet(label=2), load_case("s2crnet_squeeze_s11_256x256_b2"))


@every_case
def test_matches_the_official_code(base, label, name, shared):
    assert_matches_official(S2CRNet(base, label), load_case(name, shared / "oracles" / "dev"))


@every_case
def test_curves_and_first_stage_are_the_official_ones(base, label, name, shared):
    case = load_case(name, shared / "oracles" / "dev")
    model = load_official(S2CRNet(base, label), case)
    with torch.no_grad():
        slopes = model.predict_filters(case.composite, case.mask)
        first, _ = model.apply_stages(case.composite, slopes, case.mask)
    for ours, stored in zip(slopes.chunk(2, 1), ("extra_curve1", "extra_curve2"), strict=True):
        np.testing.assert_allclose(ours, case.stored[stored], rtol=1e-4, atol=1e-4)
    if "extra_first" in case.stored:
        assert_close(first, case.stored["extra_first"], 8)


@pytest.mark.parametrize(
    ("base", "count", "with_label"),
    [("squeezenet", 1_145_472, 948_480), ("vgg16", 15_334_848, 15_137_856)],
)
def test_has_the_official_number_of_parameters(base, count, with_label):
    model = S2CRNet(base, label=2)
    assert model.num_parameters() == S2CRNet(base).num_parameters() == count
    assert model.num_parameters(only_trainable=True) == with_label


def test_converter_is_strict():
    checks.assert_converter_is_strict(S2CRNet(), load_case("s2crnet_squeeze_s11_256x256_b2").official)


def test_label_of_saved_weights_can_be_chosen(tmp_path):
    torch.manual_seed(0)
    S2CRNet(thumbnail_size=32).save_pretrained(tmp_path)
    composite, mask = checks.picture_and_mask()
    with torch.no_grad():
        plain, second, third = (
            S2CRNet.from_pretrained(tmp_path, label=label).eval().predict_filters(composite, mask)
            for label in (None, 2, 3)
        )
    assert not torch.allclose(plain, second) and not torch.allclose(second, third)


def test_refuses_unknown_base_and_label():
    with pytest.raises(InputError, match="base"):
        S2CRNet("resnet")
    with pytest.raises(InputError, match="label"):
        S2CRNet(label=5)


def test_curve_is_the_sum_of_the_paper():
    slopes = random_slopes()
    image = torch.linspace(0, 1, 501).expand(2, 3, 1, 501)
    i = torch.arange(64).double()[:, None] / 64
    pieces = (image[0, 0].double() - i).clamp(0, 1 / 64)  # (64, 501)
    parameters = slopes.double().view(2, 3, 64)
    expected = 64 / parameters.sum(2, keepdim=True) * (parameters @ pieces)
    torch.testing.assert_close(apply_curves(image, slopes)[:, :, 0].double(), expected, rtol=0, atol=1e-6)


def test_curve_keeps_black_and_white_and_equal_slopes_keep_everything():
    ends = apply_curves(torch.tensor([0.0, 1.0, -1.0, 2.0]).expand(2, 3, 1, 4), random_slopes())
    torch.testing.assert_close(ends, torch.tensor([0.0, 1, 0, 1]).expand(2, 3, 1, 4), rtol=0, atol=1e-6)
    image = torch.rand(2, 3, 8, 9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(apply_curves(image, torch.full((2, 192), 0.3)), image, rtol=0, atol=1e-6)


def test_undefined_curve_is_the_identity_and_has_a_finite_gradient():
    image = torch.rand(2, 3, 8, 9, generator=torch.Generator().manual_seed(0))
    alternating = torch.tensor([1.0, -1.0]).repeat(2, 96).requires_grad_()
    for slopes in (alternating, torch.zeros(2, 192, requires_grad=True)):
        bent = apply_curves(image, slopes)
        torch.testing.assert_close(bent, image, rtol=0, atol=1e-6)
        bent.sum().backward()
        assert torch.isfinite(slopes.grad).all()


def test_crop_is_the_resized_bounding_box():
    image = torch.rand(3, 3, 50, 70, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(3, 1, 50, 70)
    mask[0, :, 11, 20:60], mask[0, :, 5:31, 33] = 1, 0.2
    mask[1, :, 49, 69] = 1
    boxes = (slice(5, 31), slice(20, 60)), (slice(49, 50), slice(69, 70)), (slice(None), slice(None))
    cropped = crop_foreground(image, mask, 40)
    for i, (rows, columns) in enumerate(boxes):
        expected = F.interpolate(image[i : i + 1, :, rows, columns], (40, 40), mode="bilinear")
        torch.testing.assert_close(cropped[i : i + 1], expected, rtol=0, atol=1e-5)


def test_prediction_of_an_empty_mask_is_the_composite():
    composite, mask = checks.picture_and_mask(2, 48, 48)
    with torch.no_grad():
        assert torch.equal(S2CRNet(thumbnail_size=32).predict(composite, 0 * mask), composite)


def test_packed_pixels_give_the_same_pixels():
    torch.manual_seed(0)
    model = S2CRNet(thumbnail_size=32).eval()
    composite, mask = checks.picture_and_mask(1, 64, 64)
    inside, slopes = mask[0, 0] > 0, torch.cat((random_slopes(), random_slopes(1)), 1)[:1]
    with torch.no_grad():
        packed = model.apply_filters(
            composite[..., inside][:, :, None], slopes, mask[..., inside][:, :, None]
        )
        whole = model.apply_filters(composite, slopes, mask)
    torch.testing.assert_close(packed[:, :, 0], whole[..., inside], rtol=0, atol=1e-6)


@both
def test_fresh_network_starts_near_the_identity(base):
    torch.manual_seed(0)
    composite, mask = checks.picture_and_mask()
    with torch.no_grad():
        change = S2CRNet(base, thumbnail_size=64)(composite, mask) - composite
    assert 1e-5 < change.abs().max() < 0.3


@both
def test_runs_in_bfloat16(base):
    torch.manual_seed(0)
    checks.assert_bfloat16_is_close(
        S2CRNet(base, label=1, thumbnail_size=64), *checks.picture_and_mask(), atol=0.06
    )


@both
def test_gradient_checkpointing_changes_nothing(base):
    checks.assert_checkpointing_changes_memory_only(
        S2CRNet(base, thumbnail_size=32), *checks.picture_and_mask(), saving=1.15
    )


@pytest.mark.slow
@both
def test_compiles_without_graph_break(base):
    checks.assert_compiles_without_graph_breaks(
        S2CRNet(base, label=1, thumbnail_size=64), *checks.picture_and_mask()
    )


def best_curves_psnr(shared):
    """PSNR of the best function of each channel: the mean of the real values of each of 64 levels."""
    composite, mask, real = real_pair(64, shared)
    inside = mask[0, 0] > 0
    best = real.clone()
    for c in range(3):
        level = (composite[0, c][inside] * 64).long().clamp(max=63)
        total = torch.bincount(level, real[0, c][inside], minlength=64)
        best[0, c][inside] = (total / torch.bincount(level, minlength=64))[level]
    return foreground_psnr(best, real, mask)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("base", "label", "size"), [("squeezenet", None, 64), ("squeezenet", 2, 64), ("vgg16", None, 32)]
)
def test_learns_one_picture_as_well_as_curves_can(base, label, size, shared):
    bound = best_curves_psnr(shared)
    model = S2CRNet(base, label, thumbnail_size=size)
    before, after, _ = overfit(model, size=64, steps=400, shared=shared, lr=1e-3, target=bound)
    assert before < 15 and after > bound - 1.5
