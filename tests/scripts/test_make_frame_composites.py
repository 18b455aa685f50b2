"""`make_frame_composites.py`: the object of one frame on another frame of its clip."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from run_script import run_script
from video_clips import moving_disc

from harmony_diffusion.data.iharmony4 import read_iharmony4
from harmony_diffusion.images.quick_decoding import read_mask, read_picture
from harmony_diffusion.metrics.score_rows import read_rows

EVAL = Path(__file__).resolve().parents[2] / "eval"
CLIPS = {"car": (0.6, 0.5, 0.45), "bird_2": (0.35, 0.45, 0.6)}
FRAMES = 8


def make(*arguments, expect=0):
    return run_script(EVAL / "make_frame_composites.py", *arguments, expect=expect)


def files_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def clips(tmp_path):
    for shift, (name, tint) in enumerate(CLIPS.items()):
        (tmp_path / "clips" / name).mkdir(parents=True)
        for number, (frame, mask) in enumerate(
            zip(*moving_disc(FRAMES, shift=shift, tint=tint), strict=True)
        ):
            path = tmp_path / "clips" / name / f"{number:03d}"
            Image.fromarray(frame).save(path.with_suffix(".jpg"), quality=95)
            Image.fromarray(mask).save(path.with_suffix(".png"))
    return tmp_path / "clips"


@pytest.fixture
def out(clips, tmp_path):
    shown = make(clips, tmp_path / "out", "--gap", 4, "--pairs", 3).stdout
    assert shown == "HTransfer: 6, HRetouch: 6, HLight: 6\n"
    return tmp_path / "out"


def test_truth_is_the_paste_and_only_the_object_is_recoloured(clips, out):
    samples = read_iharmony4(out)
    assert len(samples) == 18 and {sample.subset for sample in samples} == {"HTransfer", "HRetouch", "HLight"}
    for sample in samples:
        clip, _, frames = sample.name.removesuffix("_1_1").rpartition("@")
        a, b = map(int, frames.split("-"))
        assert abs(a - b) >= 4
        real, composite = (read_picture(path).astype(float) for path in (sample.real, sample.composite))
        opacity = read_mask(sample.mask)
        first, second = (read_picture(clips / clip / f"{number:03d}.jpg") for number in (a, b))
        own, other = (read_mask(clips / clip / f"{number:03d}.png") > 127 for number in (a, b))
        assert 0.5 * own.sum() < (opacity > 127).sum() < own.sum() and not opacity[~own].any()
        assert ((opacity > 0) & (opacity < 255)).any()
        assert np.array_equal(real[opacity == 255], first[opacity == 255])
        assert np.array_equal(composite[opacity == 0], real[opacity == 0])
        # The object of frame B and 4 pixels around it are filled; the rest of frame B is kept.
        kept = (cv2.dilate(other.astype(np.uint8), np.ones((9, 9))) == 0) & (opacity == 0)
        assert kept.any() and np.array_equal(real[kept], second[kept])
        hidden = other & ~own
        assert hidden.any() and np.abs(real[hidden] - second[hidden]).mean() > 10
        assert 80 <= np.mean((composite - real)[opacity > 127] ** 2) <= 6000


def test_seed_decides_the_bytes(clips, out, tmp_path):
    make(clips, tmp_path / "again", "--gap", 4, "--pairs", 3)
    make(clips, tmp_path / "other", "--gap", 4, "--pairs", 3, "--seed", 1)
    assert files_of(out) == files_of(tmp_path / "again")
    assert files_of(out).keys() != files_of(tmp_path / "other").keys()


def test_frames_without_the_object_are_left_out(clips, tmp_path):
    for number in range(2, FRAMES):
        Image.new("L", (64, 48)).save(clips / "car" / f"{number:03d}.png")
    make(clips, tmp_path / "out", "--gap", 1, "--pairs", 9)
    names = {sample.name for sample in read_iharmony4(tmp_path / "out") if sample.name.startswith("car@")}
    assert names == {"car@00000-00001_1_1", "car@00001-00000_1_1"}


def test_scored_composites_are_grouped_by_clip(out, tmp_path):
    run_script(EVAL / "eval_dataset.py", "--data", out, "--model", "identity", "--output", tmp_path / "rows")
    rows = read_rows(tmp_path / "rows" / "rows.csv")
    assert len(rows) == 18 and {row.photograph for row in rows} == {*CLIPS}


@pytest.mark.parametrize(
    "options, reason",
    [
        (["--gap", FRAMES], "holds no usable pair of frames: 8 frames, an object in both, --gap 8"),
        (["--pairs", 0], "--pairs: must be an integer of 1 or more, got 0"),
        (["--size", 32], "--size: must be an integer of 64 or more, got 32"),
    ],
)
def test_a_refusal_writes_nothing(clips, tmp_path, options, reason):
    assert reason in make(clips, tmp_path / "new" / "out", *options, expect=None).stderr
    assert not [*tmp_path.glob("new/*")]


def test_folders_that_do_not_fit_are_refused(clips, tmp_path):
    assert "missing: is not a folder" in make(tmp_path / "missing", tmp_path / "out", expect=None).stderr
    (tmp_path / "one").mkdir()
    (clips / "car").rename(tmp_path / "one" / "car")
    assert "needs the object of another" in make(tmp_path / "one", tmp_path / "out", expect=None).stderr
    before = files_of(clips)
    assert "is not an empty folder" in make(tmp_path / "one", clips, expect=None).stderr
    assert files_of(clips) == before and not (tmp_path / "out").exists()
