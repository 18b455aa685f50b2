from functools import partial

import pytest
import torch
import torch.nn.functional as F
from network_checks import (
    assert_bfloat16_is_close,
    assert_checkpointing_changes_memory_only,
    assert_compiles_without_graph_breaks,
    picture_and_mask,
)
from official_cases import assert_close, forward_with, load_case, load_official
from overfit import overfit

from harmony_diffusion.errors import CheckpointError
from harmony_diffusion.models.iih import IIH, PatchBlock, SampleNorm, guidance_score

VARIANTS = {
    "v1": IIH,
    "lt_gd": partial(IIH, guide_blocks=0),
    "lt": partial(IIH, guidance=False),
    "gd": partial(IIH, light_transfer=False, guide_blocks=0),
    "base": partial(IIH, light_transfer=False, guidance=False),
}


@pytest.mark.parametrize(
    ("variant", "size"), [("v1", "256x256"), ("v1", "256x256_b2"), ("lt_gd", "256x256"), ("base", "256x256")]
)
def test_network_equals_the_official_one(shared, variant, size):
    case = load_case(f"iih_{variant}_s11_{size}", shared / "oracles" / "dev")
    model = load_official(VARIANTS[variant](), case)
    known = {}
    if "extra_reflectance" in case.stored:
        with torch.no_grad():
            reflectance, illumination = known["decompose"] = model.decompose(case.composite, case.mask)
        assert_close(reflectance, case.stored["extra_reflectance"], 8)
        assert_close(illumination, case.stored["extra_illumination"], 8)
    with torch.no_grad():
        harmonized = forward_with(model, case, **known)
    assert_close(harmonized, case.stored["output"], int(case.stored["stride"]))
    if "extra_guide_mean" in case.stored:
        with torch.no_grad():
            features = model.guide(torch.cat((case.composite, case.mask), 1))
        assert_close(features.mean(1, keepdim=True), case.stored["extra_guide_mean"])


@pytest.mark.parametrize(
    ("variant", "count"),
    [
        ("v1", 40_863_086),
        ("lt_gd", 33_775_982),
        ("lt", 27_770_446),
        ("gd", 18_859_686),
        ("base", 12_854_150),
    ],
)
def test_has_the_official_number_of_parameters(variant, count):
    with torch.device("meta"):
        assert VARIANTS[variant]().num_parameters() == count


@pytest.fixture
def small():
    torch.manual_seed(0)
    return IIH(base_channels=8).eval()


@pytest.mark.parametrize("variant", VARIANTS)
def test_degenerate_masks_give_finite_results_and_gradients(variant):
    torch.manual_seed(0)
    model = VARIANTS[variant](base_channels=4)
    composite, mask = picture_and_mask(batch=1)
    one = torch.zeros_like(mask)
    one[..., 9, 9] = 1
    for region in (torch.zeros_like(mask), torch.ones_like(mask), one):
        model.zero_grad()
        predicted = model.predict(composite, region)
        predicted.sum().backward()
        assert torch.isfinite(predicted).all()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_norm_divides_by_the_unbiased_deviation_and_eps():
    norm = SampleNorm(2, eps=0.5)
    torch.nn.init.constant_(norm.gamma, 3.0)
    with torch.no_grad():
        norm.beta.copy_(torch.tensor([0.0, 1.0]))
    x = torch.tensor([1.0, 2.0, 3.0, 6.0]).view(1, 2, 2, 1)  # mean 3, sum of squares 14
    expected = 3 * (x - 3) / ((14 / 3) ** 0.5 + 0.5) + torch.tensor([0.0, 1.0]).view(1, 2, 1, 1)
    torch.testing.assert_close(norm(x), expected)


def test_guidance_is_uniform_outside_the_foreground_and_finds_the_like_background():
    features = torch.zeros(1, 4, 1, 3)
    features[0, :, 0, 0] = features[0, :, 0, 1] = torch.tensor([3.0, -3.0, 1.0, -1.0])
    features[0, :, 0, 2] = -features[0, :, 0, 0]
    mask = torch.tensor([1.0, 0.0, 0.0]).view(1, 1, 1, 3)
    score = guidance_score(features, mask)
    torch.testing.assert_close(score[0, :, 1:], torch.full((3, 2), 1 / 3))
    torch.testing.assert_close(score[0, :, 0], torch.tensor([0.0, 1.0, 0.0]))


def test_patches_are_pasted_as_by_a_transposed_convolution():
    torch.manual_seed(0)
    block = PatchBlock(3)
    x, score = torch.rand(1, 3, 8, 12), torch.rand(1, 24, 24).softmax(1)
    patches = (
        F.pad(x, (1, 1, 1, 1)).unfold(2, 4, 2).unfold(3, 4, 2).permute(0, 2, 3, 1, 4, 5).reshape(24, 3, 4, 4)
    )
    pasted = F.conv_transpose2d(score.view(1, 24, 4, 6), patches, stride=2, padding=1) / 4
    expected = x + F.relu(block.conv(torch.cat((x, pasted), 1)))
    torch.testing.assert_close(block(x, score), expected)


def test_illumination_does_not_train_the_guide(small):
    _, illumination = small.decompose(*picture_and_mask())
    illumination.sum().backward()
    assert all(p.grad is None for p in small.guide.parameters())


def test_foreign_checkpoints_are_refused():
    with pytest.raises(CheckpointError, match="IIH"):
        IIH.convert_official({"reflectance_enc.model.3.model.4.model.0.conv.bias": torch.zeros(1)})


def test_checkpointing_saves_half_the_memory(small):
    assert_checkpointing_changes_memory_only(small, *picture_and_mask(), saving=2)


def test_bfloat16(small):
    assert_bfloat16_is_close(small, *picture_and_mask(), atol=0.02)


@pytest.mark.slow
def test_compiles_without_graph_breaks():
    torch.manual_seed(0)
    assert_compiles_without_graph_breaks(IIH(base_channels=4), *picture_and_mask())


@pytest.mark.slow
def test_learns_one_real_picture(shared):
    torch.manual_seed(0)
    before, after, _ = overfit(IIH(base_channels=16), size=32, steps=400, shared=shared, lr=2e-4)
    assert before < 20 and after > 40
