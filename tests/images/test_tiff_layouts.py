"""Every layout of a TIFF file: the pixels come out to the bit, or the file is refused."""

import contextlib
import itertools
import struct
import warnings

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError
from tiff_files import COMPRESSIONS, FLOATING_POINT, HORIZONTAL, PLAIN, write_tiff

from harmony_diffusion.errors import DecodeError, InputNote
from harmony_diffusion.images.picture import Picture, load_picture
from harmony_diffusion.images.quick_decoding import read_mask, read_picture

DTYPES = (np.uint8, np.uint16, np.uint32, np.float16, np.float32, np.float64)
SHAPE = 17, 19  # whole strips and tiles, and parts of them, of an even and an odd number of bytes


def pixels_of(dtype, samples):
    values = np.random.default_rng(0).random((*SHAPE, samples)) / 2 + np.linspace(0, 0.5, SHAPE[1])[:, None]
    if np.issubdtype(dtype, np.floating):
        return values.astype(dtype)
    return (values * np.iinfo(dtype).max).astype(dtype)


def kept(dtype, compression, predictor):
    """Whether a layout is one that programs agree on, and holds values that are kept."""
    if dtype is np.uint32:
        return False
    suited = FLOATING_POINT if np.issubdtype(dtype, np.floating) else HORIZONTAL
    return predictor == PLAIN or (predictor == suited and compression in ("lzw", "adobe_deflate"))


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_layout_is_exact_or_refused(tmp_path, dtype, compression):
    path = tmp_path / "a.tif"
    outcomes = set()
    for samples, planar, predictor, tile, order in itertools.product(
        (1, 2, 3, 4), (False, True), (PLAIN, HORIZONTAL, FLOATING_POINT), (None, (16, 16)), "<>"
    ):
        if planar and samples == 1:
            continue
        if predictor == HORIZONTAL and np.issubdtype(dtype, np.floating):
            continue  # no program writes it
        if predictor == FLOATING_POINT and not np.issubdtype(dtype, np.floating):
            continue
        alpha = "unassalpha" if order == "<" else "unspecified"
        options = {"extrasamples": [alpha]} if samples in (2, 4) else {}
        pixels = pixels_of(dtype, samples)
        layout = {"planar": planar, "compression": compression, "predictor": predictor, "tile": tile}
        write_tiff(path, pixels, rows=8, order=order, **layout, **options)
        if not kept(dtype, compression, predictor):
            with pytest.raises(DecodeError, match="bits a channel|predictor"):
                load_picture(path)
            outcomes.add("refused")
            continue
        outcomes.add("exact")
        picture = load_picture(path)
        expected = pixels.astype(np.float32) if np.issubdtype(dtype, np.floating) else pixels
        colors = 3 if samples >= 3 else 1
        assert picture.pixels.dtype == expected.dtype, (layout, samples)
        assert np.array_equal(picture.pixels, np.broadcast_to(expected[..., :colors], (*SHAPE, 3))), layout
        assert (picture.alpha is None) == (not options or alpha == "unspecified"), (layout, samples)
        if picture.alpha is not None:
            assert np.array_equal(picture.alpha, expected[..., colors]), layout
        if dtype is np.uint8:
            assert np.array_equal(read_picture(path), picture.pixels), "the reader of data sets differs"
            with contextlib.suppress(UnidentifiedImageError, DecodeError), Image.open(path) as image:
                assert np.array_equal(load_picture(image).pixels, picture.pixels), layout
    assert outcomes == ({"refused"} if dtype is np.uint32 else {"exact"} | outcomes)


@pytest.mark.parametrize(
    ("photometric", "samples", "planar"),
    [("ycbcr", 3, False), ("ycbcr", 3, True), ("cielab", 3, False), ("separated", 4, True)],
)
def test_colour_types_that_pillow_gets_wrong_are_refused(tmp_path, photometric, samples, planar):
    write_tiff(tmp_path / "a.tif", pixels_of(np.uint8, samples), planar=planar, photometric=photometric)
    with pytest.raises(Exception, match="colour type|colour mode"):
        load_picture(tmp_path / "a.tif")


def test_masks_of_16_bits_are_read_alike_by_both_readers(tmp_path):
    mask = (np.arange(SHAPE[0] * SHAPE[1]).reshape(SHAPE) % 2 * 255).astype(np.uint16)
    for values, compression in ((mask, "lzw"), (mask * 257, None)):
        write_tiff(tmp_path / "a.tif", values[..., None], compression=compression)
        assert np.array_equal(read_mask(tmp_path / "a.tif"), mask)
    Image.fromarray(mask * 257).save(tmp_path / "a.png")
    assert np.array_equal(read_mask(tmp_path / "a.png"), mask)


def test_strips_missing_at_the_end_can_be_left_black(tmp_path):
    pixels = pixels_of(np.uint16, 3)
    write_tiff(tmp_path / "a.tif", pixels, rows=8, compression="lzw")
    content = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(content[:-10])
    with pytest.raises(DecodeError, match="truncated.*--allow-truncated"):
        load_picture(tmp_path / "a.tif")
    with pytest.warns(InputNote, match="is truncated, and the part that is missing is black"):
        picture = load_picture(tmp_path / "a.tif", allow_truncated=True)
    assert np.array_equal(picture.pixels[:16], pixels[:16]) and not picture.pixels[16:].any()


@pytest.mark.parametrize("kind", [2, 3, 4, 5])
@pytest.mark.parametrize("items", [0, 1, 2])
def test_what_is_written_with_odd_resolution_tags_is_read_again(tmp_path, kind, items):
    entries = b"".join(struct.pack("<HHII", tag, kind, items, 0) for tag in (0x011A, 0x011B, 0x0128))
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 3) + entries + b"\0" * 4
    pixels = np.random.default_rng(0).integers(0, 256, (*SHAPE, 3), dtype=np.uint8)
    Picture(pixels, exif=exif).save(tmp_path / "a.tif")
    assert np.array_equal(load_picture(tmp_path / "a.tif").pixels, pixels)
    with warnings.catch_warnings(), Image.open(tmp_path / "a.tif") as image:
        warnings.simplefilter("error")
        assert np.array_equal(np.asarray(image), pixels)
