import io
import struct
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from picture_files import DISPLAY_P3, SRGB_CURVE, matrix_profile, png16, smooth_picture
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import IFDRational

from harmony_diffusion.errors import DecodeError, InputError, InputNote, OutputError
from harmony_diffusion.images.file_signatures import HEAD, webp_size
from harmony_diffusion.images.masks import load_mask
from harmony_diffusion.images.picture import Picture, load_picture

P3 = matrix_profile(DISPLAY_P3, SRGB_CURVE)


def camera_exif(orientation: int = 6) -> bytes:
    """An EXIF block with camera data, a position and a thumbnail of something else."""
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "Maker"
    exif[ExifTags.Base.Copyright] = "Somebody"
    exif[ExifTags.Base.Orientation] = orientation
    exif[ExifTags.Base.XResolution] = exif[ExifTags.Base.YResolution] = 300
    exif[ExifTags.Base.ResolutionUnit] = 2
    exif[ExifTags.IFD.Exif] = {
        ExifTags.Base.ExposureTime: IFDRational(1, 125),
        ExifTags.Base.LensModel: "Lens 50mm",
    }
    exif[ExifTags.IFD.GPSInfo] = {
        ExifTags.GPS.GPSLatitudeRef: "N",
        ExifTags.GPS.GPSLatitude: (48.0, 8.0, 7.5),
    }
    block = bytearray(exif.tobytes())
    # Link a second directory, as cameras do for the thumbnail.
    order = "<" if block[6:8] == b"II" else ">"
    (count,) = struct.unpack_from(order + "H", block, 6 + 8)
    struct.pack_into(order + "I", block, 6 + 8 + 2 + 12 * count, len(block) - 6)
    thumbnail = struct.pack(order + "HHHIIHHII", 2, 0x0201, 4, 1, 40, 0x0202, 4, 1, 1000)
    return bytes(block) + thumbnail + struct.pack(order + "I", 0) + b"THUMBNAIL"


def tags_of(path: Path) -> tuple[dict, dict, dict]:
    with Image.open(path) as image:
        exif = image.getexif()
        return dict(exif), dict(exif.get_ifd(ExifTags.IFD.Exif)), dict(exif.get_ifd(ExifTags.IFD.GPSInfo))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("target", ["png", "jpg", "tif", "webp", "avif"])
@pytest.mark.parametrize("source", ["png", "jpg", "tif"])
def test_exif_and_profile_survive(tmp_path, source, target, dtype):
    if dtype is np.uint16 and source == "jpg":
        pytest.skip("JPEG has 8 bits")
    first = tmp_path / f"first.{source}"
    if dtype is np.uint8:
        Image.fromarray(smooth_picture()).save(first, exif=camera_exif(), icc_profile=P3)
    else:
        pixels = load_picture(png_file(tmp_path, smooth_picture(dtype=np.uint16), camera_exif(6)))
        Picture(pixels.pixels, None, P3, pixels.exif).save(first)
    picture = load_picture(first)
    assert picture.pixels.dtype == dtype and picture.size == (56, 40) and picture.profile == P3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InputNote)
        picture.save(tmp_path / f"second.{target}")
    again = load_picture(tmp_path / f"second.{target}")
    assert again.profile == P3 and again.size == picture.size
    if target in ("png", "tif"):
        assert np.array_equal(again.pixels, picture.pixels)
    main, camera, position = tags_of(tmp_path / f"second.{target}")
    assert main[ExifTags.Base.Make] == "Maker" and main[ExifTags.Base.Copyright] == "Somebody"
    assert main.get(ExifTags.Base.Orientation, 1) == 1
    assert float(main[ExifTags.Base.XResolution]) == 300
    assert float(camera[ExifTags.Base.ExposureTime]) == 1 / 125
    assert camera[ExifTags.Base.LensModel] == "Lens 50mm"
    assert position[ExifTags.GPS.GPSLatitudeRef] == "N"
    assert [float(value) for value in position[ExifTags.GPS.GPSLatitude]] == [48, 8, 7.5]


