import network_checks as checks
import pytest
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
    checks.check_converter_is_strict(IDIH(), load_case("idih256_s11_200x320").official)


def test_runs_in_bfloat16():
    checks.check_bfloat16(IDIH(depth=5))


def test_gradient_checkpointing_changes_nothing():
    checks.check_gradient_checkpointing(IDIH(depth=5))


@pytest.mark.slow
def test_compiles_without_graph_break():
    checks.check_no_graph_break(IDIH(depth=5))


@pytest.mark.slow
def test_learns_one_picture(shared):
    before, after, _ = overfit(IDIH(depth=5), size=64, steps=400, shared=shared, lr=2e-3)
    assert before < 15 and after > 40
