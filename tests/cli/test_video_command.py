import os
import shutil
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from video_clips import moving_disc, write_clip

from harmony_diffusion.cli import main

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TAGS = {"color_primaries": 1, "color_trc": 1, "colorspace": 1, "color_range": 1}


def test_the_example_becomes_steady(tmp_path, capsys):
    out = tmp_path / "out.mp4"
    code = main(["video", str(EXAMPLES / "clip.mp4"), str(EXAMPLES / "clip_mask.mp4"), "-o", str(out)])
    shown = capsys.readouterr()
    assert code == 0
    path, last = shown.out.strip().splitlines()
    assert path == str(out)
    before, after = (float(part) for part in last.split("flicker ")[1].split(" -> "))
    assert last.startswith("60 frames, 1 shot") and after < 0.25 * before
    assert "120/120" in shown.err and "frame/s" in shown.err
    with av.open(str(out)) as container:
        assert [s.type for s in container.streams] == ["video", "audio"]


def test_examples_are_small_and_match():
    assert sum((EXAMPLES / name).stat().st_size for name in ("clip.mp4", "clip_mask.mp4")) < 400_000
    with av.open(str(EXAMPLES / "clip.mp4")) as clip, av.open(str(EXAMPLES / "clip_mask.mp4")) as mask:
        assert sum(1 for _ in clip.decode(video=0)) == sum(1 for _ in mask.decode(video=0)) == 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Good clips, and bad ones."""
    root = tmp_path_factory.mktemp("clips")
    frames, masks = moving_disc(30)
    grey = np.repeat(masks[..., None], 3, 3)
    write_clip(root / "clip.mp4", frames, tags=TAGS, audio=True)
    write_clip(root / "mask.mp4", grey, tags=TAGS)
    write_clip(root / "short.mp4", grey[:9], tags=TAGS)
    write_clip(root / "small.mp4", grey[:, ::2, ::2], tags=TAGS)
    write_clip(root / "pq.mkv", frames, tags=TAGS | {"color_trc": 16})
    write_clip(root / "ycgco.mkv", frames, tags=TAGS | {"colorspace": 8})
    write_clip(root / "odd.webm", frames[:, :47, :63], codec="libvpx-vp9", tags=TAGS)
    write_clip(root / "long.mkv", np.repeat(frames, 3, 0), codec="ffv1", tags=TAGS)
    content = (root / "long.mkv").read_bytes()
    (root / "cut.mkv").write_bytes(content[: len(content) // 3])
    content = (root / "clip.mp4").read_bytes()
    (root / "no_index.mp4").write_bytes(content[: len(content) // 2])
    (root / "empty.mp4").write_bytes(b"")
    (root / "text.mp4").write_text("no video\n" * 50)
    with av.open(str(root / "sound.mp4"), "w") as container, av.open(str(root / "clip.mp4")) as source:
        stream = container.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(source.streams.audio[0]):
            if packet.size:
                packet.stream = stream
                container.mux(packet)
    (root / "gap").mkdir()
    for i in (0, 1, 3, 4):
        Image.fromarray(frames[i]).save(root / "gap" / f"{i:03d}.png")
    Image.fromarray(np.full((48, 64), 255, np.uint8)).save(root / "full.png")
    Image.fromarray(masks[0]).save(root / "still.png")
    return root


BAD = {
    "there is no such file": "missing.mp4 mask.mp4 -o out.mp4",
    "has no video stream": "sound.mp4 mask.mp4 -o out.mp4",
    "cannot be read as a video": "empty.mp4 mask.mp4 -o out.mp4",
    "cannot be read as a video ": "text.mp4 mask.mp4 -o out.mp4",
    "cannot be read as a video  ": "no_index.mp4 mask.mp4 -o out.mp4",
    "its end is missing": "cut.mkv still.png -o out.mkv",
    "PQ curve": "pq.mkv mask.mp4 -o out.mkv",
    "colour matrix 8": "ycgco.mkv mask.mp4 -o out.mkv",
    "more than 100 pixels": "clip.mp4 mask.mp4 -o out.mp4 --max-pixels 100",
    "ends too early: 9 frames (0.36 s) for 30 frames (1.20 s)": "clip.mp4 short.mp4 -o out.mp4",
    "has frames of 32x24": "clip.mp4 small.mp4 -o out.mp4",
    "number 2 is missing": "gap still.png -o out",
    "leaves no background at 0.00 s": "clip.mp4 full.png -o out.mp4",
    "is the picture that was read": "clip.mp4 mask.mp4 -o clip.mp4",
    "is the file that is read": "clip.mp4 mask.mp4 -o clip.mp4 --overwrite",
    "no video format has the suffix .xyz": "clip.mp4 mask.mp4 -o out.xyz",
    "cannot hold": "clip.mp4 mask.mp4 -o out.webm",
    "there is no video encoder": "clip.mp4 mask.mp4 -o out.mp4 --codec h999",
    "its folder does not exist": "clip.mp4 mask.mp4 -o nowhere/out.mp4",
    "quality: must be": "clip.mp4 mask.mp4 -o out.mp4 --quality 60",
    "leave no frame": "clip.mp4 mask.mp4 -o out.mp4 --start 5",
    "expected frame numbers from 1 to 29": "clip.mp4 mask.mp4 -o out.mp4 --cuts 99",
    "has no alpha channel": "--foreground clip.mp4 --background clip.mp4 -o out.mp4",
    "needs COMPOSITE and MASK": "clip.mp4 -o out.mp4",
    "go together": "--foreground clip.mp4 -o out.mp4",
    "but the composite is a folder": "gap still.png -o out.mp4 --frame-rate 0",
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(folder, monkeypatch, capfd, message):
    monkeypatch.chdir(folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    arguments = BAD[message].split()
    if message.startswith("but the"):
        (folder / "gap" / "002.png").write_bytes((folder / "gap" / "001.png").read_bytes())
        arguments = arguments[:-2]
    try:
        assert main(["video", *arguments, "--model", "reinhard"]) == 2
    finally:
        if message.startswith("but the"):
            (folder / "gap" / "002.png").unlink()
            before[folder / "gap"] = (folder / "gap").stat().st_mtime_ns
    shown = capfd.readouterr()
    lines = [line for line in shown.err.splitlines() if line.startswith("harmony:") and "note:" not in line]
    assert len(lines) == 1 and message.strip() in lines[0], shown.err
    assert "Traceback" not in shown.err and shown.out == ""
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert after.keys() == before.keys()
    assert {p: t for p, t in after.items() if p.is_file()} == {p: t for p, t in before.items() if p.is_file()}


def test_a_size_that_changes_midway_is_told_with_its_time(tmp_path, capfd):
    frames, masks = moving_disc(5)
    (tmp_path / "in").mkdir()
    for i, frame in enumerate(frames):
        Image.fromarray(frame if i < 3 else frame[:40]).save(tmp_path / "in" / f"{i}.png")
    Image.fromarray(masks[0]).save(tmp_path / "mask.png")
    call = ["video", str(tmp_path / "in"), str(tmp_path / "mask.png"), "-o", str(tmp_path / "out")]
    assert main([*call, "--model", "reinhard"]) == 2
    assert "3.png: is 64x40" in capfd.readouterr().err
    assert sorted(os.listdir(tmp_path)) == ["in", "mask.png"]


def test_a_damaged_file_is_read_as_far_as_it_goes_when_asked(folder, tmp_path, capfd):
    call = ["video", str(folder / "cut.mkv"), str(folder / "still.png"), "-o", str(tmp_path / "out.mkv")]
    assert main([*call, "--model", "reinhard", "--allow-truncated"]) == 0
    frames = int(capfd.readouterr().out.splitlines()[-1].split()[0])
    assert 10 < frames < 60


def test_an_odd_size_is_kept_where_the_codec_can_and_told_where_not(folder, tmp_path, capfd):
    frames, masks = moving_disc(1)
    Image.fromarray(masks[0][:47, :63]).save(tmp_path / "mask.png")
    call = [
        "video",
        str(folder / "odd.webm"),
        str(tmp_path / "mask.png"),
        "--model",
        "reinhard",
        "--end",
        "0.2",
    ]
    assert main([*call, "-o", str(tmp_path / "out.webm")]) == 0
    assert main([*call, "-o", str(tmp_path / "out.mp4"), "--codec", "h264"]) == 0
    assert "chroma is written at full size" in capfd.readouterr().err
    for name, wanted in (("out.webm", "yuv420p"), ("out.mp4", "yuv444p")):
        with av.open(str(tmp_path / name)) as container:
            context = container.streams.video[0].codec_context
            assert (context.width, context.height, context.pix_fmt) == (63, 47, wanted)


def test_pq_is_read_as_it_is_when_asked(folder, tmp_path):
    call = ["video", str(folder / "pq.mkv"), str(folder / "mask.mp4"), "-o", str(tmp_path / "out.mkv")]
    assert main([*call, "--model", "reinhard", "--hdr", "as-is"]) == 0
    with av.open(str(tmp_path / "out.mkv")) as container:
        assert container.streams.video[0].codec_context.color_trc == 16


def test_a_full_disk_is_one_line_and_leaves_nothing(folder, tmp_path):
    if shutil.which("prlimit") is None:
        pytest.skip("prlimit is absent")
    # A limit on the size of a file stands for a full disk.
    limit = ["prlimit", "--fsize=9000", sys.executable, "-m", "harmony_diffusion.cli", "video"]
    names = [str(folder / "clip.mp4"), str(folder / "mask.mp4"), "-o", str(tmp_path / "out.mp4")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [*limit, *names, "--model", "reinhard"],
        capture_output=True,
        text=True,
        env=environment,
        preexec_fn=ignore_limit,
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr and "harmony: " in done.stderr
    assert os.listdir(tmp_path) == []


def ignore_limit():
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


def test_help_names_every_part(capsys):
    with pytest.raises(SystemExit):
        main(["video", "--help"])
    shown = capsys.readouterr().out
    for part in ("--mask-end", "--foreground", "--smoothing", "--lossless", "--restart", "--filters"):
        assert part in shown
