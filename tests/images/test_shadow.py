import csv
import math

import cv2
import numpy as np
import pytest
from PIL import Image

from harmony_diffusion.cli import main
from harmony_diffusion.errors import InputError, InputNote, SizeMismatchError
from harmony_diffusion.images.compose import compose, paste_foreground
from harmony_diffusion.images.picture import Picture, load_picture
from harmony_diffusion.images.shadow import Shadow, draw_shadow, lay_shadow
from harmony_diffusion.images.shadow_guess import guess_shadow


def shape(name):
    """A cut-out of one colour, with room around it."""
    alpha = np.zeros((90, 90), np.uint8)
    if name == "box":
        alpha[10:80, 30:60] = 255
    elif name == "ball":
        cv2.circle(alpha, (45, 45), 30, 255, -1, cv2.LINE_AA)
    elif name == "table":
        alpha[30:40, 10:80] = 255
        alpha[40:80, 12:18] = alpha[40:70, 72:78] = 255
    elif name == "tree":
        cv2.circle(alpha, (45, 30), 22, 255, -1, cv2.LINE_AA)
        alpha[50:84, 42:48] = 255
    else:
        cv2.fillPoly(alpha, [np.array([[45, 8], [80, 78], [12, 82]])], 255, cv2.LINE_AA)
    return load_picture(Image.fromarray(np.dstack((*[np.full_like(alpha, v) for v in (200, 60, 30)], alpha))))


GROUND = Picture(np.full((150, 200, 3), 180, np.uint8), name="background")
SHAPES = ("box", "ball", "table", "tree", "cone")
COMPOSITES = [(name, shadow) for name in SHAPES for shadow in ("auto", Shadow(25, 0.8, 0.4, 0.6))]


@pytest.mark.parametrize(("name", "shadow"), COMPOSITES)
def test_shadow_only_darkens_outside_the_mask_below_or_beside_the_object(name, shadow):
    plain, mask = paste_foreground(shape(name), GROUND, at=(40, 20))
    composed = compose(shape(name), GROUND, at=(40, 20), shadow=shadow)
    np.testing.assert_array_equal(composed.mask, mask)
    change = composed.composite.pixels.astype(int) - plain.pixels
    assert change.max() == 0 and change.min() < -20
    assert not change[mask == 1].any()
    highest = np.flatnonzero(mask.any(1))[0]
    assert not change[:highest].any()
    # Where it is darkest there is ground: at the object's foot or beyond.
    assert (
        np.argwhere(change.min(2) == change.min())[:, 0].min()
        > (highest + np.flatnonzero(mask.any(1))[-1]) / 2
    )


def test_layer_gives_the_composite_as_the_blend_mode_multiply_does():
    composed = compose(shape("tree"), GROUND, shadow=Shadow(150, 0.6, 0.3, 0.5))
    assert composed.shadow.min() >= 0.5 and composed.shadow.max() == 1
    outside = composed.mask == 0
    expected = (180 * composed.shadow)[outside]
    assert np.abs(composed.composite.pixels[..., 0][outside] - expected).max() <= 0.51


def test_direction_and_length_are_those_given():
    mask = np.zeros((300, 300), np.float32)
    mask[100:150, 140:160] = 1
    for angle in (0, 45, 90, 135, 180):
        shadow = 1 - draw_shadow(mask, Shadow(angle, 1.5, 0.1, 0.5))
        rows, columns = np.nonzero(shadow > 0.15)
        away = np.array([columns - 149.5, rows - 149.0])
        radians = math.radians(angle)
        reach = (away * [[math.cos(radians)], [math.sin(radians)]]).sum(0).max()
        assert 65 < reach < 95  # 1.5 times 50, and half the width of the object
    behind = 1 - draw_shadow(mask, Shadow(-45, 1.0, 0.1, 0.5))
    assert behind[:145, 160:].max() > 0.1 and behind[:, :140].max() < 0.2


def test_softer_is_flatter_and_density_scales_it():
    mask = np.zeros((200, 200), np.float32)
    mask[60:120, 80:110] = 1
    edge = [
        np.abs(np.diff(draw_shadow(mask, Shadow(20, 1, softness, 0.6)), axis=1)[125:]).max()
        for softness in (0, 1)
    ]
    assert edge[1] < edge[0] / 3
    full, half = (1 - draw_shadow(mask, Shadow(20, 1, 0.3, density)) for density in (0.8, 0.4))
    np.testing.assert_allclose(half, full / 2, atol=1e-6)


def test_density_0_changes_nothing_and_no_shadow_has_no_layer():
    composed = compose(shape("box"), GROUND, shadow=Shadow(density=0))
    assert (composed.shadow == 1).all()
    np.testing.assert_array_equal(composed.composite.pixels, compose(shape("box"), GROUND).composite.pixels)
    assert compose(shape("box"), GROUND).shadow is None


def test_object_cut_by_the_lower_border_has_no_shadow():
    mask = np.zeros((60, 60), np.float32)
    mask[20:, 20:40] = 1
    with pytest.warns(InputNote, match="cuts has no foot"):
        assert (draw_shadow(mask, Shadow()) == 1).all()


def test_each_object_of_a_mask_stands_on_its_own_foot():
    mask = np.zeros((120, 160), np.float32)
    mask[20:50, 20:40] = mask[60:100, 100:130] = 1
    layer = draw_shadow(mask, Shadow())
    assert layer[51, 30] < 0.8 and layer[101, 115] < 0.8 and layer[75, 30] > 0.97


