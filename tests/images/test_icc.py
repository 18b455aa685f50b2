import io

import numpy as np
import pytest
from picture_files import (
    ADOBE_RGB,
    DISPLAY_P3,
    SRGB,
    SRGB_CURVE,
    cmyk_profile,
    gamma_curve,
    grey_profile,
    lut16,
    matrix_profile,
    parametric_curve,
    profile_of_tags,
    smooth_picture,
    swapped_table_profile,
    table_curve,
)
from PIL import Image, ImageCms

from harmony_diffusion.images.icc import apply_curve, cmyk_to_rgb, grey_curve, rgb_profile

ADOBE = matrix_profile(ADOBE_RGB, gamma_curve(563 / 256))
P3 = matrix_profile(DISPLAY_P3, SRGB_CURVE)
TABLE = matrix_profile(DISPLAY_P3, table_curve(np.linspace(0, 1, 1024) ** 1.8))


def littlecms(pixels: np.ndarray, profile: bytes, *, back: bool = False) -> np.ndarray:
    own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    srgb = ImageCms.createProfile("sRGB")
    pair = (srgb, own) if back else (own, srgb)
    transform = ImageCms.buildTransform(*pair, "RGB", "RGB", ImageCms.Intent.RELATIVE_COLORIMETRIC)
    return np.asarray(ImageCms.applyTransform(Image.fromarray(pixels), transform))


def srgb_to_linear(values: np.ndarray) -> np.ndarray:
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def all_colors() -> np.ndarray:
    steps = np.arange(0, 256, 15, dtype=np.uint8)
    return np.stack(np.meshgrid(steps, steps, steps), -1).reshape(18, -1, 3)


@pytest.mark.parametrize("profile", [ADOBE, P3, TABLE], ids=["adobe", "p3", "table"])
def test_matrix_profiles_agree_with_littlecms(profile):
    pixels = all_colors()
    # LittleCMS computes 8 bits with fixed-point matrices: near black it is off by a step.
    for ours, theirs in (
        (rgb_profile(profile).to_srgb(pixels), littlecms(pixels, profile)),
        (rgb_profile(profile).from_srgb(pixels / np.float32(255)), littlecms(pixels, profile, back=True)),
    ):
        difference = np.abs(ours * 255 - theirs)
        assert difference.max() < 1.5 and difference.mean() < 0.3


@pytest.mark.parametrize(
    "curve",
    [
        parametric_curve(0, 1.8),
        parametric_curve(1, 2.0, 0.9, 0.1),
        parametric_curve(2, 2.0, 0.8, 0.1, 0.05),
        parametric_curve(3, 2.2, 0.95, 0.05, 0.1, 0.06),
        parametric_curve(4, 2.2, 0.9, 0.08, 0.2, 0.1, 0.02, 0.01),
    ],
    ids=range(5),
)
def test_parametric_curves_agree_with_littlecms(curve):
    profile = matrix_profile(SRGB, curve)
    pixels = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
    assert np.abs(rgb_profile(profile).to_srgb(pixels) * 255 - littlecms(pixels, profile)).max() < 1.01


def test_depths_share_one_path():
    eight = all_colors()
    profile = rgb_profile(ADOBE)
    sixteen = profile.to_srgb(eight.astype(np.uint16) * 257)
    assert np.array_equal(sixteen, profile.to_srgb(eight))
    np.testing.assert_allclose(profile.to_srgb(eight / np.float32(255)), sixteen, atol=2e-6)


def test_sixteen_bits_survive_the_round_trip():
    # Mixed with grey, the colours stay within sRGB.
    pixels = smooth_picture(64, 64, np.uint16) // 3 + 24000
    profile = rgb_profile(P3)
    srgb = profile.to_srgb(pixels)
    assert 0 < srgb.min() and srgb.max() < 1
    assert np.abs(profile.from_srgb(srgb) * 65535 - pixels).max() < 0.5


def test_adobe_rgb_follows_its_formula():
    # Adobe RGB (1998): gamma 563 / 256; pure green of half the code value.
    pixel = np.array([[[0, 128, 0]]], np.uint8)
    linear = np.linalg.inv(SRGB) @ ADOBE_RGB @ np.array([0, (128 / 255) ** (563 / 256), 0])
    green = 1.055 * linear[1] ** (1 / 2.4) - 0.055
    np.testing.assert_allclose(rgb_profile(ADOBE).to_srgb(pixel)[0, 0, 1], green, atol=2e-4)


@pytest.mark.parametrize("profile", [ADOBE, P3, TABLE], ids=["adobe", "p3", "table"])
def test_grey_stays_exactly_grey(profile):
    greys = np.repeat(np.arange(0, 65536, 257, dtype=np.uint16)[None, :, None], 3, axis=2)
    srgb = rgb_profile(profile).to_srgb(greys)
    assert np.ptp(srgb, axis=2).max() < 2e-6
    assert srgb[0, 0, 0] == 0 and abs(srgb[0, -1, 0] - 1) < 1e-6


