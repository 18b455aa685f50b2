import cv2
import numpy as np
import pytest
from PIL import Image

from harmony_diffusion.cli import main
from harmony_diffusion.images import foreground_colors
from harmony_diffusion.images.compose import compose
from harmony_diffusion.images.foreground_colors import decontaminate_colors
from harmony_diffusion.images.picture import Picture, load_picture

GREEN = np.array([0.05, 0.8, 0.15], np.float32)


def green_screen(seed):
    """A textured object before a green screen: what a camera sees, alpha, and the object's true colours."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0.1, 0.9, (6, 6, 3)).astype(np.float32)
    truth = cv2.resize(coarse, (160, 120), interpolation=cv2.INTER_CUBIC).clip(0, 1)
    solid = np.zeros((120, 160), np.float32)
    cv2.circle(solid, (60, 60), 35, 1, -1)
    cv2.line(solid, (60, 60), (140, 20), 1, 7)
    for end in rng.integers(0, 120, (12, 2)).tolist():  # hair
        cv2.line(solid, (60, 60), end, 0.7, 1, cv2.LINE_AA)
    alpha = cv2.GaussianBlur(solid, (0, 0), 2)
    alpha = np.where(alpha > 0.99, 1, np.where(alpha < 0.01, 0, alpha)).astype(np.float32)
    screen = (GREEN + rng.normal(0, 0.01, truth.shape)).astype(np.float32)
    seen = (alpha[..., None] * truth + (1 - alpha[..., None]) * screen).clip(0, 1)
    return np.rint(seen * 255).astype(np.float32) / 255, alpha, truth


def edge_error(colors, alpha, truth):
    edge = (alpha > 0.02) & (alpha < 0.98)
    return np.sqrt(((colors - truth)[edge] ** 2).mean())


@pytest.mark.parametrize("seed", range(4))
def test_error_of_edge_pixels_falls_by_60_percent(seed):
    seen, alpha, truth = green_screen(seed)
    assert edge_error(decontaminate_colors(seen, alpha), alpha, truth) <= 0.4 * edge_error(seen, alpha, truth)


def test_error_falls_where_the_hidden_background_was_erased():
    seen, alpha, truth = green_screen(0)
    seen[alpha == 0] = 0
    assert edge_error(decontaminate_colors(seen, alpha), alpha, truth) <= 0.5 * edge_error(seen, alpha, truth)


def test_opaque_and_hidden_pixels_stay_as_they_are():
    seen, alpha, _ = green_screen(0)
    result = decontaminate_colors(seen, alpha)
    hard = (alpha == 0) | (alpha == 1)
    np.testing.assert_array_equal(result[hard], seen[hard])
    assert result.min() >= 0 and result.max() <= 1 and result.dtype == np.float32
    whole = np.where(alpha > 0.5, 1, 0).astype(np.float32)
    np.testing.assert_array_equal(decontaminate_colors(seen, whole), seen)


def test_tiles_leave_no_seam(monkeypatch):
    seen, alpha, _ = green_screen(0)
    whole = decontaminate_colors(seen, alpha)
    monkeypatch.setattr(foreground_colors, "_TILE", 32)  # even, so that the checkerboards agree
    np.testing.assert_array_equal(decontaminate_colors(seen, alpha), whole)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (33, 2), (17, 65)])
def test_any_size(size):
    rng = np.random.default_rng(0)
    colors, alpha = rng.random((*size, 3), np.float32), rng.random(size, np.float32)
    assert decontaminate_colors(colors, alpha).shape == (*size, 3)


def test_composite_shows_less_green_and_the_mask_is_the_same(tmp_path):
    seen, alpha, truth = green_screen(1)
    pixels = np.dstack((seen, alpha))
    foreground = load_picture(
        Image.fromarray(np.rint(pixels * 255).astype(np.uint8), "RGBA"), name="foreground"
    )
    background = Picture(np.full((120, 160, 3), 60, np.uint8))
    plain, clean = (compose(foreground, background, decontaminate=choice) for choice in (False, True))
    np.testing.assert_array_equal(plain.mask, clean.mask)
    wanted = alpha[..., None] * truth * 255 + (1 - alpha[..., None]) * 60
    edge = (alpha > 0.02) & (alpha < 0.98)
    errors = [np.abs(c.composite.pixels - wanted)[edge].mean() for c in (plain, clean)]
    assert errors[1] <= 0.4 * errors[0]

    foreground.save(tmp_path / "cut.png")
    background.save(tmp_path / "ground.png")
    call = ["compose", "cut.png", "ground.png", "-o", "out.png", "--model", "identity", "--decontaminate"]
    assert main([str(tmp_path / part) if part.endswith("png") else part for part in call]) == 0
    np.testing.assert_array_equal(
        np.asarray(Image.open(tmp_path / "out_composite.png")), clean.composite.pixels
    )
