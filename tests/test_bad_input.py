"""Hostile and odd input, one test a row of the project's list of bad input (rows 1 to 37)."""

import contextlib
import io
import os
import resource
import socket
import stat
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from picture_files import (
    ADOBE_RGB,
    DISPLAY_P3,
    SRGB_CURVE,
    cmyk_profile,
    files_in,
    gamma_curve,
    matrix_profile,
    png,
    png16,
    profile_of_tags,
    smooth_picture,
)
from PIL import Image, ImageCms, ImageFile, ImageOps
from scipy.ndimage import distance_transform_edt

from harmony_diffusion.errors import (
    DecodeError,
    InputError,
    InputNote,
    InputTypeError,
    MaskError,
    OutputError,
    SizeMismatchError,
    TooLargeError,
)
from harmony_diffusion.image_processor import check_background, load_mask, load_pairs, load_picture
from harmony_diffusion.output_files import check_output, output_names, write_atomically

P3 = matrix_profile(DISPLAY_P3, SRGB_CURVE)


def refusal(kind: type[InputError], source: object, load=load_picture, **options: object) -> str:
    """The message with which a source is refused; a path is named in it, on one line, and is not changed."""
    before = files_in(Path(source).parent) if isinstance(source, Path) and source.parent.is_dir() else None
    with pytest.raises(kind) as caught:
        load(source, **options)
    message = str(caught.value)
    assert message.startswith(f"{caught.value.subject}: {caught.value.reason}")
    assert caught.value.fix and "\n" not in message
    if isinstance(source, Path):
        assert str(source) in message
    if before is not None:
        assert files_in(source.parent) == before
    return message


