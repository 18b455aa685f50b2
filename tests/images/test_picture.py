import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from picture_files import (
    DISPLAY_P3,
    SRGB,
    SRGB_CURVE,
    gamma_curve,
    grey_profile,
    matrix_profile,
    png16,
    smooth_picture,
    swapped_table_profile,
)
from PIL import Image

from harmony_diffusion.errors import InputError, InputNote, SizeMismatchError
from harmony_diffusion.images.masks import load_mask
from harmony_diffusion.images.picture import Picture, load_pairs, load_picture

P3 = matrix_profile(DISPLAY_P3, SRGB_CURVE)
TESTS = Path(__file__).parents[1]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("profile", [None, P3, matrix_profile(DISPLAY_P3, gamma_curve(1.8))])
def test_unchanged_values_give_the_original_pixels(dtype, profile):
    rng = np.random.default_rng(0)
    high = 1 if dtype is np.float32 else np.iinfo(dtype).max
    pixels = (rng.random((40, 56, 3)) * high).astype(dtype)
    picture = Picture(pixels, None, profile)
    rows, columns = slice(3, 33), slice(10, 50)
    srgb = picture.read_srgb(rows, columns)
    assert srgb.dtype == np.float32 and srgb.min() >= 0 and srgb.max() <= 1
    whole = picture.read_srgb()
    np.testing.assert_allclose(whole[rows, columns], srgb, atol=1e-6, rtol=0)
    for values in (srgb, whole[rows, columns]):
        written = picture.write_srgb(values, rows, columns)
        assert written.dtype == dtype and np.array_equal(written, pixels[rows, columns])


def test_changed_values_are_rounded_to_nearest():
    picture = load_picture(np.zeros((16, 16, 3), np.uint8))
    values = np.full((16, 16, 3), 100.4 / 255, np.float32)
    assert (picture.write_srgb(values) == 100).all()
    assert (picture.write_srgb(values + 0.2 / 255) == 101).all()
    assert (picture.write_srgb(values * 0 - 0.3) == 0).all() and (picture.write_srgb(values + 5) == 255).all()
    deep = load_picture(np.zeros((16, 16, 3), np.uint16))
    assert (deep.write_srgb(values) == round(100.4 * 257)).all()


def test_only_changed_pixels_are_converted_back():
    pixels = smooth_picture(dtype=np.uint16)
    picture = Picture(pixels, None, P3)
    srgb = picture.read_srgb()
    srgb[:20] = srgb[:20] * 0.5 + 0.25
    written = picture.write_srgb(srgb)
    assert np.array_equal(written[20:], pixels[20:])
    np.testing.assert_allclose(Picture(written, None, P3).read_srgb()[:20], srgb[:20], atol=2e-5)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("size", [(33, 77), (256, 256), (61, 19), (16, 16), (40, 56)])
def test_thumbnail_is_the_bilinear_interpolation_of_torch(dtype, size):
    rng = np.random.default_rng(0)
    pixels = rng.random((401, 263, 3)).astype(np.float32)
    if dtype is not np.float32:
        pixels = (pixels * np.iinfo(dtype).max).astype(dtype)
    picture = load_picture(pixels)
    expected = torch.nn.functional.interpolate(
        picture.to_tensor()[None], size=size, mode="bilinear", align_corners=False, antialias=False
    )
    np.testing.assert_allclose(picture.thumbnail_srgb(*size), expected[0].permute(1, 2, 0), atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [(33, 77), (64, 64), (500, 300), (1, 1)])
def test_antialiased_thumbnail_averages_areas(size):
    picture = Picture(smooth_picture(401, 263, np.uint16), None, P3)
    expected = torch.nn.functional.adaptive_avg_pool2d(picture.to_tensor()[None], size)[0].permute(1, 2, 0)
    np.testing.assert_allclose(picture.thumbnail_srgb(*size, antialias=True), expected, atol=2e-6, rtol=0)


def test_a_single_pixel_is_not_lost_by_averaging():
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[5, 5] = 255
    picture = load_picture(pixels)
    assert picture.thumbnail_srgb(8, 8).sum() == 0
    np.testing.assert_allclose(picture.thumbnail_srgb(8, 8, antialias=True)[0, 0], 1 / 64, rtol=1e-6)


def test_all_sources_give_the_same_picture(tmp_path):
    pixels = smooth_picture()
    Image.fromarray(pixels).save(tmp_path / "a.png")
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    for source in (
        pixels,
        Image.fromarray(pixels),
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        tensor,
        tensor[None],
        pixels[None],
    ):
        picture = load_picture(source)
        assert picture.pixels.dtype == np.uint8 and np.array_equal(picture.pixels, pixels)
        assert picture.alpha is None and picture.profile is None and picture.size == (40, 56)
        assert load_picture(picture) is picture
    for source in (tensor / 255, tensor.double()[None] / 255, (pixels / 255).astype(np.float64)):
        assert np.array_equal(load_picture(source).to_tensor(), tensor / 255)
    half = load_picture((tensor / 255).to(torch.bfloat16).requires_grad_())
    assert half.pixels.dtype == np.float32 and np.abs(half.pixels - pixels / 255).max() < 1 / 256