def png_file(folder: Path, pixels: np.ndarray, exif: bytes) -> Path:
    path = folder / "source16.png"
    path.write_bytes(png16(pixels, (b"eXIf", exif[6:])))
    return path


def test_the_thumbnail_is_unlinked_and_the_rest_kept_to_the_byte(tmp_path):
    path = tmp_path / "a.jpg"
    block = camera_exif(1)
    Image.fromarray(smooth_picture()).save(path, exif=block)
    with Image.open(path) as image:
        assert image.getexif().get_ifd(ExifTags.IFD.IFD1)
    kept = load_picture(path).exif
    exif = Image.Exif()
    exif.load(kept)
    assert not exif.get_ifd(ExifTags.IFD.IFD1) and len(kept) == len(block)
    assert sum(a != b for a, b in zip(kept, block, strict=True)) <= 4


def test_other_programs_read_what_is_written(tmp_path):
    for channels in (3, 4):
        pixels = np.random.default_rng(0).integers(0, 65536, (130, 56, channels), dtype=np.uint16)
        picture = load_picture(pixels)
        order = [2, 1, 0, 3][:channels]
        for suffix in ("png", "tif"):
            path = tmp_path / f"a{channels}.{suffix}"
            picture.save(path)
            assert np.array_equal(cv2.imread(str(path), cv2.IMREAD_UNCHANGED)[..., order], pixels)
        assert np.array_equal(tifffile.imread(path), pixels)
        with Image.open(tmp_path / f"a{channels}.png") as image:
            image.load()
            assert image.size == (56, 130) and len(image.getbands()) == channels
            assert np.abs(np.asarray(image) - pixels / 257).max() <= 1
        eight = load_picture((pixels >> 8).astype(np.uint8))
        for suffix in ("png", "tif", "webp"):
            path = tmp_path / f"b{channels}.{suffix}"
            eight.save(path, quality=100)
            with Image.open(path) as image:
                assert np.array_equal(np.asarray(image), eight.to_numpy())


def test_lossy_formats_stay_close():
    pixels = smooth_picture(64, 64)
    picture = load_picture(pixels)
    errors = {}
    for quality in (60, 95):
        for suffix in ("jpg", "webp", "avif"):
            path = Path(f"a.{suffix}")
            buffer = save_to_memory(picture, path.suffix, quality)
            errors[suffix, quality] = np.abs(np.asarray(Image.open(buffer)).astype(int) - pixels).mean()
    for suffix in ("jpg", "webp", "avif"):
        assert errors[suffix, 95] < 2 and errors[suffix, 95] <= errors[suffix, 60] < 6
    for quality in (0, 101):
        with pytest.raises(InputError, match="quality"):
            picture.save("never-written.jpg", quality=quality)


def save_to_memory(picture: Picture, suffix: str, quality: int) -> io.BytesIO:
    from harmony_diffusion.images.arrays import Raster
    from harmony_diffusion.images.encoding import FORMATS, write_picture

    buffer = io.BytesIO()
    write_picture(buffer, FORMATS[suffix], Raster(picture.pixels), name="a", quality=quality)
    buffer.seek(0)
    return buffer


def test_floating_point_is_kept_by_tiff_and_16_bits_by_png(tmp_path):
    pixels = smooth_picture(dtype=np.float32)
    picture = load_picture(pixels)
    picture.save(tmp_path / "a.tif")
    assert np.array_equal(tifffile.imread(tmp_path / "a.tif"), pixels)
    assert np.array_equal(load_picture(tmp_path / "a.tif").pixels, pixels)
    picture.save(tmp_path / "a.png")
    assert np.array_equal(load_picture(tmp_path / "a.png").pixels, np.rint(pixels.astype(np.float64) * 65535))
    with pytest.warns(InputNote, match="WEBP holds 8 bits a channel, and float32 is reduced"):
        picture.save(tmp_path / "a.webp")