@contextlib.contextmanager
def silence():
    """Fail when something is noted."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def saved(path: Path, image: Image.Image | np.ndarray, **options: object) -> Path:
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)
    return path


def info_of(path: Path) -> dict:
    with Image.open(path) as image:
        image.load()
        return {**image.info, "mode": image.mode, "exif_tags": dict(image.getexif())}


def disk(height: int = 64, width: int = 64) -> np.ndarray:
    """A hard mask with values 0 and 255."""
    y, x = np.mgrid[0:height, 0:width]
    return np.where((y - height / 2) ** 2 + (x - width / 2) ** 2 < (height / 4) ** 2, 255, 0).astype(np.uint8)


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


def test_row_06_truncated_high_depth_files_are_refused(tmp_path):
    pixels = smooth_picture(64, 64, np.uint16)
    whole = tmp_path / "whole.tif"
    tifffile.imwrite(whole, pixels, photometric="rgb", rowsperstrip=8)
    for name, content in (("cut.png", png16(pixels)), ("cut.tif", whole.read_bytes())):
        path = tmp_path / name
        path.write_bytes(content[: len(content) // 2])
        refusal(DecodeError, path)


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
    picture.save(tmp_path / "again.jpg")
    assert "exif" not in info_of(tmp_path / "again.jpg")


def test_row_11_cmyk_uses_its_profile_or_says_that_it_has_none(tmp_path):
    inks = np.stack([*np.moveaxis(smooth_picture() // 2, 2, 0), np.full((40, 56), 60, np.uint8)], 2)
    image = Image.fromarray(inks, "CMYK")
    expected = (1 - inks[..., :3] / 255) * (1 - inks[..., 3:] / 255) * 255
    plain = saved(tmp_path / "plain.jpg", image, quality=98)
    with pytest.warns(InputNote, match="CMYK.*without colour management"):
        naive = load_picture(plain)
    assert naive.pixels.shape == (40, 56, 3) and np.abs(naive.pixels - expected).max() < 12
    managed = saved(tmp_path / "managed.jpg", image, quality=98, icc_profile=cmyk_profile())
    with pytest.warns(InputNote, match="CMYK.*with its colour profile"):
        picture = load_picture(managed)
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


def test_row_23_size_mismatch_names_both_and_resizing_is_opt_in(tmp_path):
    composite = saved(tmp_path / "composite.png", smooth_picture(40, 56))
    mask = saved(tmp_path / "mask.png", disk(80, 112))
    message = refusal(SizeMismatchError, composite, load=lambda source: load_pairs(source, mask))
    assert f"{mask}: is 112x80 pixels, but {composite} is 56x40" in message and "--resize-mask" in message
    ((_, hard),) = load_pairs(composite, mask, resize=True)
    assert hard.shape == (40, 56) and np.unique(hard).tolist() == [0, 1]
    soft = np.linspace(0, 1, 80, dtype=np.float32)[:, None].repeat(112, 1)
    ((_, resized),) = load_pairs(composite, soft, resize=True)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(soft)[None, None], size=(40, 56), mode="bilinear"
    )
    np.testing.assert_allclose(resized, expected[0, 0], atol=1e-6)
    with pytest.raises(SizeMismatchError, match="turned by 90 degrees"):
        load_mask(disk(40, 56), size=(56, 40))


def test_row_24_an_empty_mask_is_accepted_with_a_note():
    for mask in (np.zeros((64, 64), np.uint8), np.zeros((64, 64), bool), torch.zeros(1, 64, 64)):
        with pytest.warns(InputNote, match="mask: is empty"):
            loaded = load_mask(mask)
        assert loaded.shape == (64, 64) and loaded.dtype == np.float32 and not loaded.any()


def test_row_25_a_full_mask_leaves_no_background():
    for mask in (np.ones((64, 64), np.uint8), np.full((64, 64), 255, np.uint8), torch.ones(64, 64)):
        with pytest.warns(InputNote) as notes:
            loaded = load_mask(mask)
        assert "covers the whole picture" in str(notes[-1].message)
        assert (loaded == 1).all()
        with pytest.raises(MaskError, match="no background"):
            check_background(loaded)
    mask = load_mask(disk())
    check_background(mask)
    check_background(torch.from_numpy(mask), torch.ones(64, 64))
    with pytest.raises(MaskError, match="nothing of the reference region"):
        check_background(mask, (mask > 0).astype(np.float32))


@pytest.mark.parametrize("value", [1, 2, 76, 128, 254])
def test_row_26_masks_of_two_values_are_hard(tmp_path, value):
    expected = disk() / np.float32(255)
    mask = (disk() // 255) * np.uint8(value)
    for source in (mask, saved(tmp_path / "mask.png", mask), Image.fromarray(mask), mask.astype(np.uint16)):
        with pytest.warns(InputNote, match=f"values 0 and {value}; {value} is taken for the foreground"):
            assert np.array_equal(load_mask(source), expected)
    with silence():
        assert np.array_equal(load_mask(disk()), expected)
        assert np.array_equal(
            load_mask(saved(tmp_path / "bits.png", Image.fromarray(disk()).convert("1"))), expected
        )
        assert np.array_equal(load_mask(disk().astype(np.uint16) * 257), expected)
        assert np.array_equal(load_mask((disk() > 0).astype(np.int64) * 255), expected)


@pytest.mark.parametrize("quality", [30, 50, 75, 95])
@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_row_27_jpeg_noise_is_cleaned(tmp_path, quality, suffix):
    mask = disk(128, 128)
    path = saved(tmp_path / f"mask.{suffix}", mask, quality=quality)
    assert len(np.unique(np.asarray(Image.open(path)))) > 10
    with pytest.warns(InputNote, match="compression noise"):
        loaded = load_mask(path)
    # But for the pixels that touch the edge, background is exactly 0 and foreground exactly 1.
    assert (loaded[distance_transform_edt(mask > 0) > 1.5] == 1).all()
    assert (loaded[distance_transform_edt(mask == 0) > 1.5] == 0).all()
    assert np.array_equal(loaded > 0.5, mask > 0)


def test_row_28_a_soft_matte_keeps_its_values(tmp_path):
    y, x = np.mgrid[0:128, 0:128]
    matte = (255 / (1 + np.exp((np.hypot(y - 64, x - 64) - 40) / 3))).astype(np.uint8)
    expected = matte / np.float32(255)
    with silence():
        for source in (
            matte,
            saved(tmp_path / "m.png", matte),
            Image.fromarray(matte),
            torch.from_numpy(expected),
        ):
            np.testing.assert_allclose(load_mask(source), expected, atol=1e-7)
        assert np.array_equal(load_mask(expected.astype(np.float64)), expected)
    halves = np.zeros((64, 64), np.uint8)
    halves[16:48, 16:48] = 255
    halves[16:48, 15] = halves[16:48, 48] = 128  # few values, but only along edges
    with silence():
        assert np.array_equal(load_mask(halves), halves / np.float32(255))


def test_row_29_a_mask_that_looks_inverted_is_noted():
    inverted = 255 - disk(64, 64)
    inverted[32, 32] = 255
    inverted = np.where(disk(64, 64) > 0, 0, 255).astype(np.uint8)
    inverted[20:44, 20:44] = 255
    with pytest.warns(
        InputNote, match=r"marks 9\d % of the picture and touches all its borders.*--invert-mask"
    ):
        loaded = load_mask(inverted)
    with silence():
        assert np.array_equal(load_mask(inverted, invert=True), 1 - loaded)
        framed = np.full((64, 64), 255, np.uint8)
        framed[0] = 0  # large, but not on all borders
        load_mask(framed)


def test_row_30_alpha_luminance_and_labels(tmp_path):
    expected = disk() / np.float32(255)
    colors = smooth_picture(64, 64)
    opaque = np.dstack((disk(), disk(), disk(), np.full((64, 64), 255, np.uint8)))
    with silence():
        assert np.array_equal(load_mask(saved(tmp_path / "cut.png", np.dstack((colors, disk())))), expected)
        assert np.array_equal(load_mask(saved(tmp_path / "opaque.png", opaque)), expected)
        assert np.array_equal(load_mask(np.dstack((disk(),) * 3)), expected)
    red = np.dstack((disk(), disk() * 0, disk() * 0))
    with pytest.warns(InputNote, match=r"one colour on black; the colour \(255, 0, 0\)"):
        assert np.array_equal(load_mask(red), expected)
    with pytest.warns(InputNote, match="is a colour picture, and its luminance is taken"):
        luminance = load_mask(colors)
    reference = np.asarray(Image.fromarray(colors).convert("L")) / 255
    assert np.abs(luminance - reference).max() < 1.1 / 255


def test_row_30_label_maps_need_a_label(tmp_path):
    labels = np.zeros((64, 64), np.uint8)
    labels[8:30, 8:30], labels[34:60, 34:60] = 7, 15
    labels[:4] = 255
    for source in (
        labels,
        saved(tmp_path / "labels.png", labels),
        labels.astype(np.int32),
        labels.astype(np.uint16),
    ):
        assert "values 0, 7, 15, 255" in refusal(MaskError, source, load=load_mask)
        with silence():
            assert np.array_equal(load_mask(source, label=15), labels == 15)
    palette = Image.fromarray(labels, "P")
    palette.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tobytes())
    path = saved(tmp_path / "palette.png", palette)
    message = refusal(MaskError, path, load=load_mask)
    assert "label map of 4 colours" in message and "--label" in message and "0, 7, 15, 255" in message
    assert np.array_equal(load_mask(path, label=7), labels == 7)
    colors = np.zeros((64, 64, 3), np.uint8)
    colors[8:30, 8:30], colors[34:60, 34:60] = (0, 128, 0), (128, 0, 64)
    assert "(128, 0, 64)" in refusal(MaskError, colors, load=load_mask)
    assert np.array_equal(load_mask(colors, label=(128, 0, 64)), colors[..., 2] == 64)
    assert "no pixel with the label 99" in refusal(MaskError, labels, load=load_mask, label=99)
    signed = labels.astype(np.int16) - 1
    assert np.array_equal(load_mask(signed, label=-1), labels == 0)


def test_row_31_a_pixel_and_thousands_of_specks_are_fine():
    pixel = np.zeros((64, 64), np.uint8)
    pixel[10, 20] = 255
    specks = (np.random.default_rng(0).random((256, 256)) < 0.05).astype(np.float32)
    with silence():
        assert load_mask(pixel).sum() == 1
        assert np.array_equal(load_mask(specks), specks)


def test_row_32_foreground_larger_than_background_is_a_size_mismatch(tmp_path):
    # Pasting clips; without pasting, a mask and a composite of different sizes never meet.
    with pytest.raises(SizeMismatchError, match="mask: is 128x96 pixels, but composite is 56x40"):
        load_pairs(smooth_picture(40, 56), disk(96, 128))
    outside = np.zeros((40, 56), np.float32)
    with pytest.warns(InputNote, match="is empty"):
        load_pairs(smooth_picture(40, 56), outside)


@pytest.mark.parametrize(
    ("source", "kind", "reason"),
    [
        (np.zeros((3, 40, 56), np.uint8), InputError, "move the channels last"),
        (np.zeros((40, 56, 5), np.uint8), InputError, r"(40, 56, 5)"),
        (torch.zeros(40, 56, 3), InputError, "Permute it to `(C, H, W)`"),
        (torch.zeros(2, 3, 40, 56), InputError, "`load_pairs`"),
        (np.full((40, 56, 3), 200.0), InputError, "Divide by 255"),
        (torch.full((3, 40, 56), 255.0), InputError, "Divide by 255"),
        (np.full((40, 56, 3), np.nan), InputError, "NaN"),
        (np.zeros((40, 56, 3), np.int16), InputTypeError, "int16"),
        (np.zeros((40, 56, 3), bool), InputTypeError, "bool"),
        (np.zeros((40, 56, 3), object), InputTypeError, "object"),
        (np.zeros((40, 56, 3), complex), InputTypeError, "complex128"),
        (np.zeros((40, 0, 3), np.uint8), InputError, "0x40"),
        (np.zeros(40, np.uint8), InputError, "(40,)"),
        (np.zeros((1, 2, 40, 56, 3), np.uint8), InputError, "(1, 2, 40, 56, 3)"),
        ({"image": 1}, InputTypeError, "dict"),
        (b"\x89PNG", InputTypeError, "bytes"),
        (None, InputTypeError, "NoneType"),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, str) else None,
)
def test_row_33_arrays_that_cannot_be_pictures_are_refused(source, kind, reason):
    message = refusal(kind, source)
    assert message.startswith("composite: ") and reason in message
    assert refusal(kind, source, name="fg").startswith("fg: ")


def test_row_33_batches_must_agree():
    composites, masks = torch.rand(2, 3, 40, 56), torch.ones(3, 1, 40, 56) / 2
    with pytest.raises(InputError, match=r"mask: there are 3 for 2 composite"):
        load_pairs(composites, masks)
    with pytest.raises(InputError, match="empty list"):
        load_pairs([], [])
    with pytest.raises(InputError, match=r"composite\[1\]: .*NaN"):
        load_pairs([np.zeros((40, 56, 3)), np.full((40, 56, 3), np.nan)], [masks[0], masks[1]])
    with pytest.raises(SizeMismatchError, match=r"mask\[1\]: .*composite\[1\]"):
        load_pairs(list(composites), [masks[0], masks[1][:, :20]])
    for batch in (masks[:2], masks[:2, 0], masks[:2, 0].numpy(), list(masks[:2])):
        assert [mask.shape for _, mask in load_pairs(composites, batch)] == [(40, 56)] * 2


def test_row_33_the_callers_arrays_are_never_changed():
    pixels = smooth_picture()
    for array in (pixels, pixels[::-1, ::-1], np.asfortranarray(pixels), pixels.copy()[:, :, ::-1]):
        array.flags.writeable = False
        before = array.copy()
        picture = load_picture(array)
        assert np.array_equal(picture.pixels, before)
        picture.to_numpy()[:] = 0
        picture.to_tensor().zero_()
        picture.read_srgb()[:] = 0
        picture.write_srgb(np.zeros((40, 56, 3), np.float32))
        picture.to_pil().paste(0, (0, 0, 9, 9))
        with pytest.raises(ValueError):
            picture.pixels[:] = 0
        assert np.array_equal(array, before)
    for values in (smooth_picture(dtype=np.float32), torch.rand(3, 40, 56)):
        picture = load_picture(values)
        before = picture.to_numpy()
        picture.read_srgb()[:] = 0
        picture.write_srgb(np.zeros((40, 56, 3), np.float32))[:] = 7
        assert np.array_equal(picture.pixels, before)
    mask = np.linspace(0, 1, 40 * 56, dtype=np.float32).reshape(40, 56)
    before = mask.copy()
    load_mask(mask, invert=True)
    load_mask(mask)[:] = 0
    assert np.array_equal(mask, before)
    tensor = torch.rand(1, 40, 56)
    before = tensor.clone()
    load_mask(tensor)[:] = 0
    assert torch.equal(tensor, before)


def test_row_34_constant_pictures_load_and_stay_finite():
    for value in (0, 128, 255):
        picture = load_picture(np.full((40, 56, 3), value, np.uint8))
        assert np.isfinite(picture.thumbnail_srgb(8, 8)).all()
        assert np.isfinite(picture.thumbnail_srgb(8, 8, antialias=True)).all()
        assert np.array_equal(picture.write_srgb(picture.read_srgb()), picture.pixels)
    black = load_picture(Image.new("RGB", (40, 40)))
    managed = load_picture(Image.new("RGB", (40, 40)))
    managed = type(managed)(black.pixels, None, P3)
    assert np.array_equal(managed.write_srgb(managed.read_srgb()), black.pixels)


@contextlib.contextmanager
def without_privileges():
    """Act as an ordinary user, for whom permissions count; root is not stopped by any."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("load", [load_picture, load_mask])
