import pytest
import torch
from network_checks import (
    assert_bfloat16_is_close,
    assert_checkpointing_changes_memory_only,
    assert_compiles_without_graph_breaks,
    picture_and_mask,
)
from official_cases import assert_close, assert_matches_official, load_case, load_official
from overfit import overfit

from harmony_diffusion.errors import CheckpointError
from harmony_diffusion.models.bargain_net import BargainNet, PartialConv


@pytest.mark.parametrize("size", ["256x256", "256x512_b2"])
def test_network_equals_the_official_one(shared, size):
    assert_matches_official(BargainNet(), load_case(f"bargainnet_s11_{size}", shared / "oracles" / "dev"))


@pytest.mark.parametrize("size", ["256x256", "256x512_b2"])
def test_codes_equal_the_official_ones(shared, size):
    case = load_case(f"bargainnet_s11_{size}", shared / "oracles" / "dev")
    model = load_official(BargainNet(), case)
    with torch.no_grad():
        background = model.region_code(case.composite, 1 - case.mask)
        foreground = model.region_code(case.composite, case.mask)
    assert_close(background, case.stored["extra_code_background"])
    assert_close(foreground, case.stored["extra_code_foreground"])
    distance = (background - foreground).norm(dim=1, keepdim=True)
    assert_close(distance, case.stored["extra_code_distance"].reshape(-1, 1))


def test_has_the_official_number_of_parameters():
    model = BargainNet()
    assert model.extractor.to_code.out_channels == 16
    assert sum(p.numel() for p in model.extractor.parameters()) == 3_919_376
    assert model.num_parameters() == 58_695_700


@pytest.fixture
def small():
    torch.manual_seed(0)
    return BargainNet(base_channels=8).eval()


def test_code_sees_the_region_only(small):
    composite, mask = picture_and_mask()
    mask = mask.round()
    changed = torch.where(mask > 0, 1 - composite, composite)
    with torch.no_grad():
        torch.testing.assert_close(
            small.region_code(changed, 1 - mask), small.region_code(composite, 1 - mask)
        )
        assert not torch.allclose(small.region_code(changed, mask), small.region_code(composite, mask))


def test_region_without_pixels_has_the_code_of_no_features(small):
    composite, mask = picture_and_mask()
    code = small.region_code(composite, torch.zeros_like(mask))
    torch.testing.assert_close(code, small.extractor.to_code.bias.expand(2, -1))


def test_partial_convolution_scales_up_what_it_sees():
    layer = PartialConv(1, 1, True)
    torch.nn.init.ones_(layer.conv.weight)
    torch.nn.init.constant_(layer.conv.bias, 0.5)
    region = torch.zeros(1, 1, 3, 7)
    region[..., 0, :2] = 1  # windows with two pixels, none and none
    features, inner = layer(torch.full((1, 1, 3, 7), 3.0), region)
    torch.testing.assert_close(features, torch.tensor([[[[3.0 * 9 + 0.5, 0.0, 0.0]]]]))
    torch.testing.assert_close(inner, torch.tensor([[[[1.0, 0.0, 0.0]]]]))


def test_both_official_files_convert_with_and_without_prefixes(shared):
    official = load_case("bargainnet_s11_256x256", shared / "oracles" / "dev").official
    bare = {key[2:]: tensor for key, tensor in official.items()}
    assert BargainNet.convert_official(bare).keys() == BargainNet.convert_official(official).keys()
    for stranger in ("G.conv1f.weight", "conv6f.weight", "model.model.7.weight"):
        with pytest.raises(CheckpointError, match="BargainNet"):
            BargainNet.convert_official({**official, stranger: torch.zeros(1)})


def test_checkpointing_saves_half_the_memory():
    torch.manual_seed(0)
    assert_checkpointing_changes_memory_only(BargainNet(base_channels=16), *picture_and_mask(), saving=2)


def test_bfloat16(small):
    assert_bfloat16_is_close(small, *picture_and_mask(), atol=0.02)


@pytest.mark.slow
def test_compiles_without_graph_breaks():
    torch.manual_seed(0)
    assert_compiles_without_graph_breaks(BargainNet(base_channels=4, dropout=0.0), *picture_and_mask())


@pytest.mark.slow
def test_learns_one_real_picture(shared):
    torch.manual_seed(0)
    before, after, _ = overfit(
        BargainNet(base_channels=16, dropout=0.0), size=32, steps=400, shared=shared, lr=1.5e-3
    )
    assert before < 20 and after > 40
