import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from small_configs import SMALL

from harmony_diffusion.errors import InputError, InputNote, MaskError, SizeMismatchError
from harmony_diffusion.models import MODELS, create_model
from harmony_diffusion.pipelines.harmonization import HarmonizationPipeline

ROOT = Path(__file__).resolve().parents[2]
every_model = pytest.mark.parametrize("name", MODELS)


@pytest.fixture(scope="module")
def pipes():
    cache = {}

    def get(name):
        if name not in cache:
            torch.manual_seed(0)
            cache[name] = HarmonizationPipeline(create_model(name, **SMALL.get(name, {})))
            cache[name].set_progress_bar_config(disable=True)
        return cache[name]

    return get


def picture(dtype, seed=0, size=(64, 80)):
    rng = np.random.default_rng(seed)
    coarse = rng.random((8, 8, 3)).astype(np.float32)
    smooth = np.asarray(
        torch.nn.functional.interpolate(torch.tensor(coarse).permute(2, 0, 1)[None], size, mode="bilinear")[0]
    ).transpose(1, 2, 0)
    if dtype == np.float32:
        return smooth
    return (smooth * np.iinfo(dtype).max).round().astype(dtype)


def soft_mask(size=(64, 80)):
    mask = np.zeros(size, np.float32)
    mask[16:48, 20:60] = 1
    mask[16:18, 20:60] = 0.5
    return mask


@every_model
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_background_is_bit_identical_and_inputs_are_not_mutated(name, dtype, pipes):
    composite, mask = picture(dtype), soft_mask()
    before = composite.copy(), mask.copy()
    result = pipes(name)(composite, mask, output_type="array").images[0]
    assert result.dtype == dtype and result.shape == composite.shape
    assert np.array_equal(result[mask == 0], composite[mask == 0])
    assert np.array_equal(composite, before[0]) and np.array_equal(mask, before[1])


@every_model
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_strength_zero_is_the_identity(name, dtype, pipes):
    composite = picture(dtype)
    result = pipes(name)(composite, soft_mask(), strength=0, output_type="array").images[0]
    assert np.array_equal(result, composite)


@every_model
def test_list_equals_loop_and_same_input_same_output(name, pipes):
    composites, mask = [picture(np.uint8, seed) for seed in range(2)], soft_mask()
    together = pipes(name)(composites, [mask, mask], output_type="array").images
    for composite, result in zip(composites, together, strict=True):
        alone = pipes(name)(composite, mask, output_type="array").images[0]
        assert np.array_equal(alone, result)


def test_strength_lies_between_input_and_result(pipes):
    composite, mask = picture(np.float32), soft_mask()
    full = pipes("reinhard")(composite, mask, output_type="array").images[0]
    half = pipes("reinhard")(composite, mask, strength=0.5, output_type="array").images[0]
    assert not np.allclose(full, composite, atol=1e-2)
    np.testing.assert_allclose(half, (full + composite) / 2, atol=1e-5)


@pytest.mark.parametrize("name", ["reinhard", "harmonizer"])
def test_reference_mask_hides_the_rest_of_the_background(name, pipes):
    composite, mask = picture(np.uint8), soft_mask()
    reference = np.zeros_like(mask)
    reference[:, :20] = 1
    other = composite.copy()
    other[:, 64:] = 255 - other[:, 64:]  # a change outside the reference and outside the foreground
    pipe = pipes(name)
    first = pipe(composite, mask, reference_mask=reference, output_type="array").images[0]
    second = pipe(other, mask, reference_mask=reference, output_type="array").images[0]
    assert np.array_equal(first[mask > 0], second[mask > 0])
    everything = pipe(composite, mask, output_type="array").images[0]
    if name == "reinhard":
        assert not np.array_equal(first[mask > 0], everything[mask > 0])


def test_hidden_pixels_never_enter_the_statistics(pipes):
    rgba = np.dstack((picture(np.uint8), np.full((64, 80), 255, np.uint8)))
    rgba[:, 64:, 3] = 0
    other = rgba.copy()
    other[:, 64:, :3] = 255 - other[:, 64:, :3]
    first, second = (
        pipes("reinhard")(Image.fromarray(a, "RGBA"), soft_mask()).images[0] for a in (rgba, other)
    )
    assert first.mode == "RGBA"
    assert np.array_equal(np.asarray(first)[:, :64], np.asarray(second)[:, :64])