def test_row_35_only_regular_files_are_opened(tmp_path, load):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nowhere.png")
    saved(tmp_path / "real.png", disk(32, 32))
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(os.path.relpath(tmp_path / "socket.png"))
    for name, reason in (
        ("", "is a folder"),
        ("pipe.png", "is a pipe"),
        ("socket.png", "is a socket"),
        ("loop.png", "loop of symbolic links"),
        ("dangling.png", "does not exist"),
        ("missing.png", "does not exist"),
        ("real.png/inside.png", "a part of the path is a file"),
        ("x" * 300 + ".png", "too long"),
    ):
        with pytest.raises(InputError, match=reason) as caught:
            load(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)
    listener.close()
    for path, reason in (
        ("/dev/zero", "is a device"),
        ("a\0b.png", "null"),
        ("https://example.org/a.png", "nothing is downloaded"),
        ("", "does not exist"),
    ):
        with pytest.raises(InputError, match=reason):
            load(path)


def test_row_35_permission_denied(tmp_path):
    path = saved(tmp_path / "secret.png", smooth_picture())
    path.chmod(0)
    with without_privileges():
        if os.access(path, os.R_OK, effective_ids=True):
            pytest.skip("permissions do not count on this file system")
        with pytest.raises(InputError, match="permission denied"):
            load_picture(path)