def test_depth_and_untouched_pixels_are_kept():
    rng = np.random.default_rng(0)
    deep = Picture(rng.integers(0, 65536, (60, 80, 3), dtype=np.uint16))
    layer = np.ones((60, 80), np.float32)
    layer[20:30, 20:30] = 0.5
    darker = lay_shadow(deep, layer)
    assert darker.pixels.dtype == np.uint16
    np.testing.assert_array_equal(darker.pixels[layer == 1], deep.pixels[layer == 1])
    np.testing.assert_allclose(darker.pixels[20:30, 20:30], deep.pixels[20:30, 20:30] / 2, atol=0.51)
    with pytest.raises(SizeMismatchError, match="80x59"):
        lay_shadow(deep, layer[:59])


@pytest.mark.parametrize(
    "numbers", [(400, 1, 0, 0), (0, 4, 0, 0), (0, 1, 2, 0), (0, 1, 0, -1), (math.nan, 1, 0, 0)]
)
def test_numbers_out_of_range_are_refused(numbers):
    with pytest.raises(InputError, match="must be a number from"):
        Shadow(*numbers)


def test_unknown_word_is_refused():
    with pytest.raises(InputError, match="Give a `Shadow`"):
        compose(shape("box"), GROUND, shadow="soft")


@pytest.mark.parametrize(("angle", "density"), [(45, 0.3), (45, 0.5), (90, 0.5), (130, 0.4)])
def test_shadows_of_the_background_give_direction_and_density(angle, density):
    rng = np.random.default_rng(1)
    ground = Picture(
        np.clip(np.array([150, 140, 120]) + rng.normal(0, 6, (300, 400, 1)), 0, 255).astype(np.uint8)
    )
    posts = np.zeros((300, 400), np.float32)
    for x, y in ((60, 170), (130, 190), (300, 180), (340, 160), (90, 120)):
        posts[y - 70 : y, x : x + 18] = 1
    pixels = lay_shadow(ground, draw_shadow(posts, Shadow(angle, 0.7, 0.2, density))).pixels.copy()
    pixels[posts > 0] = (60, 120, 60)
    mask = np.zeros((300, 400), np.float32)
    mask[100:220, 180:220] = 1
    guess = guess_shadow(Picture(pixels), mask)
    assert abs(guess.angle - angle) < 12 and abs(guess.density - density) < 0.12


def test_ground_without_shadows_gives_a_small_one_below():
    mask = np.zeros((150, 200), np.float32)
    mask[40:90, 80:110] = 1
    noise = np.random.default_rng(0).normal(150, 12, (150, 200, 3)).clip(0, 255).astype(np.uint8)
    steep = np.broadcast_to(np.linspace(40, 220, 200)[:, None], (150, 200, 3)).astype(np.uint8)
    for pixels in (GROUND.pixels, noise, steep):
        assert guess_shadow(Picture(pixels), mask) == Shadow()
    with pytest.raises(SizeMismatchError, match="100x150"):
        guess_shadow(GROUND, mask[:, :100])


@pytest.fixture
def files(tmp_path):
    shape("tree").save(tmp_path / "cut.png")
    GROUND.save(tmp_path / "ground.png")
    return tmp_path


def test_command_writes_the_shadow_as_a_layer(files):
    call = ["compose", files / "cut.png", files / "ground.png", "--model", "identity"]
    assert main([str(a) for a in [*call, "-o", files / "a.jpg", "--shadow", "-30,0.5,0.4,0.5"]]) == 0
    layer = np.asarray(Image.open(files / "a_shadow.png"))
    assert layer.shape == (150, 200) and 127 <= layer.min() < 190 and layer.max() == 255
    assert main([str(a) for a in [*call, "-o", files / "b.jpg", "--shadow", "OFF"]]) == 0
    assert not (files / "b_shadow.png").exists()
    assert main([str(a) for a in [*call, "-o", files / "c.jpg", "--shadow", "auto"]]) == 0
    assert np.asarray(Image.open(files / "c_shadow.png")).min() < 200


@pytest.mark.parametrize("text", ["soft", "1,2,3", "1,2,3,4,5"])
def test_command_refuses_other_words(files, text, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["compose", str(files / "cut.png"), str(files / "ground.png"), "-o", "x.png", "--shadow", text])
    assert stopped.value.code == 2 and "ANGLE,LENGTH" in capsys.readouterr().err


def test_real_cut_outs_on_flat_ground(shared):
    with (shared / "data/photos/index.csv").open() as index:
        rows = [row for row in csv.DictReader(index) if row["source"] == "dreambooth"]
    looked_at = 0
    for row in rows:
        path = shared / "data/photos" / row["source"] / row["id"]
        alpha = np.asarray(Image.open(path.with_suffix(".png")).convert("L"))
        if alpha[-1].any() or looked_at == 10:
            continue
        looked_at += 1
        foreground = load_picture(
            Image.fromarray(np.dstack((np.asarray(Image.open(path.with_suffix(".jpg"))), alpha)))
        )
        height, width = alpha.shape
        ground = Picture(np.full((height * 3 // 2, width * 2, 3), 180, np.uint8))
        at = (width // 2, height // 4)
        plain, mask = paste_foreground(foreground, ground, at=at)
        composed = compose(foreground, ground, at=at, shadow="auto")
        change = composed.composite.pixels.astype(int) - plain.pixels
        assert change.max() == 0 > change.min() and not change[mask > 0].any()
        assert not change[: np.flatnonzero(mask.any(1))[0]].any()
    assert looked_at == 10