def test_output_types(pipes):
    composite, mask = picture(np.uint8), soft_mask()
    pipe = pipes("mkl")
    images = {
        kind: pipe(composite, mask, output_type=kind).images for kind in ("pil", "array", "pt", "picture")
    }
    assert images["pil"][0].size == (80, 64)
    assert np.array_equal(np.asarray(images["pil"][0]), images["array"][0])
    assert images["pt"].shape == (1, 3, 64, 80)
    np.testing.assert_allclose(images["pt"][0].permute(1, 2, 0) * 255, images["array"][0], atol=1e-3)
    assert np.array_equal(images["picture"][0].pixels, images["array"][0])
    image, filters = pipe(composite, mask, return_dict=False)
    assert len(image) == 1 and filters.shape == (1, 12)


def test_batched_tensors_in_and_out(pipes):
    composite = torch.from_numpy(np.stack([picture(np.float32, s) for s in range(2)])).permute(0, 3, 1, 2)
    mask = torch.from_numpy(soft_mask()).expand(2, 1, -1, -1)
    assert pipes("reinhard")(composite, mask, output_type="pt").images.shape == (2, 3, 64, 80)


@pytest.mark.parametrize("model", ["reinhard", "harmonizer"])
@pytest.mark.parametrize("custom", [False, True])
def test_saved_pipeline_loads(model, custom, pipes, tmp_path):
    composite, mask = picture(np.uint8), soft_mask()
    pipes(model).save_pretrained(tmp_path)
    if custom:
        loaded = DiffusionPipeline.from_pretrained(
            tmp_path, custom_pipeline=str(ROOT / "pipelines" / "harmonization.py"), trust_remote_code=True
        )
    else:
        loaded = HarmonizationPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    expected = pipes(model)(composite, mask, output_type="array").images[0]
    assert np.array_equal(loaded(composite, mask, output_type="array").images[0], expected)


def test_prompt_is_accepted_and_warned_of_once(caplog):
    pipe = HarmonizationPipeline(create_model("reinhard"))
    composite, mask = picture(np.uint8), soft_mask()
    for _ in range(2):
        pipe(composite, mask, "a red car")
    assert sum("ignored" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan"), "full"])
def test_strength_outside_its_range_is_refused(strength, pipes):
    with pytest.raises(InputError, match="strength"):
        pipes("reinhard")(picture(np.uint8), soft_mask(), strength=strength)


def test_unknown_output_type_is_refused(pipes):
    with pytest.raises(InputError, match="output_type"):
        pipes("reinhard")(picture(np.uint8), soft_mask(), output_type="jpg")


@every_model
def test_row_24_empty_mask_returns_the_input_with_a_note(name, pipes):
    composite = picture(np.uint8)
    with pytest.warns(InputNote, match="empty"):
        result = pipes(name)(composite, np.zeros((64, 80), np.uint8), output_type="array").images[0]
    assert np.array_equal(result, composite)


@every_model
def test_row_25_full_mask_has_no_background(name, pipes):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InputNote)
        with pytest.raises(MaskError, match="no background"):
            pipes(name)(picture(np.uint8), np.full((64, 80), 255, np.uint8))


@every_model
def test_row_31_one_pixel_and_specks_work(name, pipes):
    composite = picture(np.uint8)
    one = np.zeros((64, 80), np.uint8)
    one[30, 30] = 255
    specks = (np.random.default_rng(3).random((64, 80)) > 0.9).astype(np.uint8) * 255
    for mask in (one, specks):
        result = pipes(name)(composite, mask, output_type="array").images[0]
        assert np.array_equal(result[mask == 0], composite[mask == 0])


@every_model
@pytest.mark.parametrize("value", [0, 128, 255])
def test_row_34_constant_regions_give_defined_pixels(name, value, pipes):
    composite = np.full((64, 80, 3), value, np.uint8)
    result = pipes(name)(composite, soft_mask(), output_type="pt").images
    assert torch.isfinite(result).all()


def test_row_23_reference_of_another_size_names_both(pipes):
    with pytest.raises(SizeMismatchError, match="10.*80|80.*10"):
        pipes("reinhard")(picture(np.uint8), soft_mask(), reference_mask=np.ones((10, 10), np.float32))