def test_row_35_odd_names_work(tmp_path):
    picture = load_picture(smooth_picture())
    for name in (
        "with spaces.png",
        "ünï-çødé.png",
        "-o.png",
        os.fsdecode(b"not-utf8-\xff.png"),
        "a.b.c.PNG",
        "new\nline.png",
    ):
        picture.save(tmp_path / name)
        assert np.array_equal(load_picture(tmp_path / name).pixels, picture.pixels)
        assert np.array_equal(load_picture(os.fspath(tmp_path / name)).pixels, picture.pixels)
    (tmp_path / os.fsdecode(b"bad-\xff.png")).write_bytes(b"text")
    with pytest.raises(DecodeError):
        load_picture(tmp_path / os.fsdecode(b"bad-\xff.png"))


def test_row_36_nothing_is_replaced_unasked(tmp_path):
    path = saved(tmp_path / "photo.png", smooth_picture())
    other = saved(tmp_path / "other.png", smooth_picture(seed=1))
    (tmp_path / "link.png").symlink_to(path)
    os.link(path, tmp_path / "hard.png")
    before = files_in(tmp_path)
    picture = load_picture(path)
    for name in ("photo.png", "link.png", "hard.png", "./photo.png"):
        with pytest.raises(OutputError, match="is the picture that was read.*--overwrite"):
            picture.save(tmp_path / name)
    with pytest.raises(OutputError, match="exists already"):
        picture.save(other)
    with pytest.raises(OutputError, match="exists already"):
        check_output(other)
    assert files_in(tmp_path) == before
    changed = picture.with_pixels(255 - picture.pixels)
    other.chmod(0o640)
    changed.save(other, overwrite=True)
    assert np.array_equal(load_picture(other).pixels, changed.pixels)
    assert stat.S_IMODE(other.stat().st_mode) == 0o640
    changed.save(tmp_path / "link.png", overwrite=True)
    assert (tmp_path / "link.png").is_symlink() and np.array_equal(load_picture(path).pixels, changed.pixels)
    assert sorted(files_in(tmp_path)) == sorted(before)


