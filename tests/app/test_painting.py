import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from harmony_diffusion.app import painting
from harmony_diffusion.app.components import notes_text, read_value
from harmony_diffusion.app.engine import Engine
from harmony_diffusion.app.previews import mask_url, read_mask_url
from harmony_diffusion.errors import InputError, InputNote, MaskError
from harmony_diffusion.images.masks import load_mask
from harmony_diffusion.images.picture import Picture


@pytest.fixture
def engine(tmp_path):
    return Engine(tmp_path / "work", ["color_grid"])


@pytest.fixture
def picture(tmp_path):
    """A picture twice as large as the drawing board."""
    coarse = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    Picture(np.kron(coarse, np.ones((16, 16, 1), np.uint8))).save(tmp_path / "large.png")
    return str(tmp_path / "large.png")


def drawing(rows=slice(0, 0), columns=slice(0, 0)):
    board = np.zeros((768, 1024), np.float32)
    board[rows, columns] = 1
    return board


def test_picture_is_shown_on_a_board_of_1024_pixels(engine, picture):
    message = painting.open_picture(engine, picture)
    assert (message["width"], message["height"], message["full"]) == (1024, 768, [2048, 1536])


def test_drawn_mask_has_the_size_of_the_picture(engine, picture):
    drawn = {"mask": mask_url(drawing(slice(100, 200), slice(300, 500))), "edited": True}
    mask = load_mask(painting.drawn_mask(engine, picture, [], drawn))
    assert mask.shape == (1536, 2048)
    assert (
        (mask[204:396, 604:996] == 1).all()
        and mask[190].max() == 0
        and mask.sum() == pytest.approx(80_000, rel=0.01)
    )


def test_mask_from_a_file_stays_exact_where_nothing_is_drawn_over_it(engine, picture, tmp_path):
    fine = np.zeros((1536, 2048), np.uint8)
    fine[:700:2] = 255  # lines that the board cannot show
    Image.fromarray(fine).save(tmp_path / "fine.png")
    base = painting.mask_of_file(engine, str(tmp_path / "fine.png"), picture)
    bases, message = painting.mask_for_board(engine, ["earlier.png"], base)
    assert bases == ["earlier.png", base] and message["base"] == 1
    shown = read_mask_url(message["mask"], (768, 1024))
    drawn = {"mask": mask_url(shown), "edited": False, "base": 1}
    assert painting.drawn_mask(engine, picture, bases, drawn) == base
    assert painting.drawn_mask(engine, picture, bases, {**drawn, "base": 0}) == "earlier.png"
    for wrong in (2, -1, True, "1", base):
        with pytest.raises(InputError, match="Reload the page"):
            painting.drawn_mask(engine, picture, bases, {**drawn, "base": wrong})
    with pytest.raises(MaskError, match="is empty"):  # cleared
        painting.drawn_mask(engine, picture, bases, {"mask": None, "edited": True, "base": None})
    shown[500:600, 200:300] = 1
    edited = {"mask": mask_url(shown), "edited": True, "base": 1}
    mask = load_mask(painting.drawn_mask(engine, picture, bases, edited))
    assert (mask[:700:2] == 1).all() and (mask[1:700:2] == 0).all() and (mask[1010:1190, 410:590] == 1).all()


def test_nothing_drawn_is_an_error(engine, picture):
    for drawn in ({}, {"mask": mask_url(drawing()), "edited": True}):
        with pytest.raises(MaskError, match="is empty"):
            painting.drawn_mask(engine, picture, [], drawn)
    with pytest.raises(InputError, match="Upload a picture first"):
        painting.drawn_mask(engine, None, [], {})
    with pytest.raises(MaskError, match="no transparency"):
        painting.mask_of_alpha(engine, picture)


def test_transparency_becomes_the_mask(engine, tmp_path):
    alpha = np.zeros((40, 60), np.uint8)
    alpha[10:20, 10:30] = 255
    Picture(np.zeros((40, 60, 3), np.uint8), alpha).save(tmp_path / "cut.png")
    mask = load_mask(painting.mask_of_alpha(engine, str(tmp_path / "cut.png")))
    np.testing.assert_array_equal(mask * 255, alpha)


def test_reference_is_a_hard_region_or_none(engine, picture):
    assert painting.drawn_reference(engine, picture, {}) is None
    drawn = {"reference": mask_url(drawing(slice(0, 50), slice(0, 1024)))}
    mask = load_mask(painting.drawn_reference(engine, picture, drawn), reference=True)
    assert set(np.unique(mask)) == {0, 1} and mask[:100].all() and not mask[100:].any()


def bad_png(size=(10, 10)):
    file = io.BytesIO()
    Image.new("RGBA", size).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


@pytest.mark.parametrize(
    "url", ["file:///etc/hostname", "data:image/png;base64,AAAA", "data:image/png;base64,!", 5, bad_png()]
)
def test_what_is_no_drawing_is_refused(url):
    with pytest.raises(InputError, match="Reload the page"):
        read_mask_url(url, (20, 20))


@pytest.mark.parametrize("text", ["[1]", "{", "5"])
def test_values_that_are_no_object_are_refused(text):
    with pytest.raises(InputError, match="Reload the page"):
        read_value(text)
    assert read_value("") == {}


def test_notes_hold_no_markup():
    assert notes_text(["<img src=x>: is *empty*"]) == "- &#60;img src&#61;x&#62;: is &#42;empty&#42;"


def test_a_mask_of_another_size_is_scaled_with_a_note(engine, picture, tmp_path):
    Image.fromarray(np.full((20, 400), 255, np.uint8)).save(tmp_path / "thin.png")
    with pytest.warns(InputNote, match="thin.png: is 400x20 pixels, but .* 2048x1536: it is scaled"):
        painting.mask_of_file(engine, str(tmp_path / "thin.png"), picture)


@pytest.mark.parametrize("box", [[float("nan"), 0, 1, 1], [0, 0, 1], ["a", 0, 1, 1], 5])
def test_what_is_no_box_is_refused(engine, picture, box):
    with pytest.raises(InputError, match="is no box"):
        painting.mask_of_box(engine, picture, {"box": box})


@pytest.mark.parametrize(
    ("job", "value"), [("_write", {"change": "x"}), ("_write", {"strength": []}), ("_render", {"filters": 5})]
)
def test_what_a_viewer_cannot_hold_is_refused(engine, picture, job, value):
    from harmony_diffusion.app import results
    from harmony_diffusion.app.actions import Result
    from harmony_diffusion.app.sources import CompositeFiles

    result = Result(CompositeFiles(picture, picture), [None])
    with pytest.raises(InputError):
        getattr(results, job)(engine, result, json.dumps(value))
    with pytest.raises(InputError, match="none for this input yet"):
        getattr(results, job)(engine, None, "{}")
