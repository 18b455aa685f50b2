"""Hostile and odd pictures: one test or more for each row (1 to 22) of the project's list of bad input."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
import tifffile
import torch
from picture_files import (
    ADOBE_RGB,
    DISPLAY_P3,
    SRGB_CURVE,
    cmyk_profile,
    disk,
    files_in,
    gamma_curve,
    info_of,
    matrix_profile,
    png,
    png16,
    profile_of_tags,
    refusal,
    saved,
    silence,
    smooth_picture,
)
from PIL import Image, ImageCms, ImageFile, ImageOps

from harmony_diffusion.errors import (
    DecodeError,
    InputError,
    InputNote,
    OutputError,
    TooLargeError,
)
from harmony_diffusion.images.masks import load_mask
from harmony_diffusion.images.picture import load_pairs, load_picture

P3 = matrix_profile(DISPLAY_P3, SRGB_CURVE)


def exif_with(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "Camera maker"
    return exif.tobytes()


def test_row_01_png_bomb_is_refused_before_decoding(tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(png(30000, 30000, 8, 2, b""))
    message = refusal(TooLargeError, path)
    assert "30000x30000" in message and "100 million" in message and "--max-pixels" in message


def test_row_02_the_limit_is_ours_and_can_be_raised(tmp_path):
    path = tmp_path / "large.png"
    path.write_bytes(png(14000, 14000, 8, 2, b""))
    limits = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    with silence():  # Pillow's own limit, which would be an error at this size, is not in the way
        assert "196.0 million" in refusal(TooLargeError, path)
        refusal(DecodeError, path, max_pixels=200_000_000)  # accepted by size, and found to have no pixels
    assert (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES) == limits
    small = saved(tmp_path / "small.png", smooth_picture(40, 50))
    assert "50x40" in refusal(TooLargeError, small, max_pixels=1999)
    assert load_picture(small, max_pixels=2000).size == (40, 50)
    for kind in ("webp", "avif", "gif", "bmp", "tif", "jpg"):
        refusal(TooLargeError, saved(tmp_path / f"small.{kind}", smooth_picture(40, 50)), max_pixels=1999)
    bits = struct.pack("<I", 16382 | 16382 << 14)
    webp = b"WEBPVP8L" + struct.pack("<I", 6) + b"\x2f" + bits + b"\0"
    path.write_bytes(b"RIFF" + struct.pack("<I", len(webp)) + webp)
    assert "16383x16383" in refusal(TooLargeError, path)
    refusal(
        InputError, path, max_pixels=10**9
    )  # Pillow 13 insists on its own limit, Pillow 12 finds no pixels
    refusal(TooLargeError, np.zeros((40, 50, 3), np.uint8), max_pixels=1999)
    refusal(TooLargeError, Image.new("RGB", (50, 40)), max_pixels=1999)


def test_row_03_88_megapixels_load(tmp_path):
    path = saved(tmp_path / "photo.jpg", Image.new("RGB", (11000, 8000), (200, 100, 50)))
    with silence():
        picture = load_picture(path)
    assert picture.size == (8000, 11000)
    np.testing.assert_allclose(
        picture.thumbnail_srgb(8, 8), np.full((8, 8, 3), (200, 100, 50)) / 255, atol=0.01
    )


def test_row_04_empty_file(tmp_path):
    path = tmp_path / "empty.png"
    path.touch()
    assert "empty file" in refusal(DecodeError, path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "run `git lfs pull`"),
        (b"\n<!DOCTYPE html><html><body>404 Not Found</body></html>", "web page"),
        (b"Not found: the key does not exist\n", "text file that begins with 'Not found: the key"),
        (b'{"error": "forbidden"}', "text file"),
        (b"\0" * 5000, "zero bytes"),
        (bytes(range(128, 256)) * 8, "no picture of a known format"),
    ],
    ids=["lfs", "html", "text", "json", "zeros", "noise"],
)
def test_row_05_files_that_are_no_pictures_are_named(tmp_path, content, reason):
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    assert reason.lower() in refusal(DecodeError, path).lower()


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "bmp", "gif", "avif"])
def test_row_06_truncated_files_are_refused(tmp_path, suffix):
    path = saved(tmp_path / f"whole.{suffix}", smooth_picture(128, 128))
    content = path.read_bytes()
    for share in (0.95, 0.6, 0.3):
        cut = tmp_path / f"cut.{suffix}"
        cut.write_bytes(content[: int(share * len(content))])
        message = refusal(DecodeError, cut)
        if suffix in ("jpg", "png"):
            assert "truncated" in message and "--allow-truncated" in message
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp"])
def test_row_06_truncated_files_can_be_allowed(tmp_path, suffix):
    pixels = smooth_picture(128, 128)
    content = saved(tmp_path / f"whole.{suffix}", pixels).read_bytes()
    cut = tmp_path / f"cut.{suffix}"
    cut.write_bytes(content[: len(content) * 2 // 3])
    with pytest.warns(InputNote, match=r"cut\.\w+: is truncated"):
        picture = load_picture(cut, allow_truncated=True)
    rows = slice(96, 128) if suffix == "bmp" else slice(0, 32)  # BMP is stored from the bottom
    assert np.abs(picture.pixels[rows].astype(int) - pixels[rows]).max() < (40 if suffix == "jpg" else 1)
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.parametrize("kind", ["png", "tif", "lzw.tif"])
def test_row_06_truncated_high_depth_files_are_refused(tmp_path, kind, capfd):
    pixels = smooth_picture(64, 64, np.uint16)
    whole = tmp_path / "whole.tif"
    if kind == "png":
        whole.write_bytes(png16(pixels))
    elif kind == "tif":
        tifffile.imwrite(whole, pixels, photometric="rgb", rowsperstrip=8)
    else:
        assert cv2.imwrite(
            str(whole), pixels, [cv2.IMWRITE_TIFF_COMPRESSION, cv2.IMWRITE_TIFF_COMPRESSION_LZW]
        )
    content = whole.read_bytes()
    path = tmp_path / f"cut.{kind}"
    for length in (len(content) - 2, len(content) - 12, len(content) - 14, len(content) // 2):
        path.write_bytes(content[:length])
        refusal(DecodeError, path)
    damaged = bytearray(content)
    damaged[1000:1100] = b"\xff" * 100
    path.write_bytes(damaged)
    if kind != "tif":  # without compression, any bytes are pixels
        refusal(DecodeError, path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("depth", [8, 16])
def test_row_07_bit_flipped_png_is_refused(tmp_path, capfd, depth):
    if depth == 16:
        content = bytearray(png16(smooth_picture(64, 64, np.uint16)))
    else:
        content = bytearray(saved(tmp_path / "whole.png", smooth_picture(64, 64)).read_bytes())
    path = tmp_path / "flipped.png"
    rng = np.random.default_rng(0)
    for place in rng.integers(60, len(content) - 20, 20):
        flipped = content.copy()
        flipped[place] ^= 1 << rng.integers(8)
        path.write_bytes(flipped)
        assert "Copy or download the file again" in refusal(DecodeError, path)
    assert capfd.readouterr() == ("", "")


def test_row_07_a_broken_stream_behind_a_good_checksum_is_refused(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png(32, 32, 16, 2, b"\0" * 100, (b"IDAT", b"this is no deflate stream")))
    refusal(DecodeError, path)


def test_row_08_the_content_decides_and_not_the_suffix(tmp_path):
    pixels = smooth_picture()
    for kind in ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF"):
        path = saved(tmp_path / "picture.txt", pixels, format=kind)
        with silence():
            picture = load_picture(path)
        assert np.abs(picture.pixels.astype(int) - pixels).mean() < 8
    with silence():
        load_picture(saved(tmp_path / "jpeg.png", pixels, format="JPEG"))


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "avif"])
@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8])
def test_row_09_orientation_is_applied_once_and_written_as_1(tmp_path, suffix, orientation):
    pixels = smooth_picture(40, 56)
    path = saved(tmp_path / f"turned.{suffix}", pixels, exif=exif_with(orientation), quality=95)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
    with silence():
        picture = load_picture(path)
    assert np.array_equal(picture.pixels, expected)
    assert picture.size == ((56, 40) if orientation > 4 else (40, 56))
    target = tmp_path / f"again.{suffix}"
    picture.save(target)
    tags = info_of(target)["exif_tags"]
    assert tags.get(0x0112, 1) == 1 and tags[0x010F] == "Camera maker"
    assert load_picture(target).size == picture.size


def test_row_09_alpha_and_labels_are_turned_too(tmp_path):
    pixels = np.dstack((smooth_picture(40, 56), smooth_picture(40, 56, seed=1)[..., 0]))
    path = saved(tmp_path / "eight.png", pixels, exif=exif_with(6))
    deep = tmp_path / "deep.png"
    deep.write_bytes(png16(pixels.astype(np.uint16) * 257, (b"eXIf", exif_with(6)[6:])))
    flat = tmp_path / "deep.tif"
    tifffile.imwrite(
        flat, pixels.astype(np.uint16) * 257, photometric="rgb", extratags=[(274, 3, 1, 6, True)]
    )
    for source, step in ((path, 1), (deep, 257), (flat, 257)):
        assert np.array_equal(load_picture(source).to_numpy(), np.rot90(pixels, -1).astype(int) * step)
    labels = Image.fromarray(disk(40, 56) // 85, "P")
    labels.putpalette(bytes(range(30)))
    source = saved(tmp_path / "labels.png", labels, exif=exif_with(8))
    assert np.array_equal(load_mask(source, label=3), np.rot90(disk(40, 56) > 0))


def test_row_09_masks_are_turned_too(tmp_path):
    mask = disk(40, 56)
    mask[:10, :10] = 255
    turned = saved(tmp_path / "turned.png", mask, exif=exif_with(6))
    upright = saved(tmp_path / "upright.png", np.rot90(mask, -1))
    composite = saved(tmp_path / "composite.jpg", smooth_picture(40, 56), exif=exif_with(6))
    with silence():
        for path in (turned, upright):
            ((picture, loaded),) = load_pairs(composite, path)
            assert picture.size == loaded.shape == (56, 40)
            assert np.array_equal(loaded, np.rot90(mask, -1) / 255)


@pytest.mark.parametrize(
    "block",
    [
        exif_with(99),
        b"Exif\0\0garbage garbage",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff",
    ],
    ids=["orientation-99", "garbage", "far-offset", "many-entries"],
)
def test_row_10_garbage_exif_is_dropped(tmp_path, block):
    path = saved(tmp_path / "picture.png", smooth_picture(), exif=block)
    with pytest.warns(InputNote, match="EXIF data are damaged"):
        picture = load_picture(path)
    assert picture.exif is None and np.array_equal(picture.pixels, smooth_picture())
    deep = tmp_path / "deep.png"
    deep.write_bytes(png16(smooth_picture(dtype=np.uint16), (b"eXIf", block[6:])))
    with pytest.warns(InputNote, match="EXIF data are damaged"):
        assert load_picture(deep).exif is None
    picture.save(tmp_path / "again.jpg")
    assert "exif" not in info_of(tmp_path / "again.jpg")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_row_10_garbage_in_the_tags_of_a_tiff_is_dropped(tmp_path, dtype):
    path = tmp_path / "a.tif"
    pixels = smooth_picture(dtype=dtype)
    number_for_text = (305, 5, 1, (1, 2), True)
    tifffile.imwrite(path, pixels, photometric="rgb", software=False, extratags=[number_for_text])
    with pytest.warns(InputNote, match="EXIF data are damaged"):
        picture = load_picture(path)
    assert np.array_equal(picture.pixels, pixels) and picture.exif is None


def test_row_11_cmyk_uses_its_profile_or_says_that_it_has_none(tmp_path):
    inks = np.stack([*np.moveaxis(smooth_picture() // 2, 2, 0), np.full((40, 56), 60, np.uint8)], 2)
    image = Image.fromarray(inks, "CMYK")
    expected = (1 - inks[..., :3] / 255) * (1 - inks[..., 3:] / 255) * 255
    plain = saved(tmp_path / "plain.jpg", image, quality=98)
    with pytest.warns(InputNote, match="CMYK.*without colour management"):
        naive = load_picture(plain)
    assert naive.pixels.shape == (40, 56, 3) and np.abs(naive.pixels - expected).max() < 12
    managed = saved(tmp_path / "managed.jpg", image, quality=98, icc_profile=cmyk_profile())
    with pytest.warns(InputNote, match="CMYK.*with its colour profile") as notes:
        picture = load_picture(managed)
    assert len(notes) == 1
    assert np.abs(picture.pixels - expected).max() < 12 and picture.profile is None
    picture.save(tmp_path / "rgb.jpg")
    assert info_of(tmp_path / "rgb.jpg")["mode"] == "RGB"
    broken = saved(tmp_path / "broken.jpg", image, quality=98, icc_profile=P3)
    with pytest.warns(InputNote, match="its colour profile cannot be used"):
        assert np.array_equal(load_picture(broken).pixels, naive.pixels)


def test_row_12_16_bit_grey_keeps_its_levels(tmp_path):
    grey = np.linspace(0, 65535, 40 * 56).astype(np.uint16).reshape(40, 56)
    saved(tmp_path / "grey.tif", grey)
    (tmp_path / "grey.png").write_bytes(png16(grey[..., None]))
    with silence():
        for source in (tmp_path / "grey.png", tmp_path / "grey.tif", grey, Image.fromarray(grey)):
            picture = load_picture(source)
            assert picture.pixels.dtype == np.uint16
            assert np.array_equal(picture.pixels, np.repeat(grey[..., None], 3, axis=2))
        eight = np.asarray(picture_as_8_bit(picture))[..., 0]
        assert np.array_equal(load_mask(tmp_path / "grey.png"), grey / np.float32(65535))
    assert np.array_equal(eight, np.rint(grey / 257)) and len(np.unique(eight)) == 256


def picture_as_8_bit(picture):
    with pytest.warns(InputNote, match="16 bits a channel, and is reduced to the 8 bits"):
        return picture.to_pil()


@pytest.mark.parametrize("alpha", [False, True], ids=["rgb", "rgba"])
def test_row_13_16_bit_colour_is_kept(tmp_path, alpha):
    pixels = np.random.default_rng(0).integers(0, 65536, (40, 56, 4 if alpha else 3), dtype=np.uint16)
    (tmp_path / "a.png").write_bytes(png16(pixels))
    for name, options in (
        ("plain", {}),
        ("zip", {"compression": "zlib", "predictor": True}),
        ("planar", {"planarconfig": "separate"}),
        ("tiled", {"compression": "zlib", "tile": (16, 16)}),
        ("big", {"bigtiff": True, "byteorder": ">"}),
    ):
        data = np.moveaxis(pixels, 2, 0) if name == "planar" else pixels
        tifffile.imwrite(tmp_path / f"{name}.tif", data, photometric="rgb", **options)
    for path in sorted(tmp_path.iterdir()):
        with silence():
            picture = load_picture(path)
            assert picture.pixels.dtype == np.uint16 and np.array_equal(picture.to_numpy(), pixels), path.name
            for suffix in ("png", "tif"):
                target = tmp_path / f"again.{suffix}"
                picture.save(target, overwrite=True)
                assert np.array_equal(load_picture(target).to_numpy(), pixels)
        if not alpha:
            with pytest.warns(InputNote, match=r"again\.jpg: JPEG holds 8 bits"):
                picture.save(tmp_path.parent / "again.jpg", overwrite=True)
    with pytest.warns(InputNote, match="Pillow reduces to 8; give its path"):
        load_picture(Image.open(tmp_path / "a.png"))


def test_row_14_float_tiff_is_clamped_and_nan_refused(tmp_path):
    path = tmp_path / "float.tif"
    pixels = smooth_picture(dtype=np.float32)
    tifffile.imwrite(path, pixels, photometric="rgb")
    with silence():
        assert np.array_equal(load_picture(path).pixels, pixels)
    pixels[0, 0] = (-0.5, 3, np.inf)
    tifffile.imwrite(path, pixels, photometric="rgb")
    with pytest.warns(InputNote, match="from -0.5 to inf are clamped to 0 to 1"):
        picture = load_picture(path)
    assert picture.pixels[0, 0].tolist() == [0, 1, 1] and np.array_equal(picture.pixels[1:], pixels[1:])
    pixels[3, 3, 1] = np.nan
    tifffile.imwrite(path, pixels, photometric="rgb")
    assert "NaN" in refusal(InputError, path)
    tifffile.imwrite(path, smooth_picture().astype(np.float32), photometric="rgb")
    assert "Divide by 255" in refusal(InputError, path)
    exr = tmp_path / "render.exr"
    exr.write_bytes(b"v/1\x01\x02\0\0\0channels\0")
    assert "OpenEXR" in refusal(DecodeError, exr) and "TIFF" in refusal(DecodeError, exr)


def test_row_15_palette_grey_and_1_bit_transparency(tmp_path):
    palette = Image.new("P", (20, 20), 1)
    palette.putpalette([255, 0, 0, 0, 0, 255, 9, 9, 9])
    palette.paste(0, (0, 0, 10, 20))
    with silence():
        by_index = load_picture(saved(tmp_path / "index.png", palette, transparency=0))
        partly = load_picture(saved(tmp_path / "partly.png", palette, transparency=bytes((128, 255))))
        opaque = load_picture(saved(tmp_path / "opaque.png", palette))
        grey = load_picture(saved(tmp_path / "grey.png", Image.new("LA", (20, 20), (77, 99))))
        keyed = load_picture(
            saved(tmp_path / "keyed.png", Image.new("RGB", (20, 20), (1, 2, 3)), transparency=(1, 2, 3))
        )
        bits = load_picture(saved(tmp_path / "bits.png", Image.new("1", (20, 20), 1)))
        gif = load_picture(saved(tmp_path / "index.gif", palette, transparency=0))
    assert by_index.pixels[0, [0, 15]].tolist() == [[255, 0, 0], [0, 0, 255]]
    assert by_index.alpha[0, [0, 15]].tolist() == gif.alpha[0, [0, 15]].tolist() == [0, 255]
    assert partly.alpha[0, [0, 15]].tolist() == [128, 255]
    assert opaque.alpha is None and np.array_equal(opaque.pixels, by_index.pixels)
    assert np.unique(grey.pixels).tolist() == [77] and np.unique(grey.alpha).tolist() == [99]
    assert keyed.alpha.max() == 0 and bits.pixels.min() == 255
    sixteen = np.full((20, 20, 1), 1000, np.uint16)
    sixteen[:, :5] = 2000
    (tmp_path / "key16.png").write_bytes(png16(sixteen, (b"tRNS", struct.pack(">H", 2000))))
    assert load_picture(tmp_path / "key16.png").alpha[0, [0, 10]].tolist() == [0, 65535]
    with Image.open(tmp_path / "key16.png") as image:
        assert load_picture(image).alpha[0, [0, 10]].tolist() == [0, 65535]
    (tmp_path / "la16.png").write_bytes(png16(np.dstack((sixteen, sixteen // 2))))
    deep = load_picture(tmp_path / "la16.png")
    assert deep.pixels[0, 0].tolist() == [2000] * 3 and deep.alpha[0, [0, 10]].tolist() == [1000, 500]


def test_row_16_hidden_pixels_are_told_apart_and_never_shown(tmp_path):
    pixels = np.dstack((smooth_picture(), np.full((40, 56), 255, np.uint8)))
    pixels[:20, :, 3] = 0
    pixels[20, :, 3] = 51
    picture = load_picture(saved(tmp_path / "cut.png", pixels))
    assert picture.visible[[0, 20, 30], 0].tolist() == [0, np.float32(0.2), 1]
    assert load_picture(smooth_picture()).visible is None
    for suffix in ("png", "tif", "webp"):
        picture.save(tmp_path / f"again.{suffix}", quality=100)
        assert np.array_equal(load_picture(tmp_path / f"again.{suffix}").to_numpy(), pixels)
    before = files_in(tmp_path)
    for suffix in ("jpg", "bmp"):
        with pytest.raises(OutputError, match="what is hidden would show"):
            picture.save(tmp_path / f"again.{suffix}")
    assert files_in(tmp_path) == before


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif", "avif"])
def test_row_17_animations_give_the_frame_that_is_asked_for(tmp_path, suffix):
    frames = [Image.new("RGB", (32, 24), color) for color in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    path = tmp_path / f"moving.{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    with pytest.warns(InputNote, match="has 3 frames, and the first is taken.*--frame"):
        assert load_picture(path).pixels[12, 12].argmax() == 0
    with silence():
        assert load_picture(path, frame=2).pixels[12, 12].argmax() == 2
    assert "no frame 3" in refusal(InputError, path, frame=3)
    with pytest.warns(InputNote, match="has 3 frames"):
        load_picture(Image.open(path))


def test_row_17_pages_of_16_bits(tmp_path):
    pages = np.stack([np.full((20, 20, 3), value, np.uint16) for value in (1000, 2000)])
    tifffile.imwrite(tmp_path / "pages.tif", pages, photometric="rgb")
    with pytest.warns(InputNote, match="has 2 frames"):
        assert load_picture(tmp_path / "pages.tif").pixels[0, 0, 0] == 1000
    with silence():
        assert load_picture(tmp_path / "pages.tif", frame=1).pixels[0, 0, 0] == 2000


@pytest.mark.parametrize(
    ("primaries", "curve"),
    [(DISPLAY_P3, SRGB_CURVE), (ADOBE_RGB, gamma_curve(563 / 256))],
    ids=["display-p3", "adobe-rgb"],
)
def test_row_18_profiles_are_converted_and_kept(tmp_path, primaries, curve):
    profile = matrix_profile(primaries, curve)
    pixels = smooth_picture()
    path = saved(tmp_path / "wide.png", pixels, icc_profile=profile)
    reference = ImageCms.profileToProfile(
        Image.fromarray(pixels),
        ImageCms.ImageCmsProfile(io.BytesIO(profile)),
        ImageCms.createProfile("sRGB"),
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
    )
    with silence():
        picture = load_picture(path)
        assert np.array_equal(picture.pixels, pixels) and picture.profile == profile
        srgb = picture.read_srgb()
        assert np.abs(srgb * 255 - np.asarray(reference)).max() < 1.5
        assert np.array_equal(picture.write_srgb(srgb), pixels)
        for suffix in ("png", "jpg", "webp", "tif", "avif"):
            picture.save(tmp_path / f"again.{suffix}")
            assert info_of(tmp_path / f"again.{suffix}")["icc_profile"] == profile
            assert load_picture(tmp_path / f"again.{suffix}").profile == profile
    with pytest.raises(OutputError, match="BMP holds no colour profile"):
        picture.save(tmp_path / "again.bmp")


@pytest.mark.parametrize(
    ("profile", "reason"),
    [
        (P3[:-20], "cut off"),
        (b"no profile" * 20, "not an ICC profile"),
        (profile_of_tags({}, space=b"Lab "), "Lab colours, not RGB"),
        (cmyk_profile(), "CMYK colours, not RGB"),
    ],
    ids=["cut", "garbage", "lab", "cmyk"],
)
def test_row_19_a_profile_that_does_not_work_is_noted(tmp_path, profile, reason):
    path = saved(tmp_path / "picture.jpg", smooth_picture(), icc_profile=profile)
    with pytest.warns(InputNote, match=f"sRGB is assumed: .*{reason}"):
        picture = load_picture(path)
    assert picture.profile is None
    assert np.array_equal(picture.read_srgb(), picture.pixels / np.float32(255))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "pillow-heif"),
        ("a.dng", b"II*\0\x08\0\0\0\0\0\0\0\0\0", "camera raw"),
        ("a.cr2", b"II*\0\x10\0\0\0CR\x02\0", "camera raw"),
        ("a.cr3", b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "camera raw"),
        ("a.mp4", b"\0\0\0\x18ftypisom\0\0\0\1isommp42", "video"),
        ("a.svg", b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        ("a.pdf", b"%PDF-1.7\n", "PDF"),
        ("a.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n", "EPS"),
        ("a.psd", b"8BPS\0\1", "Photoshop"),
        ("a.jp2", b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        ("a.jxl", b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        ("a.fits", b"SIMPLE  =                    T", "FITS"),
        ("a.zip", b"PK\x03\x04\x14\0", "ZIP"),
    ],
)
@pytest.mark.parametrize("disguised", [False, True])
def test_row_20_other_formats_are_named_and_never_tried(tmp_path, name, content, reason, disguised):
    if disguised and name == "a.dng":
        pytest.skip("told by its tags, in the next test")
    path = tmp_path / ("picture.png" if disguised else name)
    path.write_bytes(content)
    assert reason in refusal(DecodeError, path)


def test_row_20_camera_raw_is_told_from_tiff_by_its_tags(tmp_path):
    for name, tags in (("dng.tif", [(50706, 1, 4, b"\1\4\0\0", True)]), ("cfa.tif", [])):
        path = tmp_path / name
        photometric = "cfa" if name == "cfa.tif" else "rgb"
        data = np.zeros((20, 20), np.uint16) if name == "cfa.tif" else smooth_picture()
        tifffile.imwrite(path, data, photometric=photometric, extratags=tags)
        assert "camera raw" in refusal(DecodeError, path)


@pytest.mark.parametrize("depth", [8, 16])
def test_row_21_compressed_text_that_explodes_is_refused(tmp_path, depth):
    bomb = (b"zTXt", b"comment\0\0" + zlib.compress(b"\0" * 80_000_000))
    rows = b"\0" * 20 * (1 + 20 * 3 * depth // 8)
    path = tmp_path / "bomb.png"
    path.write_bytes(png(20, 20, depth, 2, rows, bomb))
    assert "too large" in refusal(DecodeError, path)


def test_row_21_strips_that_explode_are_refused(tmp_path):
    path = tmp_path / "bomb.tif"
    tifffile.imwrite(path, np.zeros((64, 64, 3), np.uint16), photometric="rgb", compression="zlib")
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tags = tiff.pages[0].tags
        data = zlib.compress(b"\0" * 50_000_000)
        end = tiff.filehandle.size
        tags["StripOffsets"].overwrite(end)
        tags["StripByteCounts"].overwrite(len(data))
    with path.open("ab") as file:
        file.write(data)
    assert "more than it should" in refusal(DecodeError, path)


@pytest.mark.parametrize("size", [(1, 1), (1, 20000), (20000, 1), (15, 200), (200, 15)])
def test_row_22_tiny_pictures_are_refused(tmp_path, size):
    path = saved(tmp_path / "tiny.png", Image.new("RGB", size))
    assert f"{size[0]}x{size[1]}" in refusal(InputError, path) and "16" in refusal(InputError, path)
    refusal(InputError, np.zeros((size[1], size[0], 3), np.uint8))
    refusal(InputError, torch.zeros(3, size[1], size[0]))
    with silence():
        assert load_picture(Image.new("RGB", (16, 16))).size == (16, 16)


def test_a_folder_is_named_once(tmp_path):
    with pytest.raises(InputError) as caught:
        load_picture(tmp_path)
    assert (
        str(caught.value) == f"{tmp_path}: is a folder, not a picture file. Give the path of a picture file."
    )
