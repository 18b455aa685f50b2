import network_checks as checks
import numpy as np
import pytest
import torch
from official_cases import assert_matches_official, load_case, load_official
from overfit import overfit

from harmony_diffusion.models.idih_hrnet import IDIHHRNet, ObjectContext

CASES = ["idih_hrnet18s_s11_256x256", "idih_hrnet18s_s11_256x512_b2"]


def small(**config):
    torch.manual_seed(0)
    return IDIHHRNet(depth=4, base_channels=16, **config)


def test_matches_a_small_case_of_the_official_code():
    assert_matches_official(IDIHHRNet(), load_case(CASES[0]))


@pytest.mark.parametrize("name", CASES)
def test_matches_the_official_code(name, shared):
    assert_matches_official(IDIHHRNet(), load_case(name, shared / "oracles" / "dev"))


def test_semantic_features_are_the_official_ones(shared):
    case = load_case(CASES[0], shared / "oracles" / "dev")
    model = load_official(IDIHHRNet(), case)
    with torch.no_grad():
        features = model.semantic_features(model.normalize(case.composite), case.mask)
    stored = case.stored["extra_backbone"]
    np.testing.assert_allclose(features[:, ::8, ::4, ::4], stored, rtol=1e-4, atol=1e-4)


def test_has_the_official_number_of_parameters():
    model = IDIHHRNet()
    assert model.num_parameters() == 12_811_093
    mask_conv = model.hrnet.mask_conv.weight.numel() + 64 + 1
    features = sum(p.numel() for part in (model.hrnet, model.ocr) for p in part.parameters())
    assert mask_conv == 641 and features - mask_conv == 4_247_024


def test_converter_is_strict():
    checks.assert_converter_is_strict(IDIHHRNet(), load_case(CASES[0]).official)


def test_regions_are_nearly_means_of_the_frame():
    # A softmax over positions of values from 0 to 1 weighs foreground to background as e to 1 and no more.
    torch.manual_seed(0)
    context = ObjectContext(0.0).eval()
    seen = []
    context.key.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x, mask = torch.rand(1, 270, 8, 8), torch.zeros(1, 1, 8, 8)
    mask[..., :2] = 1
    with torch.no_grad():
        features = context.project(x)
        context(x, mask)
    inside, outside = features[..., :2].sum((2, 3)), features[..., 2:].sum((2, 3))
    e = torch.e
    expected = torch.stack(
        ((e * inside + outside) / (e * 16 + 48), (inside + e * outside) / (16 + e * 48)), 2
    )
    torch.testing.assert_close(seen[0][..., 0], expected)


def test_features_reach_the_result():
    model = small().eval()
    composite, mask = checks.picture_and_mask()
    with torch.no_grad():
        with_features = model.predict(composite, mask)
        model.ocr.join[1].weight.zero_()
        without = model.predict(composite, mask)
    assert (with_features - without).abs().max() > 1e-3


def test_runs_in_bfloat16():
    checks.assert_bfloat16_is_close(small(), *checks.picture_and_mask(), atol=0.06)


def test_gradient_checkpointing_changes_nothing():
    checks.assert_checkpointing_changes_memory_only(small(), *checks.picture_and_mask(), saving=1.5)


@pytest.mark.slow
def test_compiles_without_graph_break():
    checks.assert_compiles_without_graph_breaks(small(), *checks.picture_and_mask())


@pytest.mark.slow
def test_learns_one_picture(shared):
    before, after, _ = overfit(IDIHHRNet(depth=5), size=64, steps=400, shared=shared, lr=2e-3)
    assert before < 15 and after > 40