def test_metadata_that_a_format_cannot_hold_is_dropped_with_a_note(tmp_path):
    picture = Picture(
        smooth_picture(), None, None, b"Exif\0\0" + b"II*\0\x08\0\0\0\0\0\0\0\0\0" + b"\0" * 70000
    )
    with pytest.warns(InputNote, match="EXIF data are larger than JPEG allows"):
        picture.save(tmp_path / "a.jpg")
    picture.save(tmp_path / "a.png")
    assert len(load_picture(tmp_path / "a.png").exif) == len(picture.exif)
    with pytest.warns(InputNote, match="BMP holds no EXIF"):
        picture.save(tmp_path / "a.bmp")
    assert np.array_equal(load_picture(tmp_path / "a.bmp").pixels, picture.pixels)


@pytest.mark.parametrize("dtype", [np.uint16, np.float16, np.float32, np.float64])
def test_tiff_of_other_programs(tmp_path, dtype):
    path = tmp_path / "a.tif"
    high = 65535 if dtype is np.uint16 else 1
    pixels = (np.random.default_rng(0).random((40, 56, 3)) * high).astype(dtype)
    expected = pixels if dtype is np.uint16 else pixels.astype(np.float32)
    tifffile.imwrite(path, pixels, photometric="rgb", byteorder=">")
    assert np.array_equal(load_picture(path).pixels, expected)
    tifffile.imwrite(path, pixels[..., 0], photometric="miniswhite")
    assert np.array_equal(load_picture(path).pixels[..., 1], high - expected[..., 0])
    if dtype in (np.uint16, np.float32):
        for compression in (cv2.IMWRITE_TIFF_COMPRESSION_LZW, cv2.IMWRITE_TIFF_COMPRESSION_ADOBE_DEFLATE):
            options = [cv2.IMWRITE_TIFF_COMPRESSION, compression]
            assert cv2.imwrite(str(path), pixels[..., ::-1], options)
            assert np.array_equal(load_picture(path).pixels, expected)
            assert cv2.imwrite(str(path), pixels[..., 1], options)
            assert np.array_equal(load_picture(path).pixels[..., 2], expected[..., 1])


def test_tiff_alpha_is_divided_out_and_extra_channels_left_out(tmp_path):
    path = tmp_path / "a.tif"
    straight = smooth_picture(dtype=np.float32)
    alpha = np.linspace(0.1, 1, 40 * 56, dtype=np.float32).reshape(40, 56, 1)
    alpha[0, 0] = 0
    for dtype, high, tolerance in ((np.uint16, 65535, 1e-4), (np.float32, 1, 1e-6)):
        data = np.dstack((straight * alpha, alpha)) * high
        data = np.rint(data).astype(dtype) if dtype is np.uint16 else data
        tifffile.imwrite(path, data, photometric="rgb", extrasamples=["assocalpha"])
        picture = load_picture(path)
        np.testing.assert_allclose(picture.alpha / high, alpha[..., 0], atol=1e-5)
        np.testing.assert_allclose(picture.pixels[1:] / high, straight[1:], atol=tolerance)
        assert (picture.pixels[0, 0] == 0).all()
    data = np.dstack((straight, alpha))
    tifffile.imwrite(path, data, photometric="rgb", extrasamples=["unspecified"])
    assert load_picture(path).alpha is None


@pytest.mark.parametrize(
    ("dtype", "options", "reason"),
    [
        (np.uint32, {"photometric": "rgb"}, "32 bits a channel"),
        (np.int16, {"photometric": "rgb"}, "16 bits a channel of a kind"),
        (np.uint16, {"photometric": "cielab"}, "colour type 8"),
        (np.uint16, {"photometric": "rgb", "compression": "lzma"}, "LZMA"),
        (np.uint16, {"photometric": "rgb", "volumetric": True}, "damaged"),
    ],
    ids=["uint32", "int16", "lab", "lzma", "volume"],
)
def test_tiff_that_is_not_read_is_named(tmp_path, dtype, options, reason):
    shape = (16, 32, 32, 3) if "volumetric" in options else (40, 56, 3)
    tifffile.imwrite(tmp_path / "a.tif", np.zeros(shape, dtype), **options)
    with pytest.raises(DecodeError, match=reason):
        load_picture(tmp_path / "a.tif")


