"""Options of `harmony video` that cannot be heeded are refused before the first frame is read."""

import os

import numpy as np
import pytest
from PIL import Image
from video_clips import moving_disc, write_clip

from harmony_diffusion.cli import main
from harmony_diffusion.pipelines import video


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    frames, masks = moving_disc(4)
    write_clip(folder / "clip.mp4", frames)
    Image.fromarray(masks[0]).save(folder / "mask.png")
    Image.fromarray(masks[0][:40]).save(folder / "low.png")
    alpha = np.dstack((frames[0], masks[0]))
    for name in ("twice", "cut"):
        (folder / name).mkdir()
        Image.fromarray(alpha).save(folder / name / "f0.png")
    Image.fromarray(frames[0]).save(folder / "twice" / "f0.jpg")
    (folder / "low").mkdir()
    for i in range(4):
        Image.fromarray(masks[0][:40]).save(folder / "low" / f"{i}.png")
    return folder


BAD = {
    "mjpeg cannot be opened for 64x48 frames of yuv420p": "clip.mp4 mask.png -o o.mkv --codec mjpeg",
    "expected frame numbers from 1 to 3. Count from 0": "clip.mp4 mask.png -o o.mp4 --cuts 99",
    "number 0 is there twice: f0.jpg and f0.png": "twice mask.png -o o",
    "--at: belongs to --foreground and --background": "clip.mp4 mask.png -o o.mp4 --at 1,1",
    "--scale: belongs to --foreground": "clip.mp4 mask.png -o o.mp4 --scale 2",
    "--mask-end: belongs to COMPOSITE": "--foreground cut --background clip.mp4 -o o.mp4 --mask-end hold",
    "no .mkv file, which lossless needs": "clip.mp4 mask.png -o o.mp4 --lossless",
    "codec and lossless: exclude": "clip.mp4 mask.png -o o.mkv --lossless --codec h264",
    "is 64x40 pixels": "clip.mp4 low.png -o o.mp4",
}


@pytest.mark.parametrize("message", BAD)
def test_what_cannot_be_heeded_is_refused_at_once(clips, monkeypatch, capfd, message):
    monkeypatch.chdir(clips)
    # No pass may begin.
    monkeypatch.setattr(video, "PredictionPass", None)
    before = sorted(os.listdir())
    assert main(["video", *BAD[message].split(), "--model", "reinhard"]) == 2
    shown = capfd.readouterr().err
    assert message in shown and "resize" not in shown
    assert sorted(os.listdir()) == before


def test_folders_of_masks_of_another_size_do_not_offer_an_option_of_others(clips, monkeypatch, capfd):
    monkeypatch.chdir(clips)
    (clips / "high").mkdir()
    frames, masks = moving_disc(2)
    (clips / "mixed").mkdir()
    for i in range(2):
        Image.fromarray(frames[i]).save(clips / "high" / f"{i}.png")
        Image.fromarray(masks[i][: 48 - 8 * i]).save(clips / "mixed" / f"{i}.png")
    assert main(["video", "high", "mixed", "-o", "o", "--model", "reinhard"]) == 2
    shown = capfd.readouterr().err
    assert "is 64x40 pixels" in shown and "Scale the masks first" in shown


@pytest.mark.parametrize("option", ["--start", "--end"])
def test_seconds_before_the_clip_are_refused(clips, option, capfd):
    with pytest.raises(SystemExit):
        main(["video", "clip.mp4", "mask.png", "-o", "o.mp4", option, "-1"])
    assert option in capfd.readouterr().err
