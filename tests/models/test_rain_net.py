import numpy as np
import pytest
import torch
from network_checks import (
    assert_bfloat16_is_close,
    assert_checkpointing_changes_memory_only,
    assert_compiles_without_graph_breaks,
    picture_and_mask,
)
from official_cases import assert_layer_matches_official, assert_matches_official, load_case
from overfit import overfit
from torch.nn import functional as F

from harmony_diffusion.errors import CheckpointError
from harmony_diffusion.models.layers import reflect_to_multiple
from harmony_diffusion.models.rain_net import RAIN, RainNet, instance_norm


@pytest.mark.parametrize("size", ["256x256", "256x512"])
def test_network_equals_the_official_one(shared, size):
    case = load_case(f"rainnet_s11_{size}", shared / "oracles" / "dev")
    assert_matches_official(RainNet(), case, blended=True)


def test_normalization_equals_the_official_one():
    assert_layer_matches_official(RAIN(6), "part_rain_s11")


def test_has_the_official_number_of_parameters():
    assert RainNet().num_parameters() == 54_759_043


@pytest.fixture
def small():
    torch.manual_seed(0)
    model = RainNet(base_channels=8).eval()
    for parameter in model.parameters():  # the small weights of the initialisation would hide mistakes
        torch.nn.init.normal_(parameter, 0, 0.1)
    return model


def test_instance_norm_is_that_of_torch():
    x = 30 + 2 * torch.randn(2, 5, 12, 9)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        result = instance_norm(x.contiguous(memory_format=memory_format))
        torch.testing.assert_close(result, F.instance_norm(x), rtol=0, atol=1e-4)
        assert result.is_contiguous(memory_format=memory_format)


def test_normalized_regions_have_the_statistics_of_the_background():
    torch.manual_seed(0)
    x = 5 * torch.randn(1, 3, 40, 40) + torch.tensor([100.0, -3.0, 0.5]).view(1, 3, 1, 1)
    mask = torch.zeros(1, 1, 40, 40)
    mask[..., 5:20, 8:30] = 1
    x = torch.where(mask > 0, 0.1 * x - 7, x)
    inside, outside = (mask[0, 0] > 0), (mask[0, 0] == 0)
    with torch.no_grad():
        result = RAIN(3)(x, mask)[0]
    background = x[0, :, outside]
    torch.testing.assert_close(result[:, inside].mean(1), background.mean(1), rtol=1e-3, atol=1e-3)
    deviation = background.std(1, correction=0)
    torch.testing.assert_close(result[:, inside].std(1, correction=0), deviation, rtol=1e-3, atol=0)
    torch.testing.assert_close(result[:, outside].mean(1), torch.zeros(3), rtol=0, atol=1e-3)
    torch.testing.assert_close(result[:, outside].std(1, correction=0), torch.ones(3), rtol=1e-3, atol=0)


def test_foreground_without_background_keeps_its_statistics():
    torch.manual_seed(0)
    x, layer = 3 + 2 * torch.randn(2, 4, 6, 5), RAIN(4)
    mask = torch.ones(2, 1, 12, 10)
    mask[1, :, :4] = 0
    with torch.no_grad():
        result = layer(x, mask)
        alone = layer(x[1:], mask[1:])
    torch.testing.assert_close(result[0], x[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(result[1:], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(32, 40), (37, 61), (8, 5), (3, 1), (64, 32)])
def test_padding_mirrors_as_often_as_needed(size):
    image = torch.rand(2, 3, *size)
    padded = reflect_to_multiple(image, 32)
    below, right = (-length % 32 for length in size)
    expected = np.pad(image.numpy(), ((0, 0), (0, 0), (0, below), (0, right)), mode="reflect")
    assert np.array_equal(padded.numpy(), expected)


def test_pictures_of_any_size_are_padded_by_mirroring(small):
    composite, mask = picture_and_mask(1, 150, 90)
    pad = ((0, 0), (0, 0), (0, 106), (0, 166))
    big_composite, big_mask = (
        torch.from_numpy(np.pad(t.numpy(), pad, mode="reflect")) for t in (composite, mask)
    )
    with torch.no_grad():
        raw = small.predict(composite, mask)
        torch.testing.assert_close(raw, small.predict(big_composite, big_mask)[..., :150, :90])


def test_checkpointing_saves_half_the_memory(small):
    assert_checkpointing_changes_memory_only(small, *picture_and_mask(), saving=2)


def test_bfloat16(small):
    assert_bfloat16_is_close(small, *picture_and_mask(), atol=0.1)


def test_foreign_checkpoints_are_refused():
    with pytest.raises(CheckpointError, match="RainNet"):
        RainNet.convert_official({"unet_block.submodule.down.2.weight": torch.zeros(1)})


@pytest.mark.slow
def test_compiles_without_graph_breaks():
    torch.manual_seed(0)
    assert_compiles_without_graph_breaks(RainNet(base_channels=4, dropout=0.0), *picture_and_mask())


@pytest.mark.slow
def test_learns_one_real_picture(shared):
    torch.manual_seed(0)
    before, after, _ = overfit(
        RainNet(base_channels=16, dropout=0.0), size=32, steps=400, shared=shared, lr=5e-3
    )
    assert before < 25 and after > 40
