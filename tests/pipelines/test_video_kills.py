"""Runs of `harmony video` that are killed at random moments and repeated."""

import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
from video_clips import moving_disc, write_clip

from harmony_diffusion import VideoHarmonizationPipeline, load_model
from harmony_diffusion.cli import main
from harmony_diffusion.video import passes
from harmony_diffusion.video.job import BATCH, job_folder, record_type

FRAMES = 96


def run(arguments):
    """Run `harmony video` as a process of its own would."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    raise SystemExit(main(["video", *arguments]))


def started(arguments):
    # From a server that has imported what takes seconds, so that kills hit the work.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["harmony_diffusion.pipelines.video"])
    process = context.Process(target=run, args=(arguments,))
    process.start()
    return process


@pytest.fixture
def case(tmp_path):
    """A clip of several segments, and what an uninterrupted run makes of it."""
    frames, masks = moving_disc(FRAMES, (96, 128))
    write_clip(tmp_path / "clip.mp4", frames, audio=True)
    write_clip(tmp_path / "mask.mp4", np.repeat(masks[..., None], 3, 3))
    arguments = [str(tmp_path / "clip.mp4"), str(tmp_path / "mask.mp4"), "--cuts", "20,40,60,80"]
    arguments += ["--model", "reinhard", "-o"]
    whole = started([*arguments, str(tmp_path / "whole.mp4")])
    while not job_folder(tmp_path / "whole.mp4").exists():
        assert whole.is_alive()
        time.sleep(0.005)
    begun = time.monotonic()
    whole.join()
    assert whole.exitcode == 0
    return tmp_path, [*arguments, str(tmp_path / "out.mp4")], time.monotonic() - begun


def killed_runs(case, kills, seed):
    """Kill runs at random moments of their work, the next going on; return how many kills hit."""
    folder, arguments, length = case
    output, hits = folder / "out.mp4", 0
    rng = np.random.default_rng(seed)
    while hits < kills:
        process = started(arguments)
        # A kill before there is anything to lose proves nothing.
        while process.is_alive() and not job_folder(output).exists():
            time.sleep(0.002)
        time.sleep(float(rng.uniform(0, 0.6 * length)))
        if process.is_alive():
            process.kill()
            hits += 1
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        if process.exitcode == 0:
            check(folder, output)
            output.unlink()
    if job_folder(output).exists() or not output.exists():
        last = started(arguments)
        last.join()
        assert last.exitcode == 0
    check(folder, output)
    return hits


def check(folder, output):
    assert output.read_bytes() == (folder / "whole.mp4").read_bytes()
    assert sorted(os.listdir(folder)) == ["clip.mp4", "mask.mp4", "out.mp4", "whole.mp4"]


def test_a_killed_run_goes_on_to_the_same_bytes(case):
    assert killed_runs(case, 3, seed=0) == 3


@pytest.mark.slow
def test_twenty_killed_runs_go_on_to_the_same_bytes(case):
    assert killed_runs(case, 20, seed=1) == 20


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
    monkeypatch.setattr(passes.os, "sched_getaffinity", lambda _: {0})
    stop_at = 30 if every == 1 else 11
    original = passes.FilterModel.view

    def count(self, frame, mask, reference=None):
        predicted.append(frame.pts)
        if len(predicted) == stop_at:
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
    # One batch that was under way, and one that was being collected.
    assert (times > 1).sum() <= 2 * BATCH
    pipe(*clip, output=tmp_path / "whole.mp4", predict_every=every)
    assert output.read_bytes() == (tmp_path / "whole.mp4").read_bytes()
    assert len(seen) == (40 if every == 1 else 14)


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
    assert len(rendered[25:]) == 20
    assert min(rendered[25:]) == sorted(first)[20]


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
