import numpy as np
import pytest
from PIL import Image

from harmony_diffusion.errors import InputError, MaskError, SizeMismatchError
from harmony_diffusion.images.compose import paste_foreground
from harmony_diffusion.images.picture import load_picture


@pytest.fixture
def background():
    return load_picture(np.full((40, 60, 3), 100, np.uint8), name="background")


def cut_out(height=20, width=20, colour=(200, 10, 30)):
    rgba = np.zeros((height, width, 4), np.uint8)
    rgba[..., :3] = (0, 255, 0)  # colour hidden under alpha 0, which must never show
    rgba[4:-4, 4:-4] = (*colour, 255)
    return load_picture(Image.fromarray(rgba, "RGBA"), name="foreground")


def test_opaque_pixels_are_the_foreground_and_the_rest_is_the_background(background):
    composite, mask = paste_foreground(cut_out(), background, at=(5, 7))
    assert mask.shape == (40, 60) and mask.sum() == 12 * 12
    assert (composite.pixels[mask == 1] == (200, 10, 30)).all()
    assert (composite.pixels[mask == 0] == 100).all()
    assert (background.pixels == 100).all()
    assert mask[7 + 4, 5 + 4] == 1 and mask[7 + 3, 5 + 4] == 0


def test_hidden_colour_does_not_bleed_when_scaled(background):
    composite, mask = paste_foreground(cut_out(), background, scale=0.63)
    edge = composite.pixels[(mask > 0) & (mask < 1)].astype(int)
    assert len(edge)
    assert (edge[:, 1] <= 101).all()  # green lies between 10 and 100, never near the hidden 255


def test_foreground_over_the_border_is_clipped(background):
    composite, mask = paste_foreground(cut_out(), background, at=(-8, -8))
    assert mask[:8, :8].all() and mask.sum() == 64
    large, mask = paste_foreground(cut_out(200, 200), background)
    assert mask.all() and large.size == background.size


@pytest.mark.parametrize("at", [(60, 0), (0, 40), (-20, 0), (5000, -5000)])
def test_foreground_wholly_outside_is_an_error(background, at):
    with pytest.raises(InputError, match="wholly outside the 60x40 background"):
        paste_foreground(cut_out(), background, at=at)


def test_only_hidden_pixels_on_the_background_is_an_error(background):
    with pytest.raises(MaskError, match="nothing of it is visible"):
        paste_foreground(cut_out(), background, at=(-17, 0))


def test_mask_multiplies_alpha(background):
    half = np.zeros((20, 20), np.float32)
    half[:, :10] = 1
    _, mask = paste_foreground(cut_out(), background, half)
    assert mask.sum() == 12 * 6


def test_opaque_foreground_without_mask_is_an_error(background):
    opaque = load_picture(np.zeros((20, 20, 3), np.uint8), name="foreground")
    with pytest.raises(MaskError, match="no transparency"):
        paste_foreground(opaque, background)
    with pytest.raises(SizeMismatchError, match="10x10 .* 20x20"):
        paste_foreground(opaque, background, np.ones((10, 10), np.float32))


@pytest.mark.parametrize("scale", [0, -1, float("nan"), float("inf"), 1000])
def test_impossible_scales_are_refused(background, scale):
    with pytest.raises(InputError, match="scale"):
        paste_foreground(cut_out(), background, scale=scale)


@pytest.mark.parametrize("value", [255, 2.0, -0.5, float("nan")])
def test_masks_that_are_not_from_0_to_1_are_refused(background, value):
    mask = np.zeros((20, 20), np.uint8 if value == 255 else np.float32)
    mask[5:9, 5:9] = value
    with pytest.raises(MaskError, match="from 0 to 1.*load_mask"):
        paste_foreground(cut_out(), background, mask)
