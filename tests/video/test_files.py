import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from video_clips import BT709, moving_disc, read_samples, write_clip

from harmony_diffusion.errors import DecodeError, InputError, InputNote, MissingDependencyError
from harmony_diffusion.video.clips import mask_of
from harmony_diffusion.video.files import import_av, read_frames, read_info


def without_packets(source, target, dropped):
    """Copy a clip without some of its packets, by their number."""
    with av.open(str(source)) as before, av.open(str(target), "w") as after:
        stream = after.add_stream_from_template(before.streams.video[0])
        for number, packet in enumerate(before.demux(before.streams.video[0])):
            if packet.size and number not in dropped:
                packet.stream = stream
                after.mux(packet)
    return target


@pytest.fixture
def clip(tmp_path):
    options = {"crf": "12", "g": "5", "bf": "0"}
    return write_clip(tmp_path / "clip.mkv", moving_disc(20)[0], tags=BT709, options=options)


def test_frames_have_the_samples_of_the_file(clip):
    frames = list(read_frames(read_info(clip)))
    for frame, planes in zip(frames, read_samples(clip), strict=True):
        for own, plane in zip(frame.planes, planes, strict=True):
            assert own.shape == plane.shape
    assert [frame.pts for frame in frames] == list(read_info(clip).times)


def test_frames_that_cannot_be_decoded_are_told_and_left_out_when_asked(clip, tmp_path):
    cut = without_packets(clip, tmp_path / "cut.mkv", {0})
    assert len(read_info(cut).times) == 19
    with pytest.raises(DecodeError, match=r"holds 19 frames, of which 15 can be decoded.*allow_truncated"):
        list(read_frames(read_info(cut)))
    info = read_info(cut, allow_truncated=True)
    assert info.times == read_info(clip).times[5:]
    assert [frame.pts for frame in read_frames(info)] == list(info.times)


@pytest.mark.parametrize("pixel_format, kind", [("gray", np.uint8), ("gray10le", np.uint16)])
def test_grey_files_are_read_as_masks_and_as_colourless_frames(tmp_path, pixel_format, kind):
    _, masks = moving_disc(3)
    grey = np.repeat(masks[..., None], 3, 3)
    path = write_clip(tmp_path / "m.mkv", grey, codec="ffv1", pixel_format=pixel_format, tags={})
    for frame, mask in zip(read_frames(read_info(path)), masks, strict=True):
        assert frame.planes[0].dtype == kind
        assert np.abs(mask_of(frame) - mask / 255).max() < 0.04
        assert set(np.unique(mask_of(frame)[mask == 0])) == {0}
        rgb = frame.rgb((slice(0, 48), slice(0, 64)))
        assert np.abs(rgb - mask[..., None] / 255).max() < 0.01


def test_an_old_pyav_is_refused_with_what_to_install(monkeypatch):
    monkeypatch.setattr(av, "__version__", "16.0.1")
    with pytest.raises(MissingDependencyError, match=r"PyAV 17.1 or newer, found 16.0.1: pip install"):
        import_av()


def test_interlaced_files_are_refused(tmp_path):
    options = {"x264-params": "tff=1", "crf": "12"}
    path = write_clip(tmp_path / "i.mkv", moving_disc(3)[0], tags=BT709, options=options)
    with pytest.raises(InputError, match="is interlaced.*Deinterlace it first"):
        read_info(path)


def stamped(source, target, stamps):
    """Copy a clip with other timestamps, in thousandths of a second."""
    with av.open(str(source)) as before, av.open(str(target), "w") as after:
        stream = after.add_stream_from_template(before.streams.video[0])
        stream.time_base = Fraction(1, 1000)
        packets = [packet for packet in before.demux(before.streams.video[0]) if packet.size]
        for packet, stamp in zip(packets, stamps, strict=True):
            packet.stream, packet.time_base = stream, Fraction(1, 1000)
            packet.pts = packet.dts = stamp
            after.mux(packet)
    return target


@pytest.mark.parametrize(
    "stamps, expected",
    [
        ([0, 100, 200, 200, 2300, 2400], [0, 100, 200, 201, 2300, 2400]),
        ([0, 100, 100, 101, 101, 200], [0, 100, 101, 102, 103, 200]),
        ([0, 100, 200, 300, 400, 400], [0, 100, 200, 300, 400, 401]),
    ],
)
def test_a_repeated_timestamp_moves_its_frame_alone(tmp_path, stamps, expected):
    source = write_clip(tmp_path / "a.mkv", moving_disc(6)[0], codec="ffv1")
    path = stamped(source, tmp_path / "b.mkv", stamps)
    with pytest.warns(InputNote, match="has frames with the timestamp of another"):
        info = read_info(path)
    assert list(info.times) == expected and info.last_duration > 0
    assert [frame.pts for frame in read_frames(info)] == expected


def test_a_file_that_begins_late_is_not_taken_for_cut_off(tmp_path):
    late = [70_000 + 40 * i for i in range(20)]
    path = write_clip(tmp_path / "late.mkv", moving_disc(20)[0], codec="ffv1", times=late)
    assert read_info(path).duration == pytest.approx(0.8, abs=0.05)


def test_a_cut_file_that_begins_late_is_refused(tmp_path):
    late = [70_000 + 400 * i for i in range(20)]
    path = write_clip(tmp_path / "late.mkv", moving_disc(20)[0], codec="ffv1", times=late)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DecodeError, match=r"is damaged|ends after [34]\.\d+ s of [78]\.\d+ s"):
        read_info(path)


def with_matrix(path, numbers):
    """Write another matrix into the header of the track of an MP4 file."""
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 44
    content[place : place + 36] = struct.pack(">9i", *(round(n * 65536) for n in numbers), 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "numbers, reason",
    [
        ((-1, 0, 0, 0, 1), "is to be shown mirrored"),
        ((0, 1, 0, 1, 0), "is to be shown mirrored"),
        ((0, 0, 0, 0, 0), "has a display matrix that leaves no picture"),
        ((1, 0, 0, 0.5, 1), "turned by 0 degrees or sheared"),
    ],
)
def test_clips_that_are_more_than_turned_are_refused(tmp_path, numbers, reason):
    path = write_clip(tmp_path / "clip.mp4", moving_disc(2)[0])
    with pytest.raises(InputError, match=reason):
        read_info(with_matrix(path, numbers))


def test_quarter_turns_are_read(tmp_path):
    path = write_clip(tmp_path / "clip.mp4", moving_disc(2)[0])
    turns = {(1, 0, 0, 0, 1): 0, (0, -1, 0, 1, 0): 1, (-1, 0, 0, 0, -1): 2, (0, 1, 0, -1, 0): 3}
    for numbers, expected in turns.items():
        assert read_info(with_matrix(path, numbers)).turns == expected
