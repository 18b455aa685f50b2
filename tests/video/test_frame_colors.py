import numpy as np
import pytest

from harmony_diffusion.images.picture import Picture
from harmony_diffusion.video.frame_colors import Frame, PictureFrame, SampleCoding

KINDS = [
    (bits, step, matrix, full)
    for bits in (8, 10)
    for step in ((2, 2), (1, 2), (1, 1))
    for matrix in ("bt601", "bt709")
    for full in (False, True)
]
LUMA = {"bt601": (0.299, 0.587, 0.114), "bt709": (0.2126, 0.7152, 0.0722)}


def random_frame(bits, step, matrix, full, size=(38, 54), turns=0, seed=0):
    rng = np.random.default_rng(seed)
    kind = np.uint8 if bits == 8 else np.uint16
    chroma = -(-size[0] // step[0]), -(-size[1] // step[1])
    planes = tuple(rng.integers(0, 1 << bits, s).astype(kind) for s in (size, chroma, chroma))
    return Frame(planes, SampleCoding(False, bits, matrix, full), turns)


def scales(bits, full):
    unit = 2 ** (bits - 8)
    luma = (0, 2**bits - 1) if full else (16 * unit, 219 * unit)
    chroma = (128 * unit, 2**bits - 1) if full else (128 * unit, 224 * unit)
    return luma, chroma


@pytest.mark.parametrize("bits, step, matrix, full", KINDS)
def test_rgb_is_that_of_the_standard(bits, step, matrix, full):
    (black, span), (grey, spread) = scales(bits, full)
    red, green, blue = LUMA[matrix]
    color = np.array([0.7, 0.3, 0.2])
    luma = red * 0.7 + green * 0.3 + blue * 0.2
    kind = np.uint8 if bits == 8 else np.uint16
    values = (
        black + span * luma,
        grey + spread * (0.2 - luma) / (2 * (1 - blue)),
        grey + spread * (0.7 - luma) / (2 * (1 - red)),
    )
    shapes = (8, 8), (8 // step[0], 8 // step[1]), (8 // step[0], 8 // step[1])
    planes = tuple(np.full(s, round(v), kind) for s, v in zip(shapes, values, strict=True))
    rgb = Frame(planes, SampleCoding(False, bits, matrix, full)).rgb((slice(0, 8), slice(0, 8)))
    np.testing.assert_allclose(rgb, np.broadcast_to(color, rgb.shape), atol=2 / 2**bits)


@pytest.mark.parametrize("bits, step, matrix, full", KINDS)
def test_a_change_touches_no_sample_outside_its_pixels_and_is_right_inside(bits, step, matrix, full):
    frame = random_frame(bits, step, matrix, full)
    box = frame.aligned((slice(5, 23), slice(9, 31)))
    change = np.zeros((box[0].stop - box[0].start, box[1].stop - box[1].start, 3), np.float32)
    change[3:12, 4:15] = np.random.default_rng(1).uniform(-0.2, 0.2, (9, 11, 3))
    made = frame.changed([(box, change)])
    touched = np.zeros(frame.size, bool)
    touched[box] = (change != 0).any(2)

    (black, span), (grey, spread) = scales(bits, full)
    red, green, blue = LUMA[matrix]
    whole = np.zeros((*frame.size, 3))
    whole[box] = change
    luma = whole @ np.array([red, green, blue])
    differences = [luma, (whole[..., 2] - luma) / (2 * (1 - blue)), (whole[..., 0] - luma) / (2 * (1 - red))]
    for plane, (before, after, difference) in enumerate(
        zip(frame.planes, made.planes, differences, strict=True)
    ):
        low, size = (black, span) if plane == 0 else (grey - spread / 2, spread)
        steps = (1, 1) if plane == 0 else step
        blocks = difference.reshape(before.shape[0], steps[0], before.shape[1], steps[1])
        inside = touched.reshape(before.shape[0], steps[0], before.shape[1], steps[1]).any((1, 3))
        np.testing.assert_array_equal(after[~inside], before[~inside])
        exact = before + blocks.mean((1, 3)) * size
        exact = exact.clip(np.minimum(low, before), np.maximum(low + size, before)).clip(0, 2**bits - 1)
        assert np.abs(after[inside] - exact[inside]).max() <= 1


@pytest.mark.parametrize("size", [(38, 54), (37, 53)])
@pytest.mark.parametrize("step", [(2, 2), (1, 2), (1, 1)])
def test_a_change_of_nothing_returns_every_sample(step, size):
    frame = random_frame(8, step, "bt709", False, size)
    whole = slice(0, size[0]), slice(0, size[1])
    made = frame.changed([(whole, np.zeros((*size, 3), np.float32))])
    for before, after in zip(frame.planes, made.planes, strict=True):
        np.testing.assert_array_equal(before, after)
        assert after.base is None or not np.shares_memory(before, after)


@pytest.mark.parametrize("step", [(2, 2), (1, 2)])
@pytest.mark.parametrize("turns", [0, 1])
def test_a_window_has_the_colours_of_the_whole_frame(step, turns):
    frame = random_frame(8, step, "bt709", False)
    frame = Frame(tuple(np.rot90(p, turns) for p in frame.planes), frame.coding, turns)
    whole = frame.rgb((slice(0, frame.size[0]), slice(0, frame.size[1])))
    for box in (
        (slice(0, 3), slice(0, 5)),
        (slice(7, 20), slice(11, 30)),
        (slice(30, frame.size[0]), slice(33, 38)),
    ):
        np.testing.assert_allclose(frame.rgb(box), whole[box], atol=1e-6)


def test_turned_frames_go_back_as_they_were():
    frame = random_frame(8, (2, 2), "bt709", False)
    turned = Frame(tuple(np.rot90(p, 3) for p in frame.planes), frame.coding, 3)
    for before, after in zip(frame.planes, turned.coded_planes(), strict=True):
        np.testing.assert_array_equal(before, after)


def test_samples_beyond_the_range_stay_unless_they_are_changed():
    planes = (np.full((4, 4), 250, np.uint8), np.full((2, 2), 128, np.uint8), np.full((2, 2), 128, np.uint8))
    frame = Frame(planes, SampleCoding(False, 8))
    brighter = frame.changed([((slice(0, 4), slice(0, 4)), np.full((4, 4, 3), 0.5, np.float32))])
    darker = frame.changed([((slice(0, 4), slice(0, 4)), np.full((4, 4, 3), -0.1, np.float32))])
    assert (brighter.planes[0] == 250).all()
    assert (darker.planes[0] == round(250 - 21.9)).all()


def test_frames_beside_each_other_keep_their_samples():
    one, other = random_frame(8, (2, 2), "bt709", False), random_frame(8, (2, 2), "bt709", False, seed=1)
    joined = one.beside(other)
    assert joined.size == (38, 108)
    for left, right, both in zip(one.planes, other.planes, joined.planes, strict=True):
        np.testing.assert_array_equal(both, np.hstack((left, right)))


def test_pictures_change_in_their_own_depth_where_the_change_is_not_zero():
    pixels = np.random.default_rng(0).integers(0, 65536, (20, 30, 3)).astype(np.uint16)
    frame = PictureFrame(Picture(pixels))
    change = np.zeros((6, 8, 3), np.float32)
    change[2:4, 3:5] = 0.1
    made = frame.changed([((slice(4, 10), slice(5, 13)), change)]).picture.pixels
    expected = np.rint((pixels[6:8, 8:10] / 65535 + 0.1).clip(0, 1) * 65535)
    assert np.abs(made[6:8, 8:10].astype(float) - expected).max() <= 1
    made = made.copy()
    made[6:8, 8:10] = pixels[6:8, 8:10]
    np.testing.assert_array_equal(made, pixels)


def test_thumbnails_average_the_colours():
    planes = (
        np.full((64, 64), 126, np.uint8),
        np.full((32, 32), 128, np.uint8),
        np.full((32, 32), 128, np.uint8),
    )
    thumbnail = Frame(planes, SampleCoding(False, 8)).thumbnail(4, 8)
    assert thumbnail.shape == (4, 8, 3)
    assert (thumbnail == round(255 * 110 / 219)).all()
