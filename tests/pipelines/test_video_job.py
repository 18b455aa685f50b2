"""One run at a time writes a clip, and nothing is begun with filters that cannot be used."""

import fcntl

import numpy as np
import pytest
from PIL import Image
from small_models import Gain
from video_clips import moving_disc, write_clip

from harmony_diffusion import VideoHarmonizationPipeline
from harmony_diffusion.errors import InputError, OutputError
from harmony_diffusion.video.job import job_folder


@pytest.fixture
def pipe():
    pipe = VideoHarmonizationPipeline(Gain().eval())
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def clip(tmp_path):
    frames, masks = moving_disc(4)
    write_clip(tmp_path / "clip.mkv", frames, codec="ffv1")
    Image.fromarray(masks[0]).save(tmp_path / "mask.png")
    return tmp_path / "clip.mkv", tmp_path / "mask.png"


@pytest.mark.parametrize("resume", [True, False])
def test_a_second_run_on_one_output_is_refused_and_removes_nothing(pipe, clip, tmp_path, resume):
    output = tmp_path / "out.mkv"
    folder = job_folder(output)
    folder.mkdir()
    (folder / "records.bin").write_bytes(b"of the first run")
    with open(folder / "lock", "wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(OutputError, match=r"out\.mkv: is being written by another run"):
            pipe(*clip, output=output, resume=resume)
        assert (folder / "records.bin").read_bytes() == b"of the first run" and not output.exists()
    # The lock is gone with the run that held it.
    assert pipe(*clip, output=output, resume=False).frames == 4
    assert not folder.exists()


def changed(path, **values):
    with np.load(path) as stored:
        content = {name: stored[name] for name in stored.files}
    for name, value in values.items():
        if value is None:
            del content[name]
        else:
            content[name] = value(content[name].copy())
    np.savez(path, **content)


def with_value(value):
    def change(array):
        array[0] = value
        return array

    return change


DAMAGES = {
    "nan": lambda path: changed(path, numbers=with_value(np.nan)),
    "inf": lambda path: changed(path, numbers=with_value(np.inf)),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-40]),
    "no times": lambda path: changed(path, times=None),
    "no flicker": lambda path: changed(path, flicker=None),
    "no flicker before": lambda path: changed(path, flicker_before=None),
    "nan flicker": lambda path: changed(path, flicker=lambda _: np.array(np.nan)),
    "few used": lambda path: changed(path, used=lambda used: used[:1]),
    "shots beyond the end": lambda path: changed(path, shots=lambda _: np.array([[0, 9]])),
    "shots of one number": lambda path: changed(path, shots=lambda _: np.array([4])),
    "text for numbers": lambda path: changed(path, numbers=lambda numbers: numbers.astype(str)),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


def test_damaged_filters_are_refused_before_anything_is_made(pipe, clip, tmp_path):
    good = tmp_path / "good.npz"
    pipe(*clip, output=tmp_path / "first.mkv", filters=good)
    content = good.read_bytes()
    for number, damage in enumerate(DAMAGES.values()):
        path = tmp_path / f"filters{number}.npz"
        path.write_bytes(content)
        damage(path)
        with pytest.raises(InputError, match=path.name):
            pipe(*clip, output=tmp_path / "out.mkv", filters=path)
        assert not (tmp_path / "out.mkv").exists() and not job_folder(tmp_path / "out.mkv").exists()


def test_filters_that_cannot_be_written_are_named_before_the_work(pipe, clip, tmp_path):
    for name in (f"{'n' * 300}.npz", "missing/filters.npz"):
        with pytest.raises((InputError, OutputError), match=name[:200]):
            pipe(*clip, output=tmp_path / "out.mkv", filters=tmp_path / name)
        assert not job_folder(tmp_path / "out.mkv").exists()
