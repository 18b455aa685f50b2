"""Full-size pictures by an exported model: the same as PyTorch's way, in every depth and with every mask."""

import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_models import make_mask, make_picture

from harmony_diffusion.errors import CheckpointError, InputError, MaskError, TooLargeError
from harmony_diffusion.export import full_size
from harmony_diffusion.export.full_size import fill_smoothly, harmonize_picture, make_thumbnail, resize
from harmony_diffusion.export.runtime import OnnxModel
from harmony_diffusion.highres import harmonize, thumbnail
from harmony_diffusion.models.color_grid import ColorGrid


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("size", [(40, 300), (64, 64), (7, 20), (150, 33)])
def test_resize_equals_pytorch(size, antialias):
    image = np.random.default_rng(0).random((90, 120, 2), np.float32)
    planes = torch.from_numpy(image).permute(2, 0, 1)[None]
    expected = F.interpolate(planes, size, mode="bilinear", antialias=antialias)[0].permute(1, 2, 0)
    np.testing.assert_allclose(resize(image, size, antialias=antialias), expected, atol=5e-6)


@pytest.mark.parametrize("size", [(13, 22), (16, 16), (1, 9)])
def test_filling_equals_pytorch(size):
    random = np.random.default_rng(0)
    image, confidence = random.random((*size, 3), np.float32), random.random((*size, 1), np.float32)
    confidence[confidence < 0.6] = 0
    planes = [torch.from_numpy(x).permute(2, 0, 1)[None] for x in (image, confidence)]
    expected = thumbnail.fill_smoothly(*planes)[0].permute(1, 2, 0)
    np.testing.assert_allclose(fill_smoothly(image, confidence), expected, atol=1e-5)


