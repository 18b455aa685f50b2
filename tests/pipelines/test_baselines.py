import numpy as np
import pytest
import torch
from diffusers import StableDiffusionInpaintPipeline
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_diffusion import object_mask, picture, seeded
from tiny_paint_by_example import save_paint_by_example, with_old_names
from tiny_training import save_base

from harmony_diffusion.diffusion.base_models import load_base_components
from harmony_diffusion.errors import CheckpointError, InputError
from harmony_diffusion.pipelines.baselines import InpaintingBaseline, cut_out


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("baselines")
    return {
        "sd-inpainting": save_base(root / "sd"),
        "paint-by-example": save_paint_by_example(root / "pbe"),
    }


def images(*seeds):
    composites = [torch.from_numpy(picture(seed=seed)).permute(2, 0, 1) for seed in seeds]
    mask = torch.from_numpy(object_mask())[None, None].expand(len(seeds), 1, 64, 64)
    return torch.stack(composites).float() / 255, mask.float() / 255


def generate(baseline, composite, mask, prompts, *seeds):
    return baseline.generate(composite, mask, prompts, [seeded(seed) for seed in seeds], steps=2)


@pytest.mark.parametrize("name", ["sd-inpainting", "paint-by-example"])
def test_an_image_of_a_batch_is_the_image_alone(folders, name):
    baseline = InpaintingBaseline(name, folders[name])
    assert baseline.size == 64
    composite, mask = images(1, 2)
    both = generate(baseline, composite, mask, ["a cup", "a hat"], 1, 2)
    alone = generate(baseline, composite[1:], mask[1:], ["a hat"], 2)
    assert both.shape == (2, 3, 64, 64) and 0 <= both.min() < both.max() <= 1
    torch.testing.assert_close(both[1:], alone, atol=1e-4, rtol=0)
    assert (both[0] - both[1]).abs().max() > 0.05
    with pytest.raises(InputError, match="60x60"):
        generate(baseline, composite[..., :60, :60], mask[..., :60, :60], ["", ""], 1, 2)


def test_stable_diffusion_is_that_of_diffusers(folders):
    composite, mask = images(1)
    found = generate(
        InpaintingBaseline("sd-inpainting", folders["sd-inpainting"]), composite, mask, ["a cup"], 3
    )
    pipe = StableDiffusionInpaintPipeline(
        **load_base_components(folders["sd-inpainting"]),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    expected = pipe(
        prompt="a cup",
        image=composite,
        mask_image=mask,
        height=64,
        width=64,
        num_inference_steps=2,
        generator=seeded(3),
        output_type="pt",
    ).images
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


def test_paint_by_example_sees_the_foreground_and_reads_no_prompt(folders):
    baseline = InpaintingBaseline("paint-by-example", folders["paint-by-example"])
    composite, mask = images(1)
    first = generate(baseline, composite, mask, ["a cup"], 5)
    assert torch.equal(first, generate(baseline, composite, mask, ["a hat"], 5))
    other = torch.where(mask > 0, composite.flip(1), composite)  # hidden from the U-Net, not from the encoder
    assert (first - generate(baseline, other, mask, [""], 5)).abs().max() > 1e-3
    empty = generate(baseline, composite, torch.zeros_like(mask), [""], 5)
    assert empty.isfinite().all()


def test_published_names_of_the_image_encoder_are_read_and_missing_ones_refused(tmp_path):
    folder = save_paint_by_example(tmp_path / "pbe")
    weights = with_old_names(folder)
    loaded = InpaintingBaseline("paint-by-example", folder).pipe.image_encoder.state_dict()
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], value) for name, value in weights.items())
    (folder / "image_encoder" / "pytorch_model.bin").unlink()
    del weights["uncond_vector"]
    save_file(weights, folder / "image_encoder" / "model.safetensors", metadata={"format": "pt"})
    assert "uncond_vector" not in load_file(folder / "image_encoder" / "model.safetensors")
    with pytest.raises(CheckpointError, match="uncond_vector"):
        InpaintingBaseline("paint-by-example", folder)


def test_weights_that_are_not_there_are_named(folders, tmp_path):
    for name in folders:
        with pytest.raises(CheckpointError, match="neither here nor reachable"):
            InpaintingBaseline(name, str(tmp_path / "nowhere"))


def test_cut_out_is_the_foreground_in_the_middle_of_a_square():
    pixels = np.full((20, 30, 3), 50, np.uint8)
    pixels[4:8, 10:22] = 200
    mask = np.zeros((20, 30), np.uint8)
    mask[4:8, 10:22] = 255
    result = np.asarray(cut_out(pixels, mask, (0.5, 0.4, 0.2)))
    assert result.shape == (12, 12, 3)
    assert (result[4:8] == 200).all()
    assert (np.delete(result, slice(4, 8), 0) == (128, 102, 51)).all()
    nothing = cut_out(pixels, np.zeros_like(mask), (1, 1, 1))
    assert isinstance(nothing, Image.Image) and nothing.getpixel((0, 0)) == (255, 255, 255)
