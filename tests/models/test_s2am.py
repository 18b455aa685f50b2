import pytest
import torch
from network_checks import (
    assert_bfloat16_is_close,
    assert_checkpointing_changes_memory_only,
    assert_compiles_without_graph_breaks,
    picture_and_mask,
)
from official_cases import assert_matches_official, load_case
from overfit import overfit

from harmony_diffusion.errors import CheckpointError
from harmony_diffusion.models.s2am import S2AM


@pytest.mark.parametrize("size", ["256x256", "256x512"])
def test_network_equals_the_official_one(shared, size):
    assert_matches_official(S2AM(), load_case(f"s2am_rascv2_s11_{size}", shared / "oracles" / "dev"))


def test_has_the_official_number_of_parameters():
    assert S2AM().num_parameters() == 67_003_051


@pytest.fixture
def small():
    torch.manual_seed(0)
    return S2AM(base_channels=8).eval()


def test_checkpointing_saves_half_the_memory(small):
    assert_checkpointing_changes_memory_only(small, *picture_and_mask(), saving=2)


def test_bfloat16(small):
    assert_bfloat16_is_close(small, *picture_and_mask(), atol=0.02)


def test_foreign_checkpoints_are_refused():
    with pytest.raises(CheckpointError, match="S2AM"):
        S2AM.convert_official({"model.model.7.weight": torch.zeros(1)})


@pytest.mark.slow
def test_compiles_without_graph_breaks():
    torch.manual_seed(0)
    assert_compiles_without_graph_breaks(S2AM(base_channels=4), *picture_and_mask())


@pytest.mark.slow
def test_learns_one_real_picture(shared):
    torch.manual_seed(0)
    before, after, _ = overfit(S2AM(base_channels=16), size=32, steps=500, shared=shared, lr=6e-4)
    assert before < 25 and after > 40