@pytest.mark.parametrize(
    "profile",
    [
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        matrix_profile(SRGB, SRGB_CURVE),
        matrix_profile(SRGB, table_curve(srgb_to_linear(np.linspace(0, 1, 1024)))),
    ],
    ids=["built-in", "parametric", "table"],
)
def test_srgb_is_recognised(profile):
    assert rgb_profile(profile) is None


def test_gamma_2_2_is_not_srgb():
    assert rgb_profile(matrix_profile(SRGB, gamma_curve(2.2))) is not None


def test_table_profiles_convert_both_ways():
    profile = rgb_profile(swapped_table_profile())
    pixels = smooth_picture()
    assert not profile.exact and profile.writable
    srgb = profile.to_srgb(pixels)
    assert np.abs(srgb[..., ::-1] * 255 - pixels).max() < 5
    np.testing.assert_array_equal(profile.to_srgb(pixels.astype(np.uint16) * 257), srgb)
    assert np.abs(profile.from_srgb(srgb) * 255 - pixels).max() < 8


def test_tables_have_precedence_over_a_matrix():
    """A profile of which the matrix is that of sRGB, and the table exchanges red and blue."""
    tables = {b"A2B0": lut16(lambda rgb: srgb_to_linear(rgb[:, ::-1]) @ SRGB.T * 32768 / 65535, 3, 33)}
    profile = rgb_profile(matrix_profile(SRGB, SRGB_CURVE, tags=tables))
    pixels = smooth_picture()
    assert not profile.exact
    assert np.abs(profile.to_srgb(pixels)[..., ::-1] * 255 - pixels).mean() < 5


def test_scanner_profile_has_no_way_back():
    assert not rgb_profile(swapped_table_profile(writable=False)).writable


def test_curves_that_fall_are_left_to_littlecms():
    profile = rgb_profile(matrix_profile(SRGB, table_curve(np.array([0, 0.6, 0.3, 1]))))
    assert not profile.exact


def test_cmyk_profile_is_used():
    inks = np.stack([smooth_picture(seed=1)[..., 0] // 2, *np.moveaxis(smooth_picture() // 2, 2, 0)], 2)
    converted = cmyk_to_rgb(Image.fromarray(inks, "CMYK"), cmyk_profile())
    expected = (1 - inks[..., :3] / 255) * (1 - inks[..., 3:] / 255) * 255
    assert converted.mode == "RGB"
    assert np.abs(np.asarray(converted) - expected).max() < 6


def test_cmyk_needs_a_cmyk_profile():
    with pytest.raises(ValueError, match="CMYK"):
        cmyk_to_rgb(Image.new("CMYK", (16, 16)), P3)


def test_grey_profile_is_a_curve():
    curve = grey_curve(grey_profile(gamma_curve(1.0)))
    half = 1.055 * (128 / 255) ** (1 / 2.4) - 0.055
    for values in (
        np.array([128], np.uint8),
        np.array([128 * 257], np.uint16),
        np.array([128 / 255], np.float32),
    ):
        white = 1 if values.dtype == np.float32 else np.iinfo(values.dtype).max
        assert abs(apply_curve(curve, values)[0] / white - half) <= 0.5 / 255
    assert grey_curve(grey_profile(SRGB_CURVE)) is None
    assert np.array_equal(
        grey_curve(grey_profile(b"curv\0\0\0\0\0\0\0\0")), curve
    )  # no table: a straight line
    with pytest.raises(ValueError, match="RGB colours, not grey"):
        grey_curve(P3)


@pytest.mark.parametrize(
    ("profile", "reason"),
    [
        (b"", "not an ICC profile"),
        (b"garbage" * 40, "not an ICC profile"),
        (P3[:200], "cut off"),
        (P3[:-10], "cut off"),
        (profile_of_tags({}, space=b"Lab "), "Lab colours, not RGB"),
        (profile_of_tags({}), "cannot be"),
        (matrix_profile(SRGB, b"what\0\0\0\0\0\0\0\0"), "unknown kind"),
        (matrix_profile(SRGB, parametric_curve(9)), "unknown kind"),
        (matrix_profile(SRGB[:, [0, 0, 0]], SRGB_CURVE), "on a line"),
        (matrix_profile(SRGB, b"curv"), "cut off"),
        (matrix_profile(SRGB, b"curv\0\0\0\0\0\0\1\0" + b"\0" * 20), "cut off"),
        (matrix_profile(SRGB, parametric_curve(4, 2.2)), "cut off"),
    ],
)
def test_damaged_profiles_are_named(profile, reason):
    with pytest.raises(ValueError, match=reason):
        rgb_profile(profile)


def test_damage_anywhere_is_a_value_error():
    rng = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(P3)
        for place in rng.integers(0, len(P3), 4):
            damaged[place] = rng.integers(256)
        try:
            profile = rgb_profile(bytes(damaged))
            if profile is not None:
                assert np.isfinite(profile.to_srgb(all_colors())).all()
        except ValueError:
            pass
