"""A kept change is rendered as `harmonize_picture` does it, without the network."""

from pathlib import Path

import numpy as np
import pytest
import torch

from harmony_diffusion.app.actions import harmonize, with_arguments, write_result
from harmony_diffusion.app.changes import predict_change, render_change
from harmony_diffusion.app.engine import Engine, offered_models
from harmony_diffusion.app.sources import CompositeFiles
from harmony_diffusion.cli import main
from harmony_diffusion.errors import CheckpointError, InputError
from harmony_diffusion.highres.harmonize import harmonize_picture
from harmony_diffusion.images.compose import save_mask
from harmony_diffusion.images.picture import Picture, load_picture
from harmony_diffusion.models import create_model, load_model


def scene(height=90, width=120, alpha=False):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 65536, (height, width, 3), dtype=np.uint16)
    opacity = np.full((height, width), 65535, np.uint16)
    opacity[:, :20] = 0
    mask = np.zeros((height, width), np.float32)
    mask[30:60, 40:80] = 1
    mask[60:64, 40:80] = 0.5
    return Picture(pixels, opacity if alpha else None), mask


EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
MODELS = ["color_grid", "reinhard", "poisson", "harmonizer"]


@pytest.mark.parametrize("restricted", ["whole", "reference", "alpha"])
@pytest.mark.parametrize("name", MODELS)
def test_rendered_change_equals_harmonize_picture(name, restricted):
    torch.manual_seed(0)
    model = create_model(name).eval() if name == "harmonizer" else load_model(name)
    picture, mask = scene(alpha=restricted == "alpha")
    reference = None
    if restricted == "reference":
        reference = np.zeros(mask.shape, np.float32)
        reference[:, 90:] = 1
    change = predict_change(model, picture, mask, reference)
    for strength in (1.0, 0.3):
        expected, _ = harmonize_picture(model, picture, mask, reference=reference, strength=strength)
        np.testing.assert_array_equal(render_change(change, picture, mask, strength).pixels, expected.pixels)


def test_network_runs_once_and_small_copies_look_the_same():
    model = load_model("color_grid")
    picture, mask = scene()
    change = predict_change(model, picture, mask)
    model.predict_filters = None  # a second run would fail
    whole = render_change(change, picture, mask).read_srgb()
    small = Picture(np.rint(picture.read_srgb()[::2, ::2] * 255).astype(np.uint8))
    rendered = render_change(change, small, mask[::2, ::2]).read_srgb()
    assert np.abs(rendered - whole[::2, ::2])[mask[::2, ::2] == 1].mean() < 0.02


@pytest.fixture
def engine(tmp_path):
    return Engine(tmp_path / "work", ["color_grid", "reinhard"])


@pytest.fixture
def stored(tmp_path):
    picture, mask = scene()
    picture.save(tmp_path / "picture.tif")
    save_mask(mask, tmp_path / "mask.png")
    return CompositeFiles(str(tmp_path / "picture.tif"), str(tmp_path / "mask.png"))


def test_result_is_written_at_full_depth_with_its_mask(engine, stored):
    result, message = harmonize(engine, stored, "color_grid", variations=True)
    assert [choice["change"] for choice in message["choices"]] == [0, 0, 1]
    path, mask = write_result(engine, result, 0, 0.5)
    written = load_picture(path)
    assert path.endswith("picture_harmonized.tif") and written.pixels.dtype == np.uint16
    scene_ = stored.load()
    expected, _ = harmonize_picture(load_model("color_grid"), scene_.composite, scene_.mask, strength=0.5)
    np.testing.assert_array_equal(written.pixels, expected.pixels)
    assert mask.endswith("_mask.png")


def test_filter_arguments_set_by_hand_are_rendered(tmp_path, stored):
    torch.manual_seed(0)
    create_model("harmonizer").save_pretrained(tmp_path / "harmonizer")
    name = str(tmp_path / "harmonizer")
    engine = Engine(tmp_path / "work", [name])
    result, message = harmonize(engine, stored, name)
    assert [one["name"] for one in message["filters"]][:2] == ["temperature", "brightness"]
    brighter, shown = with_arguments(result, [0, 0.8, 0, 0, 0, 0])
    assert shown["after"].startswith("data:image/jpeg")
    scene_ = stored.load()
    inside = scene_.mask == 1
    dark, light = (
        load_picture(write_result(engine, one, 0, 1.0)[0]).read_srgb()[inside].mean()
        for one in (with_arguments(result, [0, -0.8, 0, 0, 0, 0])[0], brighter)
    )
    assert light > dark + 0.1
    for wrong in ([0.0], [2, 0, 0, 0, 0, 0], ["x"] * 6):
        with pytest.raises(InputError):
            with_arguments(result, wrong)


