import network_checks as checks
import numpy as np
import pytest
import torch
from official_cases import assert_close, assert_matches_official, load_case, load_official
from overfit import overfit

from harmony_diffusion.errors import InputError
from harmony_diffusion.models.cdt_net import CDTNet, CDTNetSim, ColorTable, apply_table

both = pytest.mark.parametrize("cls", [CDTNet, CDTNetSim])


def test_matches_the_official_code_of_the_colour_table():
    assert_matches_official(CDTNetSim(), load_case("cdtnet_sim_s11_512x640"))


@pytest.mark.parametrize(
    ("cls", "case"),
    [
        (CDTNet, "cdtnet_s11_256x256"),
        (CDTNet, "cdtnet_s11_512x640"),
        (CDTNetSim, "cdtnet_sim_s11_512x640"),
    ],
)
def test_matches_the_official_code(cls, case, shared):
    assert_matches_official(cls(), load_case(case, shared / "oracles" / "dev"))


def test_stages_are_the_official_ones(shared):
    case = load_case("cdtnet_s11_256x256", shared / "oracles" / "dev")
    model = load_official(CDTNet(), case)
    with torch.no_grad():
        _, recolored, base = model.predict_stages(case.composite, case.mask)
    assert_close(recolored, case.stored["extra_lut"], 8)
    assert_close(base, case.stored["extra_base"], 8)


@pytest.mark.parametrize("name", ["cdtnet_s11_256x256", "cdtnet_s11_512x640", "cdtnet_sim_s11_512x640"])
def test_weights_of_the_tables_are_the_official_ones(name, shared):
    case = load_case(name, shared / "oracles" / "dev")
    model = load_official(CDTNetSim(), case)
    with torch.no_grad():
        assert_close(model.predict_filters(case.composite, case.mask), case.stored["extra_weights"])


@both
def test_has_the_official_number_of_parameters(cls):
    assert cls().num_parameters() == 2_744_400


def test_parts_have_the_official_number_of_parameters():
    model = CDTNet()
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert count["color_table"] == 499_088 and count["refine"] == 59_972
    assert sum(p.numel() for p in model.backbone.encoder.parameters()) == 1_174_080


@both
def test_converter_is_strict(cls):
    checks.assert_converter_is_strict(cls(), load_case("cdtnet_sim_s11_512x640").official)


def test_refuses_a_base_size_it_cannot_halve():
    with pytest.raises(InputError, match="base_size"):
        CDTNet(base_size=100)


def trilinear(image, table):
    """The sum over the eight corners of a cell, pixel by pixel, in double precision."""
    result = np.zeros_like(image)
    for y, x in np.ndindex(image.shape[1:]):
        position = image[:, y, x] * 32 / 1.000001
        low = np.floor(position).astype(int)
        share = position - low
        for corner in np.ndindex(2, 2, 2):
            red, green, blue = low + corner
            weight = np.prod(np.where(corner, share, 1 - share))
            result[:, y, x] += weight * table[:, blue, green, red]
    return result


def test_look_up_is_trilinear_with_red_fastest():
    generator = np.random.default_rng(0)
    image, table = generator.random((3, 5, 6)), generator.random((3, 33, 33, 33))
    image[:, 0, 0], image[:, 0, 1], image[:, 1, 1] = 0, 1, (1, 0, 0.5)
    found = apply_table(torch.tensor(image[None]).float(), torch.tensor(table[None]).float())[0]
    np.testing.assert_allclose(found, trilinear(image, table), rtol=0, atol=2e-5)


def test_look_up_takes_values_outside_the_range_as_the_nearest_end():
    table = torch.rand(1, 3, 9, 9, 9, generator=torch.Generator().manual_seed(0))
    wild = torch.tensor([-0.5, 1.5, float("inf")]).expand(1, 3, 1, 3)
    expected = torch.stack((table[0, :, 0, 0, 0], table[0, :, -1, -1, -1], table[0, :, -1, -1, -1]), 1)
    torch.testing.assert_close(apply_table(wild, table)[0, :, 0], expected, rtol=0, atol=1e-5)


def test_fresh_tables_keep_the_picture():
    table, image = ColorTable(8), torch.rand(2, 3, 7, 9, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(table.render(image, torch.ones(2, 4)), image, rtol=0, atol=2e-6)


def test_colour_table_renders_packed_pixels():
    torch.manual_seed(0)
    model = CDTNetSim(base_size=64).eval()
    composite, mask = checks.picture_and_mask(1, 64, 64)
    inside = mask[0, 0] > 0
    with torch.no_grad():
        filters = model.predict_filters(composite, mask)
        packed = model.apply_filters(
            composite[..., inside][:, :, None], filters, mask[..., inside][:, :, None]
        )
        whole = model(composite, mask)
    torch.testing.assert_close(packed[:, :, 0], whole[..., inside], rtol=0, atol=1e-6)


@both
def test_runs_in_bfloat16(cls):
    checks.assert_bfloat16_is_close(cls(base_size=64), *checks.picture_and_mask(), atol=0.06)


@both
def test_gradient_checkpointing_changes_nothing(cls):
    checks.assert_checkpointing_changes_memory_only(
        cls(base_size=32), *checks.picture_and_mask(), saving=1.15
    )


@pytest.mark.slow
@both
def test_compiles_without_graph_break(cls):
    checks.assert_compiles_without_graph_breaks(cls(base_size=64), *checks.picture_and_mask())


@pytest.mark.slow
@pytest.mark.parametrize(("cls", "lr"), [(CDTNet, 4e-3), (CDTNetSim, 1e-2)])
def test_learns_one_picture(cls, lr, shared):
    before, after, _ = overfit(cls(base_size=64), size=64, steps=400, shared=shared, lr=lr)
    assert before < 15 and after > 40