def test_grey_and_alpha_channels_of_arrays():
    grey = smooth_picture()[..., 0]
    for source in (grey, grey[..., None], torch.from_numpy(grey), torch.from_numpy(grey)[None]):
        assert np.array_equal(load_picture(source).pixels, np.dstack((grey,) * 3))
    picture = load_picture(np.dstack((smooth_picture(), grey)))
    assert np.array_equal(picture.alpha, grey) and np.array_equal(picture.pixels, smooth_picture())
    opaque = np.dstack((grey, grey * 0 + 255))
    assert load_picture(opaque).alpha is None and np.array_equal(load_picture(opaque).pixels[..., 1], grey)


def test_conversions_keep_what_they_can_hold():
    pixels = smooth_picture()
    picture = Picture(pixels, pixels[..., 0], P3, b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0")
    image = picture.to_pil()
    assert image.mode == "RGBA" and np.array_equal(np.asarray(image), picture.to_numpy())
    assert image.info["icc_profile"] == P3 and image.info["exif"] == picture.exif
    again = load_picture(image)
    assert again.profile == P3 and np.array_equal(again.to_numpy(), picture.to_numpy())
    tensor = picture.to_tensor()
    assert tensor.shape == (3, 40, 56) and tensor.dtype == torch.float32
    assert np.array_equal(tensor.permute(1, 2, 0), picture.read_srgb())
    deep = load_picture(smooth_picture(dtype=np.uint16))
    with pytest.warns(InputNote, match="16 bits"):
        assert np.array_equal(np.asarray(deep.to_pil()), np.rint(deep.pixels / 257))


def test_new_pixels_must_fit():
    picture = load_picture(smooth_picture())
    with pytest.raises(InputError, match=r"\(40, 55, 3\)"):
        picture.with_pixels(picture.pixels[:, 1:])
    with pytest.raises(InputError, match="uint16"):
        picture.with_pixels(picture.pixels.astype(np.uint16))
    assert picture.with_pixels(255 - picture.pixels).name == picture.name


def test_grey_profiles_are_applied():
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.fromarray(grey)
    image.info["icc_profile"] = grey_profile(gamma_curve(1.0))
    with pytest.warns(InputNote, match="grey colour profile is converted"):
        picture = load_picture(image)
    linear = grey / 255
    expected = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055) * 255
    assert np.abs(picture.pixels[..., 0] - expected).max() <= 0.501 and picture.profile is None
    image.info["icc_profile"] = grey_profile(SRGB_CURVE)
    assert np.array_equal(load_picture(image).pixels[..., 0], grey)
    image.info["icc_profile"] = P3  # a grey picture in an RGB space: its values are the same in all channels
    assert load_picture(image).profile == P3


def test_an_srgb_profile_is_kept_and_nothing_converted(tmp_path):
    profile = matrix_profile(SRGB, SRGB_CURVE)
    pixels = smooth_picture(dtype=np.uint16)
    Picture(pixels, None, profile).save(tmp_path / "a.png")
    picture = load_picture(tmp_path / "a.png")
    assert picture.profile == profile
    assert np.array_equal(picture.read_srgb(), pixels / np.float32(65535))
    assert np.array_equal(picture.write_srgb(picture.read_srgb()), pixels)


def test_table_profiles_are_announced(tmp_path):
    pixels = smooth_picture(dtype=np.uint16)
    path = tmp_path / "a.png"
    Picture(pixels, None, swapped_table_profile()).save(path)
    with pytest.warns(InputNote, match="made of tables; what is changed is computed in 8 bits"):
        picture = load_picture(path)
    srgb = picture.read_srgb()
    assert np.abs(srgb[..., ::-1] * 65535 - pixels).max() < 5 * 257
    srgb[:20] *= 0.5
    written = picture.write_srgb(srgb)
    assert np.array_equal(written[20:], pixels[20:])
    one_way = Image.fromarray(smooth_picture())
    one_way.info["icc_profile"] = swapped_table_profile(writable=False)
    with pytest.warns(InputNote, match="has no way back"):
        picture = load_picture(one_way)
    assert picture.profile is None
    assert np.abs(picture.pixels[..., ::-1].astype(int) - smooth_picture()).max() < 5


