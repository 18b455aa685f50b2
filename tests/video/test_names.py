"""Names of clips: files alone are read and written, whatever FFmpeg would make of a name."""

import os
import socket

import pytest
from PIL import Image
from small_models import Gain
from video_clips import moving_disc, write_clip

from harmony_diffusion import VideoHarmonizationPipeline
from harmony_diffusion.errors import DecodeError, InputError
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
        with pytest.raises(InputError, match="is an address, and nothing is downloaded"):
            open_clip(f"http://127.0.0.1:{server.getsockname()[1]}/x.mp4")
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
