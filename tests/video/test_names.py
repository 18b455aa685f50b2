"""Names of clips: files alone are read and written, whatever FFmpeg would make of a name."""

import os
import socket

import pytest
from PIL import Image
from small_models import Gain
from video_clips import moving_disc, write_clip

from harmony_diffusion import VideoHarmonizationPipeline
from harmony_diffusion.errors import DecodeError, HarmonyError, InputError, OutputError
from harmony_diffusion.video.clips import open_clip
from harmony_diffusion.video.files import read_info


@pytest.fixture
def pipe():
    pipe = VideoHarmonizationPipeline(Gain().eval())
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    frames, masks = moving_disc(3)
    write_clip("clip.mkv", frames, codec="ffv1")
    Image.fromarray(masks[0]).save("mask.png")
    return tmp_path


def test_names_with_a_colon_are_names(pipe, folder):
    os.rename("clip.mkv", "a:b.mkv")
    for name in ("a:c.mkv", "file:zz.mkv", "pipe:1.mkv", "tee:x.mkv"):
        assert pipe("a:b.mkv", "mask.png", output=name).frames == 3
    assert sorted(os.listdir()) == [
        "a:b.mkv",
        "a:c.mkv",
        "file:zz.mkv",
        "mask.png",
        "pipe:1.mkv",
        "tee:x.mkv",
    ]


def test_addresses_are_refused_and_nothing_is_sent():
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        for name in ("x.mp4", "x.mp4?a=1", "%05d.png"):
            with pytest.raises(InputError, match="is an address, and nothing is downloaded"):
                open_clip(f"http://127.0.0.1:{server.getsockname()[1]}/{name}")
        with pytest.raises(BlockingIOError):
            server.accept()


def test_protocols_and_lists_open_no_other_file(folder):
    with pytest.raises(DecodeError, match="there is no such file"):
        open_clip("concat:clip.mkv|clip.mkv")
    with open("list.mp4", "w") as file:
        file.write("ffconcat version 1.0\nfile clip.mkv\n")
    with open("list2.mp4", "w") as file:
        file.write("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nclip.mkv\n#EXT-X-ENDLIST\n")
    for name in ("list.mp4", "list2.mp4"):
        with pytest.raises(DecodeError, match="cannot be read as a video"):
            read_info(name)


def test_pipes_and_devices_are_refused_without_waiting(pipe, folder):
    os.mkfifo("fifo.mp4")
    for composite, mask in (("fifo.mp4", "mask.png"), ("clip.mkv", "fifo.mp4")):
        with pytest.raises(InputError, match=r"fifo\.mp4: is a pipe.*path of a video file"):
            pipe(composite, mask, output="out.mkv")
    with pytest.raises(InputError, match="is a device"):
        open_clip("/dev/zero")


LONG = "n" * 300


@pytest.mark.parametrize(
    "output", [".", "..", LONG, f"{LONG}.mkv", f"{'n' * 245}.mkv", "loop", "loop.mkv", "a\0b.mkv"]
)
@pytest.mark.parametrize("composite", ["clip.mkv", "frames"])
def test_places_that_cannot_be_written_are_typed_errors(pipe, folder, composite, output):
    os.mkdir("frames")
    Image.open("mask.png").convert("RGB").save("frames/0.png")
    os.symlink("loop", "loop")
    os.symlink("loop.mkv", "loop.mkv")
    before = sorted(os.listdir())
    with pytest.raises(OutputError):
        pipe(composite, "mask.png", output=output)
    assert sorted(os.listdir()) == before


def test_a_long_name_beside_is_refused_before_the_work(pipe, folder):
    with pytest.raises(OutputError, match="_before_after.*too long"):
        pipe("clip.mkv", "mask.png", output=f"{'n' * 240}.mkv", side_by_side=True)
    assert sorted(os.listdir()) == ["clip.mkv", "mask.png"]


@pytest.mark.parametrize("name", [LONG, f"{LONG}.png", "loop", "loop.png", "a\0b.mkv"])
def test_inputs_and_models_that_cannot_be_looked_at_are_typed_errors(pipe, folder, name):
    os.symlink("loop", "loop")
    os.symlink("loop.png", "loop.png")
    with pytest.raises(HarmonyError):
        pipe(name, "mask.png", output="out.mkv")
    with pytest.raises(HarmonyError):
        pipe("clip.mkv", name, output="out.mkv")
    with pytest.raises(HarmonyError):
        VideoHarmonizationPipeline.from_pretrained(name)


@pytest.mark.skipif(os.geteuid() == 0, reason="the permissions of folders do not bind the superuser")
def test_folders_without_permission_are_typed_errors(pipe, folder):
    os.mkdir("closed", 0)
    for names in (("closed/a.mkv", "mask.png"), ("clip.mkv", "closed/a.png"), ("closed", "mask.png")):
        with pytest.raises(HarmonyError):
            pipe(*names, output="out.mkv")
    with pytest.raises(OutputError):
        pipe("clip.mkv", "mask.png", output="closed/out.mkv")
    with pytest.raises(HarmonyError):
        VideoHarmonizationPipeline.from_pretrained("closed")
