from functools import partial

import numpy as np
import pytest
import torch
from network_checks import (
    assert_bfloat16_is_close,
    assert_checkpointing_changes_memory_only,
    assert_compiles_without_graph_breaks,
    picture_and_mask,
)
from official_cases import assert_close, forward_with, load_case, load_official
from overfit import overfit

from harmony_diffusion.errors import CheckpointError
from harmony_diffusion.models.dht import DHT, HT, positions

VARIANTS = {
    "dht": DHT,
    "ht": HT,
    "dht_plus": partial(DHT, encode_light=False),
    "ht_plus": partial(HT, patches=True),
}
every_variant = pytest.mark.parametrize("variant", VARIANTS)
CASES = [("dht", "256x256"), ("dht", "256x256_b2"), *((name, "256x256") for name in list(VARIANTS)[1:])]


@pytest.mark.parametrize(("variant", "size"), CASES)
def test_network_equals_the_official_one(shared, variant, size):
    case = load_case(f"{variant}_s11_{size}", shared / "oracles" / "dev")
    model = load_official(VARIANTS[variant](), case)
    known = {}
    with torch.no_grad():
        if "extra_reflectance" in case.stored:
            reflectance, illumination = known["decompose"] = model.decompose(case.composite, case.mask)
            assert_close(reflectance, case.stored["extra_reflectance"], 8)
            assert_close(illumination, case.stored["extra_illumination"], 8)
        if "extra_raw" in case.stored:
            known["predict"] = model.predict(case.composite, case.mask)
            assert_close(known["predict"], case.stored["extra_raw"], 8)
        harmonized = forward_with(model, case, **known)
    # The official HT pastes what its tanh gives, also below 0.
    assert_close(harmonized, np.clip(case.stored["output"], 0, 1), int(case.stored["stride"]))


@pytest.mark.parametrize(
    ("variant", "count"),
    [("dht", 26_515_654), ("ht", 6_446_275), ("dht_plus", 21_771_718), ("ht_plus", 4_772_867)],
)
def test_has_the_official_number_of_parameters(variant, count):
    with torch.device("meta"):
        assert VARIANTS[variant]().num_parameters() == count


@pytest.fixture
def small():
    def build(variant):
        torch.manual_seed(0)
        return VARIANTS[variant](base_channels=8, layers=2).eval()

    return build


def test_positions_count_from_one_and_alternate_sine_and_cosine():
    codes = positions(2, 3, 8, torch.zeros(1)).view(2, 3, 8)
    row, column = torch.tensor(2.0), torch.tensor(3.0)
    expected = [f(x) for x in (row, row / 100, column, column / 100) for f in (torch.sin, torch.cos)]
    torch.testing.assert_close(codes[1, 2], torch.stack(expected))


@pytest.mark.parametrize("variant", ["dht", "dht_plus"])
def test_light_sees_untouched_patches_only(variant, small):
    model = small(variant)
    composite, mask = picture_and_mask(batch=1)
    touched = torch.nn.functional.max_pool2d(mask, 8).gt(0).repeat_interleave(8, 2).repeat_interleave(8, 3)
    assert (touched & (mask == 0)).any()
    with torch.no_grad():
        light = model.light(composite, mask)
        torch.testing.assert_close(model.light(torch.where(touched, 1 - composite, composite), mask), light)
        assert not torch.allclose(model.light(torch.where(touched, composite, 1 - composite), mask), light)


@pytest.mark.parametrize("variant", ["dht", "dht_plus"])
def test_mask_that_touches_every_patch_hides_none(variant, small):
    model = small(variant)
    composite, mask = picture_and_mask()
    everywhere = torch.zeros_like(mask)
    everywhere[0, :, ::8, ::8] = 1  # one pixel a patch
    everywhere[1] = mask[1]  # does not depend on its neighbour in the batch
    with torch.no_grad():
        both = model.light(composite, everywhere)
        alone = model.light(composite[1:], mask[1:])
        other = model.light(1 - composite, everywhere)
    assert torch.isfinite(both).all()
    torch.testing.assert_close(both[1:], alone)
    assert not torch.allclose(both[:1], other[:1])


@every_variant
def test_degenerate_masks_give_finite_results_and_gradients(variant, small):
    model = small(variant).train()
    composite, mask = picture_and_mask(batch=1)
    one = torch.zeros_like(mask)
    one[..., 9, 9] = 1
    for region in (torch.zeros_like(mask), torch.ones_like(mask), one):
        model.zero_grad()
        predicted = model.predict(composite, region)
        predicted.sum().backward()
        assert torch.isfinite(predicted).all()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_foreign_checkpoints_are_refused():
    with pytest.raises(CheckpointError, match="HT"):
        HT.convert_official({"light_generator.light_embed.weight": torch.zeros(27, 256)})
    with pytest.raises(CheckpointError, match="D-HT"):
        DHT.convert_official({"transformer_enc.encoder.layers.0.norm1.bias": torch.zeros(256)})


@every_variant
def test_checkpointing_saves_half_the_memory(variant, small):
    assert_checkpointing_changes_memory_only(small(variant), *picture_and_mask(), saving=2)


@every_variant
def test_bfloat16(variant, small):
    assert_bfloat16_is_close(small(variant), *picture_and_mask(), atol=0.03)


@pytest.mark.slow
@every_variant
def test_compiles_without_graph_breaks(variant):
    torch.manual_seed(0)
    assert_compiles_without_graph_breaks(VARIANTS[variant](base_channels=4, layers=1), *picture_and_mask())


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "base_channels", "steps"), [("dht", 16, 400), ("ht_plus", 32, 800)])
def test_learns_one_real_picture(variant, base_channels, steps, shared):
    torch.manual_seed(0)
    model = VARIANTS[variant](base_channels=base_channels, layers=2)
    before, after, _ = overfit(model, size=32, steps=steps, shared=shared, lr=1.5e-3)
    assert before < 20 and after > 40