def test_row_36_places_that_cannot_be_written_to(tmp_path):
    picture = load_picture(smooth_picture())
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    before = files_in(tmp_path)
    for name, reason in (
        ("file/a.png", "a part of its folder is a file|its folder is a file"),
        ("missing/a.png", "its folder does not exist"),
        ("folder.png", "is a folder"),
        ("pipe.png", "not a regular file"),
        ("loop.png", "loop of symbolic links"),
        ("x" * 300 + ".png", "too long"),
        ("a.xyz", "suffix '.xyz'.*.png"),
        ("a", "has no suffix"),
        ("a.gif", "suffix '.gif'"),
    ):
        with pytest.raises(OutputError, match=reason) as caught:
            picture.save(tmp_path / name, overwrite=True)
        assert str(tmp_path / name) in str(caught.value)
    with pytest.raises(OutputError):
        picture.save("a\0b.png")
    with pytest.raises(OutputError, match="65500"):
        load_picture(np.zeros((16, 65501, 3), np.uint8)).save(tmp_path / "wide.jpg")
    assert files_in(tmp_path) == before


def test_row_36_a_read_only_folder(tmp_path):
    folder = tmp_path / "read-only"
    folder.mkdir()
    folder.chmod(0o555)
    picture = load_picture(smooth_picture())
    with without_privileges():
        if os.access(folder, os.W_OK, effective_ids=True):
            pytest.skip("permissions do not count on this file system")
        with pytest.raises(OutputError, match="permission denied"):
            picture.save(folder / "a.png")
    assert not list(folder.iterdir())