def test_8_bit_tiff_of_every_compression(tmp_path):
    pixels = smooth_picture()
    for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        path = tmp_path / f"{compression}.tif"
        Image.fromarray(pixels).save(path, compression=compression)
        loaded = load_picture(path).pixels
        assert np.abs(loaded.astype(int) - pixels).max() <= (40 if compression == "jpeg" else 0)
    with pytest.warns(InputNote) as notes:
        tifffile.imwrite(
            tmp_path / "cmyk.tif", np.full((40, 56, 4), 257 * 50, np.uint16), photometric="separated"
        )
        naive = load_picture(tmp_path / "cmyk.tif").pixels
    assert "CMYK of 16 bits, and is reduced" in str(notes[0].message)
    assert naive.dtype == np.uint8 and np.abs(naive - 255 * (1 - 50 / 255) ** 2).max() < 2


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"]
)
def test_every_pil_mode_is_taken_as_pillow_converts_it(mode):
    rgba = Image.fromarray(np.dstack((smooth_picture(), smooth_picture(seed=3)[..., 0])))
    if mode == "PA":
        image = rgba.convert("LA").convert("PA")
        image.putalpha(rgba.getchannel("A"))
    elif mode == "La":
        image = rgba.convert("LA").convert("La")
    elif mode in ("LA", "RGBA", "RGBa"):
        image = rgba.convert(mode)
    else:
        image = rgba.convert("RGB").convert(mode)
    before = image.tobytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InputNote)
        picture = load_picture(image)
    assert image.mode == mode and image.tobytes() == before
    straight = {"La": "LA", "RGBa": "RGBA"}.get(mode, mode)
    expected = image.convert(straight)
    assert np.array_equal(picture.pixels, np.asarray(expected.convert("RGB")))
    assert (picture.alpha is not None) == (straight in ("LA", "PA", "RGBA"))
    if picture.alpha is not None:
        assert np.array_equal(picture.alpha, np.asarray(expected.convert("RGBA"))[..., 3])


def test_deep_pil_modes():
    values = np.linspace(0, 65535, 40 * 56).reshape(40, 56)
    for mode, dtype in (("I;16", np.uint16), ("I", np.int32)):
        picture = load_picture(Image.frombytes(mode, (56, 40), values.astype(dtype).tobytes()))
        assert picture.pixels.dtype == np.uint16 and np.array_equal(
            picture.pixels[..., 0], values.astype(np.uint16)
        )
    picture = load_picture(Image.fromarray((values / 65535).astype(np.float32)))
    assert np.array_equal(picture.pixels[..., 0], (values / 65535).astype(np.float32))
    with pytest.raises(InputError, match="beyond 16 bits"):
        load_picture(Image.fromarray(np.full((40, 56), -1, np.int32)))
    with pytest.raises(InputError, match="'LAB'"):
        load_picture(Image.new("LAB", (40, 40)))