def test_pairs_of_every_kind():
    composites, masks = torch.rand(2, 3, 40, 56), torch.zeros(2, 1, 40, 56)
    masks[..., 10:20, 10:20] = 1
    pairs = load_pairs(composites, masks)
    assert [picture.name for picture, _ in pairs] == ["composite[0]", "composite[1]"]
    for i, (picture, mask) in enumerate(pairs):
        assert np.array_equal(picture.to_tensor(), composites[i]) and np.array_equal(mask, masks[i, 0])
    ((picture, mask),) = load_pairs(composites[0], masks[0])
    assert picture.name == "composite" and mask.shape == (40, 56)
    arrays = composites.permute(0, 2, 3, 1).numpy()
    assert len(load_pairs(arrays, masks[:, 0].numpy())) == 2
    assert len(load_pairs([arrays[0], composites[1]], (masks[0], masks[1, 0].bool()))) == 2
    ((_, resized),) = load_pairs(composites[0], torch.zeros(1, 20, 28) + masks[0, :, ::2, ::2], resize=True)
    assert resized.shape == (40, 56)
    with pytest.raises(SizeMismatchError):
        load_pairs(composites[0], masks[0, :, ::2, ::2])
    with pytest.warns(InputNote, match="touches all its borders"):
        ((_, inverted),) = load_pairs(composites[0], masks[0], invert=True)
    assert np.array_equal(inverted, 1 - masks[0, 0])


def test_masks_of_every_kind():
    expected = np.zeros((40, 56), np.float32)
    expected[10:20, 10:20] = 1
    eight = (expected * 255).astype(np.uint8)
    for source in (
        eight,
        eight[..., None],
        eight[None],
        eight.astype(np.uint16) * 257,
        expected,
        expected.astype(np.float16),
        expected.astype(bool),
        Image.fromarray(eight),
        Image.fromarray(eight).convert("1"),
        torch.from_numpy(expected),
        torch.from_numpy(expected)[None],
        torch.from_numpy(expected)[None, None],
        torch.from_numpy(expected).bool(),
        torch.from_numpy(eight),
        np.dstack((eight,) * 3),
        torch.from_numpy(expected).expand(3, -1, -1),
    ):
        mask = load_mask(source)
        assert mask.dtype == np.float32 and np.array_equal(mask, expected)
    for bad, reason in (
        (np.zeros((2, 40, 56)), "no mask"),
        (expected * 255, "Divide by 255"),
        (expected - 1, "reach from -1"),
        (np.full((40, 56), np.nan), "NaN"),
        (np.full((40, 56), 70000), "beyond 0 to 65535"),
        (np.zeros((40, 56), complex), "complex"),
        (np.zeros((0, 56)), "56x0"),
        (None, "NoneType"),
    ):
        with pytest.raises(InputError, match=reason):
            load_mask(bad)


def test_16_bit_pictures_need_little_more_memory_than_their_pixels(tmp_path):
    pixels = smooth_picture(1008, 1512, np.uint16)
    for suffix in ("png", "tif"):
        path = tmp_path / f"a.{suffix}"
        if suffix == "png":
            path.write_bytes(png16(pixels))
        else:
            load_picture(pixels).save(path)
        tracemalloc.start()
        picture = load_picture(path)
        loading = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        kept = tracemalloc.get_traced_memory()[0]
        picture.thumbnail_srgb(256, 256)
        picture.thumbnail_srgb(64, 64, antialias=True)
        picture.write_srgb(picture.read_srgb(slice(0, 64), slice(0, 64)), slice(0, 64), slice(0, 64))
        picture.save(tmp_path / f"b.{suffix}")
        working = tracemalloc.get_traced_memory()[1] - kept
        tracemalloc.stop()
        assert pixels.nbytes <= loading < 1.6 * pixels.nbytes and working < 0.6 * pixels.nbytes, suffix


FULL_SIZE = """
import numpy as np, resource, sys
sys.path.insert(0, {tests!r})
from picture_files import DISPLAY_P3, SRGB_CURVE, matrix_profile
from harmony_diffusion.images.picture import load_picture
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
picture = load_picture({path!r})
pixels = picture.pixels.copy()
for y in range(0, 4032, 512):
    for x in range(0, 6048, 512):
        window = slice(y, y + 512), slice(x, x + 512)
        pixels[window] = picture.write_srgb(picture.read_srgb(*window) * 0.9, *window)
picture.with_pixels(pixels).save({target!r})
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_24_megapixels_of_16_bits_stay_within_half_a_gigabyte(tmp_path, suffix):
    path, target = str(tmp_path / f"a.{suffix}"), str(tmp_path / f"b.{suffix}")
    tile = smooth_picture(504, 756, np.uint16)
    Picture(np.tile(tile, (8, 8, 1)), None, P3).save(path)
    script = FULL_SIZE.format(tests=str(TESTS), path=path, target=target)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 500