@pytest.mark.parametrize("depth", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("name", ["gain", "gain_map"])
@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_pictures_equal_those_of_pytorch(models, exported, name, depth, strength):
    picture, mask = make_picture(depth), make_mask()
    expected, _ = harmonize.harmonize_picture(models[name], picture, mask, strength=strength)
    result = harmonize_picture(OnnxModel(exported[name]), picture, mask, strength=strength)
    white = 1.0 if depth == np.float32 else np.iinfo(depth).max
    difference = np.abs(result.pixels.astype(np.float64) - expected.pixels) / white
    assert difference.max() <= 1e-4 + (1 / white if depth == np.uint8 else 0)
    assert (difference * 255 <= 0.03).mean() >= 0.999
    assert np.array_equal(result.pixels[mask == 0], picture.pixels[mask == 0])
    assert not np.array_equal(result.pixels, picture.pixels)


def test_a_dense_model_uses_the_colour_map_of_pytorch(models, exported):
    # Thumbnails of dense networks keep the shape with PyTorch: of a square picture both are the same.
    picture, mask = make_picture(size=(150, 150)), make_mask((150, 150))
    expected, _ = harmonize.harmonize_picture(models["dense"], picture, mask)
    result = harmonize_picture(OnnxModel(exported["dense"]), picture, mask)
    assert np.abs(result.pixels.astype(int) - expected.pixels).max() <= 1


def test_hidden_and_forbidden_background_is_not_looked_at(models, exported):
    alpha = np.full((150, 200), 255, np.uint8)
    alpha[:, 150:] = 0
    reference = np.zeros((150, 200), np.float32)
    reference[100:] = 1
    model = OnnxModel(exported["gain"])
    for fields, allowed in (({"alpha": alpha}, None), ({}, reference)):
        picture, mask = make_picture(**fields), make_mask()
        expected, _ = harmonize.harmonize_picture(models["gain"], picture, mask, reference=allowed)
        result = harmonize_picture(model, picture, mask, reference=allowed)
        assert np.abs(result.pixels.astype(int) - expected.pixels).max() <= 1
        plain = harmonize_picture(model, make_picture(), mask)
        assert np.abs(result.pixels.astype(int) - plain.pixels).max() > 2
    with pytest.raises(MaskError, match="no background"):
        harmonize_picture(model, make_picture(), make_mask(), reference=np.zeros((150, 200), np.float32))


def test_an_empty_mask_changes_nothing(exported):
    picture = make_picture()
    result = harmonize_picture(OnnxModel(exported["gain"]), picture, np.zeros((150, 200), np.float32))
    assert np.array_equal(result.pixels, picture.pixels)


def test_bands_do_not_show(exported, monkeypatch):
    model, picture, mask = OnnxModel(exported["gain_map"]), make_picture(), make_mask()
    whole = harmonize_picture(model, picture, mask)
    monkeypatch.setattr("harmony_diffusion.highres.windows.BAND_PIXELS", 1000)
    assert np.abs(harmonize_picture(model, picture, mask).pixels.astype(int) - whole.pixels).max() <= 1


def test_thumbnails_with_context_show_the_window(exported):
    model = OnnxModel(exported["gain"])
    object.__setattr__(model.description, "context", ColorGrid.context)
    picture, mask = make_picture(), np.zeros((150, 200), np.float32)
    mask[100:110, 20:30] = 1
    outside = picture.pixels.copy()
    outside[:40] = 0  # nowhere near the foreground
    one, other = (harmonize_picture(model, picture.with_pixels(p), mask) for p in (picture.pixels, outside))
    assert np.array_equal(one.pixels[mask > 0], other.pixels[mask > 0])


def test_antialiased_thumbnails_equal_those_of_pytorch(exported):
    model = OnnxModel(exported["gain"])
    object.__setattr__(model.description, "antialias", True)
    picture, mask = make_picture(), make_mask()
    composite, small_mask = make_thumbnail(model, picture, mask)
    for ours, source in (
        (composite, picture.to_tensor()[None]),
        (small_mask, torch.from_numpy(mask)[None, None]),
    ):
        expected = F.interpolate(source, (64, 64), mode="bilinear", antialias=True).clamp(0, 1)
        np.testing.assert_allclose(ours, expected, atol=5e-6)


def test_filters_that_measure_the_frame_get_it_whole_or_not_at_all(exported, monkeypatch):
    model = OnnxModel(exported["gain"])
    object.__setattr__(model.description, "frame_wide", True)
    picture, mask = make_picture(), make_mask()
    harmonize_picture(model, picture, mask)
    with pytest.raises(InputError, match="measures the whole picture"):
        harmonize_picture(model, picture, mask, reference=1 - mask)
    monkeypatch.setattr(full_size, "_MAX_WHOLE_PIXELS", 1000)
    with pytest.raises(TooLargeError, match="leave out"):
        harmonize_picture(model, picture, mask)


def test_strength_is_checked(exported):
    with pytest.raises(InputError, match="strength"):
        harmonize_picture(OnnxModel(exported["gain"]), make_picture(), make_mask(), strength=1.5)


def test_the_command_harmonizes_without_importing_torch(exported, tmp_path):
    picture, mask = make_picture(), make_mask()
    picture.save(tmp_path / "composite.png")
    make_picture().with_pixels(np.repeat(np.rint(mask * 255).astype(np.uint8)[..., None], 3, 2)).save(
        tmp_path / "mask.png"
    )
    code = (
        "import sys\nfrom harmony_diffusion.cli import main\ncode = main(sys.argv[1:])\n"
        "assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules), 'torch'\nsys.exit(code)"
    )
    command = ["image", "composite.png", "mask.png", "-o", "out.png", "--runtime", "onnx", "--side-by-side"]
    subprocess.run(
        [sys.executable, "-c", code, *command, "--model", str(exported["gain"])], cwd=tmp_path, check=True
    )
    from harmony_diffusion.images.picture import load_picture

    expected = harmonize_picture(OnnxModel(exported["gain"]), picture, np.rint(mask * 255).astype("f4") / 255)
    assert np.array_equal(load_picture(tmp_path / "out.png").pixels, expected.pixels)
    assert (tmp_path / "out_before_after.png").is_file()


@pytest.mark.parametrize("name", ["gain", "dense"])
def test_values_that_are_no_numbers_are_refused(exported, monkeypatch, name):
    model = OnnxModel(exported[name])
    run = model._run
    monkeypatch.setattr(model, "_run", lambda graph, *inputs: run(graph, *inputs) * np.float32(np.nan))
    with pytest.raises(CheckpointError, match="no finite numbers"):
        harmonize_picture(model, make_picture(), make_mask())
