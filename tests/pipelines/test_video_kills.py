"""Runs of `harmony video` that are killed at random moments and repeated."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from video_clips import moving_disc, write_clip

from harmony_diffusion import VideoHarmonizationPipeline, load_model
from harmony_diffusion.video import passes
from harmony_diffusion.video.job import BATCH, job_folder, record_type

COMMAND = [sys.executable, "-m", "harmony_diffusion.cli", "video"]
FRAMES = 96


@pytest.fixture
def case(tmp_path):
    """A clip of several segments, and what an uninterrupted run makes of it."""
    frames, masks = moving_disc(FRAMES, (96, 128))
    write_clip(tmp_path / "clip.mp4", frames, audio=True)
    write_clip(tmp_path / "mask.mp4", np.repeat(masks[..., None], 3, 3))
    arguments = [str(tmp_path / "clip.mp4"), str(tmp_path / "mask.mp4"), "--cuts", "20,40,60,80"]
    started = time.monotonic()
    subprocess.run([*COMMAND, *arguments, "-o", str(tmp_path / "whole.mp4")], check=True, capture_output=True)
    return tmp_path, arguments, time.monotonic() - started


def killed_runs(case, kills, seed):
    """Kill runs at random moments of their work, the next going on; return how many kills hit."""
    folder, arguments, length = case
    output, hits = folder / "out.mp4", 0
    rng = np.random.default_rng(seed)
    command = [*COMMAND, *arguments, "-o", str(output)]
    for _ in range(kills):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        # Kills before there is anything to lose prove nothing.
        while process.poll() is None and not job_folder(output).exists() and not output.exists():
            time.sleep(0.005)
        time.sleep(float(rng.uniform(0, 0.35 * length)))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            hits += 1
        process.wait()
        if output.exists() and not job_folder(output).exists():
            check(folder, output)
            output.unlink()
    if not output.exists() or job_folder(output).exists():
        subprocess.run(command, check=True, capture_output=True)
    check(folder, output)
    return hits


def check(folder, output):
    assert output.read_bytes() == (folder / "whole.mp4").read_bytes()
    assert sorted(os.listdir(folder)) == ["clip.mp4", "mask.mp4", "out.mp4", "whole.mp4"]


def test_a_killed_run_goes_on_to_the_same_bytes(case):
    assert killed_runs(case, 3, seed=0) >= 1


@pytest.mark.slow
def test_twenty_killed_runs_go_on_to_the_same_bytes(case):
    assert killed_runs(case, 20, seed=1) >= 10


class Stop(Exception):
    pass


def small_case(tmp_path):
    frames, masks = moving_disc(40)
    write_clip(tmp_path / "clip.mp4", frames)
    write_clip(tmp_path / "mask.mp4", np.repeat(masks[..., None], 3, 3))
    pipe = VideoHarmonizationPipeline(load_model("reinhard"))
    pipe.set_progress_bar_config(disable=True)
    return pipe, (tmp_path / "clip.mp4", tmp_path / "mask.mp4"), tmp_path / "out.mp4"


@pytest.mark.parametrize("every", [1, 3])
def test_no_frame_is_predicted_twice_but_those_of_the_last_batch(tmp_path, monkeypatch, every):
    pipe, clip, output = small_case(tmp_path)
    predicted = []
    original = passes.FilterModel.view

    def count(self, frame, mask, reference=None):
        predicted.append(frame.pts)
        if len(predicted) == 11:
            raise Stop
        return original(self, frame, mask, reference)

    monkeypatch.setattr(passes.FilterModel, "view", count)
    with pytest.raises(Stop):
        pipe(*clip, output=output, predict_every=every)
    known = (job_folder(output) / "records.bin").stat().st_size
    kind = record_type(6)
    assert known % (BATCH * kind.itemsize) == 0 and known > 0
    # What a kill leaves of a batch that was being written.
    with open(job_folder(output) / "records.bin", "ab") as file:
        file.write(b"torn")
    pipe(*clip, output=output, predict_every=every)
    seen, times = np.unique(predicted, return_counts=True)
    assert (times > 1).sum() <= BATCH
    pipe(*clip, output=tmp_path / "whole.mp4", predict_every=every)
    assert output.read_bytes() == (tmp_path / "whole.mp4").read_bytes()
    assert len(seen) == (40 if every == 1 else 15)


def test_finished_segments_are_not_rendered_again(tmp_path, monkeypatch):
    pipe, clip, output = small_case(tmp_path)
    rendered = []
    original = passes.FilterModel.changes

    def count(self, frame, *rest):
        rendered.append(frame.pts)
        if len(rendered) == 25:
            raise Stop
        return original(self, frame, *rest)

    monkeypatch.setattr(passes.FilterModel, "changes", count)
    with pytest.raises(Stop):
        pipe(*clip, output=output, cuts=[10, 20, 30])
    assert len(list((job_folder(output) / "segments").iterdir())) == 2
    first = set(rendered)
    del rendered[:]
    rendered.extend([-1] * 25)
    pipe(*clip, output=output, cuts=[10, 20, 30])
    again = [pts for pts in rendered[25:] if pts in first]
    assert len(again) <= 5 and len(rendered[25:]) == 20


def test_a_job_that_stopped_while_it_put_the_result_in_place_is_finished(tmp_path, monkeypatch):
    from harmony_diffusion.video import job

    pipe, clip, output = small_case(tmp_path)
    pipe(*clip, output=tmp_path / "whole.mp4")

    def stop(*_):
        raise Stop

    for broken in ("move", "shutil.rmtree"):
        with monkeypatch.context() as patch:
            owner, name = (job, "move") if broken == "move" else (job.shutil, "rmtree")
            patch.setattr(owner, name, stop)
            with pytest.raises(Stop):
                pipe(*clip, output=output)
        assert job_folder(output).exists()
        result = pipe(*clip, output=output)
        assert result.frames == 40
        assert output.read_bytes() == (tmp_path / "whole.mp4").read_bytes()
        assert not job_folder(output).exists()
        output.unlink()
