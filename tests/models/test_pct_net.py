import pytest
import torch
from network_checks import (
    assert_bfloat16_is_close,
    assert_checkpointing_changes_memory_only,
    assert_compiles_without_graph_breaks,
    assert_converter_is_strict,
    picture_and_mask,
)
from official_cases import assert_close, assert_matches_official, load_case, load_official
from overfit import overfit

from harmony_diffusion.errors import InputError
from harmony_diffusion.models.pct_net import PCTNet, resize_maps

both = pytest.mark.parametrize("base", ["cnn", "vit"])
SMALL_CASES = {"cnn": "pctnet_cnn_s11_640x832", "vit": "pctnet_vit_s11_256x256"}


@both
def test_matches_a_small_case_of_the_official_code(base):
    assert_matches_official(PCTNet(base), load_case(SMALL_CASES[base]))


@both
@pytest.mark.parametrize("size", ["256x256", "640x832"])
def test_matches_the_official_code(base, size, shared):
    assert_matches_official(PCTNet(base), load_case(f"pctnet_{base}_s11_{size}", shared / "oracles" / "dev"))


@both
def test_maps_are_the_official_ones(base, shared):
    case = load_case(f"pctnet_{base}_s11_256x256", shared / "oracles" / "dev")
    model = load_official(PCTNet(base), case)
    with torch.no_grad():
        maps = model.predict_filters(case.composite, case.mask)
    parameters = maps[:, :12]
    if base == "cnn":  # undo the folding of (x - mean) / std
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        matrix = maps[:, :9].unflatten(1, (3, 3))
        offset = maps[:, 9:12] + torch.einsum("bijhw,j->bihw", matrix, mean)
        parameters = torch.cat((torch.einsum("bijhw,j->bijhw", matrix, std).flatten(1, 2), offset), 1)
        assert_close(maps[:, 12:], case.stored["extra_attention"], 8)
    assert_close(parameters, case.stored["extra_params"], 8)


@pytest.mark.parametrize(("base", "count"), [("cnn", 2_185_736), ("vit", 4_809_896)])
def test_has_the_official_number_of_parameters(base, count):
    assert PCTNet(base).num_parameters() == count


@both
def test_converter_is_strict(base):
    assert_converter_is_strict(PCTNet(base), load_case(SMALL_CASES[base]).official)


def test_refuses_unknown_base_and_thumbnail():
    with pytest.raises(InputError, match="base"):
        PCTNet("mlp")
    with pytest.raises(InputError, match="thumbnail_size"):
        PCTNet(thumbnail_size=100)


@both
def test_windows_of_image_and_maps_give_the_same_pixels(base):
    torch.manual_seed(0)
    model = PCTNet(base, thumbnail_size=32).eval()
    composite, mask = picture_and_mask(1, 96, 96)
    with torch.no_grad():
        filters = model.predict_filters(composite, mask)
        whole = model.apply_filters(composite, filters, mask)
        maps = resize_maps(filters, composite, model.filter_upsampling)
        window = (slice(None), slice(None), slice(20, 61), slice(11, 80))
        part = model.apply_filters(composite[window], maps[window], mask[window])
    assert torch.equal(part, whole[window])


def test_soft_mask_counts_once():
    model = PCTNet("vit", thumbnail_size=32).eval()
    torch.nn.init.zeros_(model.to_filters.weight)
    torch.nn.init.constant_(model.to_filters.bias, 0)
    with torch.no_grad():
        model.to_filters.bias[9:] = 1.0  # every pixel becomes white
        composite, mask = torch.full((1, 3, 32, 32), 0.2), torch.full((1, 1, 32, 32), 0.5)
        harmonized = model(composite, mask)
    torch.testing.assert_close(harmonized, torch.full_like(harmonized, 0.6))


@both
def test_runs_in_bfloat16(base):
    torch.manual_seed(0)
    assert_bfloat16_is_close(PCTNet(base, thumbnail_size=64), *picture_and_mask(), atol=0.06)


@both
def test_gradient_checkpointing_changes_nothing(base):
    assert_checkpointing_changes_memory_only(PCTNet(base, thumbnail_size=32), *picture_and_mask(), saving=2)


@pytest.mark.slow
@both
def test_compiles_without_graph_break(base):
    assert_compiles_without_graph_breaks(PCTNet(base, thumbnail_size=32), *picture_and_mask())


@pytest.mark.slow
@both
def test_learns_one_real_picture(base, shared):
    torch.manual_seed(0)
    steps, lr = {"cnn": (600, 4e-3), "vit": (360, 1.5e-3)}[base]
    model = PCTNet(base, thumbnail_size=64, dropout=0.0)
    before, after, _ = overfit(model, size=64, steps=steps, shared=shared, lr=lr)
    assert before < 25 and after > 40