@contextlib.contextmanager
def files_up_to(size: int):
    """Let writing fail in the middle of a file, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("suffix", ["png", "tif", "jpg"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_row_36_a_write_that_fails_leaves_the_old_file(tmp_path, suffix, dtype):
    pixels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (256, 256, 3), dtype=dtype)
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(b"the original")
    reason = "written completely" if suffix == "tif" else "larger than is allowed"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InputNote)
        with files_up_to(20_000), pytest.raises(OutputError, match=reason):
            load_picture(pixels).save(path, overwrite=True)
    assert files_in(tmp_path) == {path.name: b"the original"}


def test_row_36_any_error_while_writing_cleans_up(tmp_path):
    def fail(file):
        file.write(b"half of it")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "a.json", fail)
    assert files_in(tmp_path) == {}
    umask = os.umask(0o027)
    try:
        write_atomically(tmp_path / "a.json", b"all of it")
    finally:
        os.umask(umask)
    assert files_in(tmp_path) == {"a.json": b"all of it"}
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == 0o640


def test_row_37_results_never_share_a_name():
    assert output_names(["day/a.jpg", "night/a.jpg", "b.c.png"]) == ["day/a.jpg", "night/a.jpg", "b.c.png"]
    assert output_names(["a.jpg", Path("b.c.png")], suffix=".png") == ["a.png", "b.c.png"]
    for paths in (
        ["a.jpg", "a.png"],
        ["A.jpg", "a.JPG"],
        ["x/Straße.png", "x/STRASSE.png"],
        ["é.png", "e\u0301.png"],
    ):
        with pytest.raises(InputError, match="same name") as caught:
            output_names(paths)
        assert paths[0] in str(caught.value) and caught.value.subject == paths[1]
