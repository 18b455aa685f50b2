import network_checks as checks
import pytest
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
    checks.check_converter_is_strict(DIH(), load_case("saic_dih256_s11_256x256").official)


def test_runs_in_bfloat16():
    checks.check_bfloat16(DIH(depth=5))


def test_gradient_checkpointing_changes_nothing():
    checks.check_gradient_checkpointing(DIH(depth=5))


@pytest.mark.slow
def test_compiles_without_graph_break():
    checks.check_no_graph_break(DIH(depth=5))


@pytest.mark.slow
def test_learns_one_picture(shared):
    before, after, _ = overfit(DIH(depth=5), size=64, steps=600, shared=shared, lr=4e-3)
    assert before < 15 and after > 40
