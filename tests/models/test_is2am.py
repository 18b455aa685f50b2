import pytest
import torch
from network_checks import (
    assert_bfloat16_is_close,
    assert_checkpointing_changes_memory_only,
    assert_compiles_without_graph_breaks,
    assert_converter_is_strict,
    picture_and_mask,
)
from official_cases import assert_matches_official, load_case
from overfit import overfit

from harmony_diffusion.models.is2am import IS2AM, SpatialSeparatedAttention


def test_matches_the_official_code_with_padding():
    assert_matches_official(IS2AM(), load_case("is2am256_s11_200x300"))


@pytest.mark.parametrize("case", ["is2am256_s11_192x320", "is2am256_s11_200x300", "is2am256_s11_256x256"])
def test_matches_the_official_code(case, shared):
    assert_matches_official(IS2AM(), load_case(case, shared / "oracles" / "dev"))


def test_has_the_official_number_of_parameters():
    assert IS2AM().num_parameters() == 2_185_340


def test_converter_is_strict():
    assert_converter_is_strict(IS2AM(), load_case("is2am256_s11_200x300").official)


def test_blur_of_the_mask_is_the_official_buffer():
    official = load_case("is2am256_s11_200x300").official[
        "decoder.up_blocks.2.attention.mask_blurring.weight"
    ]
    torch.testing.assert_close(SpatialSeparatedAttention(8).blur, official)


def test_attention_outside_the_mask_is_the_background_gate():
    torch.manual_seed(0)
    attention = SpatialSeparatedAttention(8).eval()
    x, mask = torch.rand(1, 8, 16, 16), torch.zeros(1, 1, 32, 32)
    mask[..., :8] = 1
    with torch.no_grad():
        attended, background = attention(x, mask), attention.background_gate(x)
    assert torch.equal(attended[..., 8:], background[..., 8:])  # the blur reaches three pixels
    assert not torch.allclose(attended[..., :4], background[..., :4])


def test_runs_in_bfloat16():
    torch.manual_seed(0)
    assert_bfloat16_is_close(IS2AM(), *picture_and_mask(), atol=0.02)


def test_gradient_checkpointing_changes_nothing():
    assert_checkpointing_changes_memory_only(IS2AM(), *picture_and_mask(), saving=2)


@pytest.mark.slow
def test_compiles_without_graph_break():
    assert_compiles_without_graph_breaks(IS2AM(), *picture_and_mask())


@pytest.mark.slow
def test_learns_one_real_picture(shared):
    torch.manual_seed(0)
    before, after, _ = overfit(IS2AM(), size=64, steps=500, shared=shared, lr=4e-3)
    assert before < 25 and after > 40
