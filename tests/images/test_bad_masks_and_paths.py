"""Hostile and odd masks, arrays, paths and targets: rows 23 to 37 of the project's list of bad input."""

import contextlib
import os
import resource
import socket
import stat
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from picture_files import (
    DISPLAY_P3,
    SRGB_CURVE,
    disk,
    files_in,
    matrix_profile,
    refusal,
    saved,
    silence,
    smooth_picture,
)
from PIL import Image
from scipy.ndimage import distance_transform_edt

from harmony_diffusion.errors import (
    DecodeError,
    InputError,
    InputNote,
    InputTypeError,
    MaskError,
    OutputError,
    SizeMismatchError,
)
from harmony_diffusion.images.masks import check_background, load_mask
from harmony_diffusion.images.output_files import check_output, output_names, write_atomically
from harmony_diffusion.images.picture import load_pairs, load_picture

P3 = matrix_profile(DISPLAY_P3, SRGB_CURVE)


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
    with pytest.warns(InputNote, match="is stretched from 56x40 to 40x56, of other proportions"):
        load_mask(disk(40, 56), size=(56, 40), resize=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_mask(disk(80, 113), size=(40, 56), resize=True)  # rounded


def test_the_hint_about_an_inverted_mask_fits_the_call():
    with pytest.warns(InputNote, match="if white is the foreground, leave out .*--invert-mask"):
        load_mask(disk(40, 56), invert=True)


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


def test_row_26_masks_without_black_or_white_are_refused():
    ramp = np.arange(64, dtype=np.uint8)[None].repeat(64, 0)
    assert "no value above 63 of 255" in refusal(MaskError, ramp, load=load_mask)
    assert "the values 127, 254" in refusal(MaskError, disk() // 2 + 127, load=load_mask)
    assert "the values 1, 255" in refusal(MaskError, disk() | 1, load=load_mask)
    assert "no background, only" in refusal(MaskError, np.full((64, 64), 200, np.uint8), load=load_mask)
    wide = (ramp * 4).astype(np.uint16)
    with pytest.warns(InputNote, match="16 bits a value but no value above 255"):
        assert np.array_equal(load_mask(wide), wide / np.float32(255))


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


def test_row_27_a_soft_matte_in_a_jpeg_stays_soft(tmp_path):
    y, x = np.mgrid[0:256, 0:256]
    distance = 80 - np.hypot(y - 128, x - 128)
    feather = (distance * 32 + 128).clip(0, 255).astype(np.uint8)  # 8 pixels wide
    with pytest.warns(InputNote, match="up to 32 is taken for background"):
        loaded = load_mask(saved(tmp_path / "feather.jpg", feather, quality=90))
    assert (loaded[feather == 0] == 0).mean() > 0.999 and (loaded[feather == 255] == 1).mean() > 0.999
    assert len(np.unique(loaded)) > 100 and np.abs(loaded - feather / 255).mean() < 0.01
    glow = (255 * np.exp(-(distance**2) / 3000)).astype(np.uint8)
    with pytest.warns(InputNote, match="soft and of a lossy format"):
        loaded = load_mask(saved(tmp_path / "glow.jpg", glow, quality=90))
    assert np.abs(loaded - glow / 255).max() < 0.05
    for value in (0, 255):  # nothing to clean
        with pytest.warns(InputNote) as notes:
            load_mask(saved(tmp_path / "flat.jpg", np.full((64, 64), value, np.uint8)))
        assert "noise" not in str(notes[0].message)


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
    assert "no labels" in refusal(MaskError, labels / 255.0, load=load_mask, label=7)
    assert "red, green and blue" in refusal(MaskError, colors, load=load_mask, label=7)
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
        with pytest.raises(ValueError):
            picture.pixels[:] = 0
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
    for write in (check_output, load_picture(smooth_picture()).save):
        with pytest.raises(OutputError, match="exists already"):
            write(other)
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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InputNote)
        with files_up_to(20_000), pytest.raises(OutputError, match="larger than is allowed"):
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