def test_pil_image_of_a_damaged_file(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(smooth_picture(128, 128)).save(path)
    path.write_bytes(path.read_bytes()[:-3000])
    with Image.open(path) as image, pytest.raises(DecodeError, match="composite: is truncated"):
        load_picture(image)
    with Image.open(path) as image, pytest.raises(DecodeError, match="mask: is truncated"):
        load_mask(image)


@pytest.mark.parametrize(
    "options", [{}, {"lossless": True}, {"exif": b"Exif\0\0"}], ids=["VP8", "VP8L", "VP8X"]
)
def test_size_of_webp_is_read_from_the_header(tmp_path, options):
    for width, height in ((37, 61), (1024, 16), (256, 300)):
        path = tmp_path / "a.webp"
        Image.new("RGB", (width, height), (9, 99, 200)).save(path, **options)
        assert webp_size(path.read_bytes()[:HEAD]) == (height, width)


def test_avif_of_10_bits_is_announced(tmp_path):
    path = tmp_path / "a.avif"
    pixels = smooth_picture(dtype=np.uint16) // 64
    assert cv2.imwrite(
        str(path), pixels[..., ::-1], [cv2.IMWRITE_AVIF_DEPTH, 10, cv2.IMWRITE_AVIF_QUALITY, 95]
    )
    with pytest.warns(InputNote, match="more than 8 bits a channel, and is reduced"):
        picture = load_picture(path)
    assert picture.pixels.dtype == np.uint8 and np.abs(picture.pixels - pixels / 4.012).mean() < 6
    Image.fromarray(smooth_picture()).save(path)
    load_picture(path)  # without a note


def test_tiny_masks_are_read(tmp_path):
    mask = np.zeros((4, 4), np.uint8)
    mask[1:3, 1:3] = 255
    Image.fromarray(mask).save(tmp_path / "a.png")
    assert load_mask(tmp_path / "a.png", size=(64, 64), resize=True).sum() == 32 * 32


@pytest.mark.parametrize("kind", ["png", "png16", "jpg", "webp", "tif", "tif16", "gif", "bmp", "avif"])
def test_damage_anywhere_is_an_input_error(tmp_path, kind, capfd):
    """Whatever is damaged, only `InputError` comes out, and nothing is printed."""
    path = tmp_path / f"a.{kind}"
    pixels = smooth_picture(32, 32)
    if kind == "png16":
        content = png16(pixels.astype(np.uint16) * 257)
    elif kind == "tif16":
        tifffile.imwrite(path, pixels.astype(np.uint16) * 257, photometric="rgb", compression="zlib")
        content = path.read_bytes()
    else:
        format_name = {"jpg": "JPEG", "tif": "TIFF"}.get(kind, kind.upper())
        Image.fromarray(pixels).save(path, format_name, exif=camera_exif())
        content = path.read_bytes()
    rng = np.random.default_rng(0)
    outcomes = set()
    for attempt in range(60):
        damaged = bytearray(content)
        # Headers are where decoders go wrong: half of the damage is done there.
        end = min(200, len(content)) if attempt % 2 else len(content)
        for place in rng.integers(8, end, rng.integers(1, 6)):
            damaged[place] = rng.integers(256)
        path.write_bytes(
            damaged[: rng.integers(len(damaged) // 2, len(damaged) + 1)] if attempt % 5 == 0 else damaged
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                picture = load_picture(path)
                outcomes.add("loaded")
                assert picture.pixels.shape == (*picture.size, 3)
                picture.to_tensor()
            except InputError as error:
                outcomes.add("refused")
                assert str(path) in str(error) and "\n" not in str(error)
    assert "refused" in outcomes
    assert capfd.readouterr() == ("", "")


def test_pictures_beyond_the_formats_are_refused(tmp_path):
    nothing = np.broadcast_to(np.uint8(0), (40000, 40000, 3))  # of no memory
    picture = Picture(nothing)
    for suffix, reason in (("tif", "4 GB"), ("webp", "sides up to 16383")):
        with pytest.raises(OutputError, match=reason):
            picture.save(tmp_path / f"a.{suffix}")
    assert not list(tmp_path.iterdir())


def test_nothing_is_written_beside_a_refused_result(tmp_path):
    picture = load_picture(np.dstack((smooth_picture(), smooth_picture()[..., 0])))
    with pytest.raises(OutputError, match="no transparency"):
        picture.save(tmp_path / "a.jpeg")
    assert not list(tmp_path.iterdir())
