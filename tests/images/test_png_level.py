import io

import numpy as np
import pytest
from picture_files import smooth_picture
from PIL import Image

from harmony_diffusion.errors import InputError, OutputError
from harmony_diffusion.images.output_files import comparison_key, output_names, write_atomically
from harmony_diffusion.images.picture import Picture, load_picture


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_level_of_png_changes_the_size_and_not_the_pixels(tmp_path, dtype):
    picture = Picture(smooth_picture(64, 64, dtype))
    sizes = []
    for level in (0, 1, 9):
        path = tmp_path / f"{level}.png"
        picture.save(path, png_level=level)
        sizes.append(path.stat().st_size)
        assert np.array_equal(load_picture(path).pixels, picture.pixels)
    assert sizes[0] > sizes[1] > sizes[2]


def test_default_level_is_the_one_of_before(tmp_path):
    picture = Picture(smooth_picture(64, 64))
    for name, options in (("default", {}), ("six", {"png_level": 6})):
        picture.save(tmp_path / f"{name}.png", **options)
    pillow = io.BytesIO()
    Image.fromarray(picture.pixels).save(pillow, "PNG")
    contents = {(tmp_path / f"{name}.png").read_bytes() for name in ("default", "six")}
    assert contents == {pillow.getvalue()}


def test_the_encoder_writes_what_save_writes(tmp_path):
    picture = Picture(smooth_picture(40, 56))
    for name in ("a.png", "a.jpg", "a.tif", "a.webp"):
        picture.save(tmp_path / name, quality=80, png_level=1)
        file = io.BytesIO()
        picture.encoder(name, quality=80, png_level=1)(file)
        assert file.getvalue() == (tmp_path / name).read_bytes()
    with pytest.raises(OutputError):
        picture.encoder("a.xyz")


def test_level_beyond_9_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(InputError, match="png_level"):
        Picture(smooth_picture(32, 32)).save(tmp_path / "a.png", png_level=10)
    assert not list(tmp_path.iterdir())


def test_temporary_file_lies_in_the_folder_that_was_named(tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    seen = []

    def content(file):
        seen.extend(path.parent for path in tmp_path.rglob("*.tmp"))
        file.write(b"content")

    write_atomically(tmp_path / "result", content, scratch=scratch)
    assert seen == [scratch] and not list(scratch.iterdir())
    assert (tmp_path / "result").read_bytes() == b"content"


def test_names_are_compared_as_macos_and_windows_do():
    assert comparison_key("A\u0308/B") == comparison_key("\u00e4/b")
    with pytest.raises(InputError):
        output_names(["A\u0308.png", "\u00e4.jpg"])
