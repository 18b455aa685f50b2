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

from harmony_diffusion.models.idih import IDIH


def test_matches_the_official_code_with_padding():
    assert_matches_official(IDIH(), load_case("idih256_s11_200x320"))


@pytest.mark.parametrize("case", ["idih256_s11_200x320", "idih256_s11_256x256", "idih256_s11_256x512"])
def test_matches_the_official_code(case, shared):
    assert_matches_official(IDIH(), load_case(case, shared / "oracles" / "dev"))


@pytest.mark.parametrize(("depth", "count"), [(7, 8_301_284), (8, 16_692_964)])
def test_has_the_parameters_of_idih256_and_idih512(depth, count):
    assert IDIH(depth).num_parameters() == count


def test_converter_is_strict():
    assert_converter_is_strict(IDIH(), load_case("idih256_s11_200x320").official)


def test_runs_in_bfloat16():
    torch.manual_seed(0)
    assert_bfloat16_is_close(IDIH(depth=5), *picture_and_mask(), atol=0.02)


def test_gradient_checkpointing_changes_nothing():
    assert_checkpointing_changes_memory_only(IDIH(depth=5), *picture_and_mask(), saving=2)


@pytest.mark.slow
def test_compiles_without_graph_break():
    assert_compiles_without_graph_breaks(IDIH(depth=5), *picture_and_mask())


@pytest.mark.slow
def test_learns_one_real_picture(shared):
    torch.manual_seed(0)
    before, after, _ = overfit(IDIH(depth=5), size=64, steps=800, shared=shared, lr=3e-3)
    assert before < 25 and after > 40
