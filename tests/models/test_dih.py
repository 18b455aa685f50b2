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

from harmony_diffusion.models.dih import DIH


def test_matches_a_small_case_of_the_official_code():
    assert_matches_official(DIH(), load_case("saic_dih256_s11_256x256"))


@pytest.mark.parametrize("case", ["saic_dih256_s11_256x256", "saic_dih256_s11_256x512"])
def test_matches_the_official_code(case, shared):
    assert_matches_official(DIH(), load_case(case, shared / "oracles" / "dev"))


def test_has_the_official_number_of_parameters():
    assert DIH().num_parameters() == 8_301_507


def test_converter_is_strict():
    assert_converter_is_strict(DIH(), load_case("saic_dih256_s11_256x256").official)


def test_runs_in_bfloat16():
    torch.manual_seed(0)
    assert_bfloat16_is_close(DIH(depth=5), *picture_and_mask(), atol=0.02)


def test_gradient_checkpointing_changes_nothing():
    assert_checkpointing_changes_memory_only(DIH(depth=5), *picture_and_mask(), saving=2)


@pytest.mark.slow
def test_compiles_without_graph_break():
    assert_compiles_without_graph_breaks(DIH(depth=5), *picture_and_mask())


@pytest.mark.slow
def test_learns_one_real_picture(shared):
    torch.manual_seed(0)
    before, after, _ = overfit(DIH(depth=5), size=64, steps=800, shared=shared, lr=4e-3)
    assert before < 25 and after > 40