def test_session_holds_filters_and_no_pixels(engine, stored):
    result, _ = harmonize(engine, stored, "color_grid")
    assert result.changes[0].thumbnail is None
    assert result.changes[0].filters.numel() * 4 < 20_000


def test_models_that_were_not_offered_or_have_no_weights_are_refused(tmp_path):
    engine = Engine(tmp_path, ["hdnet", "color_grid"])
    with pytest.raises(InputError, match="not offered"):
        engine.model("mkl")
    with pytest.raises(CheckpointError):
        engine.model("hdnet")
    assert offered_models()[0] == "color_grid" and offered_models("mkl")[0] == "mkl"


def test_messages_name_no_folder(tmp_path):
    engine = Engine(tmp_path / "work", ["color_grid"])
    text = f"{engine.folder}/0a1b/my cat.png: is empty, see {tmp_path.home()}/x"
    assert engine.without_paths(text) == "my cat.png: is empty, see x"
    engine.close()
    assert not engine.folder.exists()


def test_jobs_run_one_after_another_and_return_their_notes(engine):
    import threading
    import time

    from harmony_diffusion.images.arrays import note

    running, most = [], []

    def job(number):
        running.append(number)
        most.append(len(running))
        note(f"{engine.folder}/x/picture.png", "is odd")
        time.sleep(0.02)
        running.remove(number)
        return number

    answers = []
    threads = [threading.Thread(target=lambda n=n: answers.append(engine.run(job, n))) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(number for number, _ in answers) == list(range(6)) and max(most) == 1
    assert all(notes == ["picture.png: is odd"] for _, notes in answers)


def test_a_job_that_takes_too_long_is_refused(engine, monkeypatch):
    import threading

    from harmony_diffusion.app import engine as module

    monkeypatch.setattr(module, "TIME_LIMIT", 0.05)
    finish = threading.Event()
    with pytest.raises(InputError, match="took more than"):
        engine.run(finish.wait)
    finish.set()


def test_diffusion_is_generated_once_and_equals_its_pipeline(tmp_path, monkeypatch):
    from tiny_diffusion import make_pipe, object_mask, picture, seeded, trained_like

    make_pipe(trained_like()).save_pretrained(tmp_path / "tiny")
    monkeypatch.setenv("HARMONY_SD2_DUAL", str(tmp_path / "tiny"))
    assert offered_models()[-1] == "sd2-dual"
    composite = Picture(picture())
    composite.save(tmp_path / "picture.png")
    save_mask(object_mask().astype(np.float32) / 255, tmp_path / "mask.png")
    files = CompositeFiles(str(tmp_path / "picture.png"), str(tmp_path / "mask.png"))
    engine = Engine(tmp_path / "work", ["sd2-dual"])
    result, message = harmonize(engine, files, "sd2-dual", variations=True, prompt="a cup")
    assert [choice["change"] for choice in message["choices"]] == [0, 1, 2] and message["filters"] == []
    whole, half = (
        load_picture(write_result(engine, result, 1, strength)[0]).pixels for strength in (1.0, 0.5)
    )
    pipe = engine.model("sd2-dual")
    expected = pipe(composite, object_mask(), "a cup", generator=seeded(1), output_type="array").images[0]
    np.testing.assert_array_equal(whole, expected)
    middle = (composite.pixels.astype(int) + expected) / 2
    assert np.abs(half - middle).max() <= 1
    same = (expected == composite.pixels).all(2)
    assert same.any()
    np.testing.assert_array_equal(half[same], composite.pixels[same])


def test_a_model_that_is_none_ends_the_command_before_the_page_is_served(tmp_path, capsys):
    from harmony_diffusion.app.engine import check_offered

    for name in ("no_such_model", "hdnet", "no/such/folder"):
        assert main(["app", "--no-browser", "--port", "0", "--model", name]) == 2
        assert "neither a model with weights nor a folder" in capsys.readouterr().err
    for name in (None, "default", "mkl", "owner/name", str(tmp_path)):
        check_offered(name)


def test_every_clip_that_is_offered_can_be_written(tmp_path):
    """A WebM clip comes back as Matroska, which holds what is written."""
    pytest.importorskip("av", reason="clips need the extra `video`")
    import shutil

    from harmony_diffusion.app import video_tab

    engine = Engine(tmp_path / "work", ["reinhard"])
    for suffix in video_tab._CLIPS:
        shutil.copy(EXAMPLES / "clip.mp4", tmp_path / f"clip{suffix}")
        result = video_tab._harmonize(
            engine, str(tmp_path / f"clip{suffix}"), str(EXAMPLES / "clip_mask.mp4"), "reinhard", 1.0, "none"
        )
        assert result[1].startswith("60 frames")
