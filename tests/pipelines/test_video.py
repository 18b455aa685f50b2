from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image
from small_models import Dense, Gain, GainMap
from video_clips import BT709, moving_disc, read_samples, write_clip

from harmony_diffusion import VideoHarmonizationPipeline, load_model
from harmony_diffusion.errors import InputError, InputNote, OutputError
from harmony_diffusion.models import create_model
from harmony_diffusion.video.job import job_folder

CODINGS = {
    f"{matrix}{' full' if full else ''}": BT709 | {"colorspace": number, "color_range": 2 if full else 1}
    for matrix, number in (("709", 1), ("601", 5))
    for full in (False, True)
}


def quiet(model):
    pipe = VideoHarmonizationPipeline(model)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def pipe():
    return quiet(Gain().eval())


@pytest.fixture
def clip(tmp_path):
    frames, masks = moving_disc(12)
    write_clip(tmp_path / "clip.mp4", frames, tags=BT709, audio=True)
    write_clip(tmp_path / "mask.mp4", np.repeat(masks[..., None], 3, 3))
    return tmp_path / "clip.mp4", tmp_path / "mask.mp4"


def streams_of(path):
    with av.open(str(path)) as container:
        return [(stream.type, stream.codec_context.name) for stream in container.streams]


def packets_of(path, kind):
    with av.open(str(path)) as container:
        stream = next(s for s in container.streams if s.type == kind)
        return [(float(p.pts * p.time_base), bytes(p)) for p in container.demux(stream) if p.size]


def times_of(path):
    with av.open(str(path)) as container:
        return [frame.pts * frame.time_base for frame in container.decode(video=0)]


def only_files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_clip_keeps_its_sound_and_becomes_steadier(pipe, clip, tmp_path):
    result = pipe(*clip, output=tmp_path / "out.mp4")
    assert result.frames == 12 and result.shots == [(0, 12)] and result.path == tmp_path / "out.mp4"
    assert result.flicker <= result.flicker_before
    assert streams_of(result.path) == [("video", "h264"), ("audio", "aac")]
    assert packets_of(result.path, "audio") == packets_of(clip[0], "audio")
    assert times_of(result.path) == times_of(clip[0])
    assert only_files(tmp_path) == ["clip.mp4", "mask.mp4", "out.mp4"]


@pytest.mark.parametrize("tags", CODINGS.values(), ids=CODINGS)
@pytest.mark.parametrize("bits", ["", "10le"])
@pytest.mark.parametrize("chroma, step", [("420", (2, 2)), ("422", (1, 2)), ("444", (1, 1))])
def test_the_foreground_changes_and_the_background_stays(pipe, tmp_path, chroma, step, bits, tags):
    frames, masks = moving_disc(3)
    pixel_format = f"yuv{chroma}p{bits}"
    source = write_clip(tmp_path / "clip.mkv", frames, codec="ffv1", pixel_format=pixel_format, tags=tags)
    Image.fromarray(masks[0]).save(tmp_path / "mask.png")
    out = pipe(source, tmp_path / "mask.png", output=tmp_path / "out.mkv").path
    with av.open(str(out)) as container:
        assert container.streams.video[0].codec_context.pix_fmt == pixel_format
    outside = masks[0] == 0
    shared = outside.reshape(48 // step[0], step[0], 64 // step[1], step[1]).all((1, 3))
    for before, after in zip(read_samples(source), read_samples(out), strict=True):
        np.testing.assert_array_equal(before[0][outside], after[0][outside])
        for plane in (1, 2):
            np.testing.assert_array_equal(before[plane][shared], after[plane][shared])
        inside = before[0][masks[0] == 255].astype(int) - after[0][masks[0] == 255]
        assert np.abs(inside).mean() > (5 if bits else 5 / 4)


@pytest.mark.parametrize(
    "pixel_format", ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv444p10le", "bgra"]
)
@pytest.mark.parametrize("tags", [CODINGS["709"], CODINGS["601 full"]], ids=["709", "601 full"])
def test_strength_zero_and_empty_masks_return_every_sample(pipe, tmp_path, pixel_format, tags):
    frames, masks = moving_disc(3)
    source = write_clip(tmp_path / "clip.mkv", frames, codec="ffv1", pixel_format=pixel_format, tags=tags)
    Image.fromarray(masks[0]).save(tmp_path / "mask.png")
    Image.fromarray(masks[0] * 0).save(tmp_path / "empty.png")
    pipe(source, tmp_path / "mask.png", output=tmp_path / "zero.mkv", strength=0.0)
    with pytest.warns(InputNote) as notes:
        pipe(source, tmp_path / "empty.png", output=tmp_path / "empty.mkv")
    assert any("no frame has 64 pixels" in str(note.message) for note in notes)
    for name in ("zero.mkv", "empty.mkv"):
        for before, after in zip(read_samples(source), read_samples(tmp_path / name), strict=True):
            for one, other in zip(before, after, strict=True):
                np.testing.assert_array_equal(one, other)


def varied(path, suffix):
    """A clip of varying frame rate with sound, rotation, chapters, full range and a pixel aspect."""
    frames, masks = moving_disc(9)
    times = [0, 40, 90, 120, 200, 233, 300, 301, 400]
    chapters = [
        {"id": 1, "start": 0, "end": 200, "time_base": Fraction(1, 1000), "metadata": {"title": "one"}},
        {"id": 2, "start": 200, "end": 440, "time_base": Fraction(1, 1000), "metadata": {"title": "two"}},
    ]
    source = write_clip(
        path / f"clip{suffix}",
        frames,
        times=times,
        tags=BT709 | {"color_range": 2},
        audio=True,
        rotation=90,
        chapters=chapters,
        metadata={"title": "a disc"},
        aspect=(4, 3),
        options={"crf": "12", "bf": "2"},
    )
    Image.fromarray(np.rot90(masks[4])).save(path / "mask.png")
    return source, path / "mask.png"


@pytest.mark.parametrize("suffix, tolerance", [(".mp4", 0), (".mov", 0), (".mkv", 0.0005)])
def test_timestamps_rotation_chapters_tags_and_aspect_are_kept(pipe, tmp_path, suffix, tolerance):
    source, mask = varied(tmp_path, ".mp4" if suffix == ".mkv" else suffix)
    out = pipe(source, mask, output=tmp_path / f"out{suffix}").path
    assert np.abs(np.array(times_of(source), float) - np.array(times_of(out), float)).max() <= tolerance
    if suffix == ".mkv":
        assert [c for _, c in packets_of(source, "audio")] == [c for _, c in packets_of(out, "audio")]
    else:
        assert packets_of(source, "audio") == packets_of(out, "audio")
    for path in (source, out):
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            assert stream.sample_aspect_ratio == Fraction(4, 3)
            context = stream.codec_context
            assert (context.color_primaries, context.color_trc, context.colorspace, context.color_range) == (
                1,
                1,
                1,
                2,
            )
            assert container.metadata.get("title") == "a disc"
            found = [(c["start"] * c["time_base"], c["metadata"]["title"]) for c in container.chapters()]
            assert found == [(0, "one"), (Fraction(1, 5), "two")]
            assert next(container.decode(video=0)).rotation == 90


@pytest.mark.parametrize(
    "encoder, pixel_format, suffix, codec",
    [
        ("libx265", "yuv420p10le", ".mp4", "hevc"),
        ("libsvtav1", "yuv420p", ".mp4", "libdav1d"),
        ("libvpx-vp9", "yuv420p", ".webm", "vp9"),
        ("prores_ks", "yuv422p10le", ".mov", "prores"),
        ("ffv1", "yuv420p", ".mkv", "ffv1"),
        ("mpeg4", "yuv420p", ".mp4", "h264"),
        ("qtrle", "rgb24", ".mov", "qtrle"),
    ],
)
def test_the_codec_and_the_samples_of_the_input_are_kept(
    pipe, tmp_path, encoder, pixel_format, suffix, codec
):
    frames, masks = moving_disc(6, (64, 96))
    options = {"x265-params": "log-level=none"} if encoder == "libx265" else {}
    source = write_clip(
        tmp_path / f"clip{suffix}",
        frames,
        codec=encoder,
        pixel_format=pixel_format,
        tags=BT709,
        options=options,
    )
    Image.fromarray(masks[3]).save(tmp_path / "mask.png")
    out = pipe(source, tmp_path / "mask.png", output=tmp_path / f"out{suffix}").path
    with av.open(str(out)) as container:
        context = container.streams.video[0].codec_context
        wanted = {codec, "libvpx-vp9"} if codec == "vp9" else {codec, "av1"} if "dav1d" in codec else {codec}
        assert context.name in wanted
        assert context.pix_fmt == pixel_format
        made = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert times_of(out) == times_of(source)
    with av.open(str(source)) as container:
        before = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    outside = masks[3] == 0
    difference = np.abs(np.stack(made).astype(int) - np.stack(before))
    assert difference[:, outside].mean() < 4
    assert difference[:, masks[3] == 255].mean() > difference[:, outside].mean() + 3


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_the_same_call_gives_the_same_bytes(pipe, clip, tmp_path, suffix):
    made = [pipe(*clip, output=tmp_path / f"{name}{suffix}").path.read_bytes() for name in "ab"]
    assert made[0] == made[1]


def with_alpha(path, kind, frames, masks):
    if kind == "prores":
        return write_clip(
            path / "fg.mov",
            frames,
            codec="prores_ks",
            pixel_format="yuva444p10le",
            options={"profile": "4444"},
            alpha=masks,
        )
    if kind == "vp9":
        options = {"lossless": "1", "auto-alt-ref": "0"}
        return write_clip(
            path / "fg.webm",
            frames,
            codec="libvpx-vp9",
            pixel_format="yuva420p",
            options=options,
            alpha=masks,
        )
    (path / "fg").mkdir()
    for i, (frame, mask) in enumerate(zip(frames, masks, strict=True)):
        Image.fromarray(np.dstack((frame, mask))).save(path / "fg" / f"{i:04d}.png")
    return path / "fg"


def test_a_cut_out_with_alpha_is_the_same_from_every_format(tmp_path):
    # A smooth foreground: formats differ in how fine their chroma is.
    rows = np.linspace(60, 180, 48)[:, None, None]
    frames = np.broadcast_to(rows * np.array([1.0, 0.8, 0.6]), (4, 48, 64, 3)).astype(np.uint8)
    _, masks = moving_disc(4)
    background = np.broadcast_to(np.linspace(40, 90, 128)[None, None, :, None], (6, 96, 128, 3)).astype(
        np.uint8
    )
    source = write_clip(
        tmp_path / "bg.mkv", background, codec="ffv1", pixel_format="yuv444p", tags=BT709, audio=True
    )
    pipe, made = quiet(load_model("identity")), {}
    for kind in ("prores", "vp9", "pictures"):
        foreground = with_alpha(tmp_path, kind, frames, masks)
        out = pipe.paste(foreground, source, output=tmp_path / f"{kind}.mkv", at=(30, 20)).path
        made[kind] = np.stack([planes for planes in read_samples(out)]).astype(int)
        assert packets_of(out, "audio") == packets_of(source, "audio")
        # The background goes on when the foreground has ended.
        np.testing.assert_array_equal(made[kind][4:], np.stack(read_samples(source))[4:])
        assert np.abs(made[kind][0] - np.stack(read_samples(source))[0]).max() > 20
    for kind in ("prores", "vp9"):
        assert np.abs(made[kind] - made["pictures"]).max() <= 2, kind


def test_a_background_is_repeated_for_a_longer_foreground(tmp_path):
    frames, masks = moving_disc(7)
    foreground = with_alpha(tmp_path, "pictures", frames, masks)
    source = write_clip(tmp_path / "bg.mkv", moving_disc(3)[0], codec="ffv1")
    pipe = quiet(load_model("identity"))
    with pytest.warns(InputNote, match="its end is not used"):
        assert pipe.paste(foreground, source, output=tmp_path / "short.mkv").frames == 3
    looped = pipe.paste(foreground, source, output=tmp_path / "long.mkv", loop_background=True)
    assert looped.frames == 7 and len(times_of(looped.path)) == 7
    assert np.diff(times_of(looped.path)) == pytest.approx([0.04] * 6)


def test_a_folder_of_pictures_becomes_one(pipe, tmp_path):
    frames, masks = moving_disc(4)
    for name in ("in", "masks"):
        (tmp_path / name).mkdir()
    for i in range(4):
        deep = frames[i].astype(np.uint16) * 257
        import tifffile

        tifffile.imwrite(tmp_path / "in" / f"f{i:03d}.tif", deep, photometric="rgb")
        Image.fromarray(masks[i]).save(tmp_path / "masks" / f"m{i}.png")
    result = pipe(tmp_path / "in", tmp_path / "masks", output=tmp_path / "out", side_by_side=True)
    assert result.frames == 4
    assert only_files(tmp_path / "out") == [f"f{i:03d}.tif" for i in range(4)]
    after = tifffile.imread(tmp_path / "out" / "f002.tif")
    assert after.dtype == np.uint16
    outside = masks[2] == 0
    np.testing.assert_array_equal(after[outside], (frames[2].astype(np.uint16) * 257)[outside])
    assert (after != frames[2].astype(np.uint16) * 257)[masks[2] == 255].any()
    assert tifffile.imread(tmp_path / "out_before_after" / "f001.tif").shape == (48, 132, 3)
    by_pattern = pipe(
        tmp_path / "in" / "f%03d.tif", str(tmp_path / "masks" / "*.png"), output=tmp_path / "again"
    )
    assert (tmp_path / "again" / "f002.tif").read_bytes() == (tmp_path / "out" / "f002.tif").read_bytes()
    assert by_pattern.flicker == result.flicker


@pytest.mark.parametrize(
    "model",
    [
        lambda: Gain(),
        lambda: GainMap(),
        lambda: Dense(),
        lambda: create_model("harmonizer_lite"),
        lambda: load_model("reinhard"),
        lambda: load_model("poisson"),
        lambda: load_model("mkl"),
    ],
)
@pytest.mark.parametrize("smoothing", ["two-pass", "causal"])
def test_every_kind_of_model_and_smoothing(model, smoothing, clip, tmp_path):
    result = quiet(model().eval())(*clip, output=tmp_path / "out.mp4", smoothing=smoothing)
    assert len(times_of(result.path)) == 12
    # On a clip of half a second a moving object may cost a little.
    assert result.flicker <= 1.1 * result.flicker_before + 0.05
    before, after = (
        np.stack([planes[0] for planes in read_samples(path)]).astype(int) for path in (clip[0], result.path)
    )
    assert np.abs(before - after).max() > 10


def test_predicting_every_fourth_frame_is_close(clip, tmp_path):
    pipe = quiet(Gain().eval())
    for every in (1, 4):
        pipe(*clip, output=tmp_path / f"{every}.mkv", predict_every=every, lossless=True)
    one, other = (np.concatenate([p[0] for p in read_samples(tmp_path / f"{n}.mkv")]) for n in (1, 4))
    assert 0 <= np.abs(one.astype(int) - other).mean() < 2


def test_saved_filters_render_the_same_without_the_model(clip, tmp_path):
    model = Gain().eval()
    first = quiet(model)(*clip, output=tmp_path / "a.mp4", filters=tmp_path / "filters.npz")
    used = []
    model.register_forward_pre_hook(lambda *_: used.append(1))
    predict, model.predict_filters = model.predict_filters, lambda *a: used.append(len(used)) or predict(*a)
    second = quiet(model)(*clip, output=tmp_path / "b.mp4", filters=tmp_path / "filters.npz")
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    assert len(used) == 1  # to know how many numbers there are
    assert (first.flicker, first.shots) == (second.flicker, second.shots)
    with pytest.raises(InputError, match="another clip or model"):
        quiet(Gain().eval())(*clip, output=tmp_path / "c.mp4", filters=tmp_path / "filters.npz", end=0.2)


def test_a_part_of_a_clip_begins_at_zero(pipe, clip, tmp_path):
    result = pipe(*clip, output=tmp_path / "part.mp4", start=0.12, end=0.32)
    assert result.frames == 5
    assert times_of(result.path) == times_of(clip[0])[:5]
    sound = packets_of(result.path, "audio")
    assert 0 < len(sound) < len(packets_of(clip[0], "audio"))


def test_side_by_side_holds_both_clips(pipe, clip, tmp_path):
    pipe(*clip, output=tmp_path / "out.mkv", lossless=True, side_by_side=True)
    joined, before, after = (
        read_samples(path) for path in (tmp_path / "out_before_after.mkv", clip[0], tmp_path / "out.mkv")
    )
    for both, left, right in zip(joined, before, after, strict=True):
        for plane in range(3):
            np.testing.assert_array_equal(both[plane], np.hstack((left[plane], right[plane])))


def test_a_cut_keeps_the_filters_of_shots_apart(pipe, tmp_path):
    frames, masks = moving_disc(10)
    other, _ = moving_disc(10, shift=2.0, tint=(0.2, 0.4, 0.9))
    Image.fromarray(masks[5]).save(tmp_path / "mask.png")
    for name, second in (("a", other), ("b", 255 - other)):
        write_clip(tmp_path / f"{name}.mkv", np.concatenate((frames, second)), codec="ffv1")
        pipe(tmp_path / f"{name}.mkv", tmp_path / "mask.png", output=tmp_path / f"{name}_out.mkv", cuts=[10])
    first, second = (read_samples(tmp_path / f"{name}_out.mkv") for name in "ab")
    for one, changed in zip(first[:10], second[:10], strict=True):
        for plane in range(3):
            np.testing.assert_array_equal(one[plane], changed[plane])


def test_masks_that_end_early_are_treated_as_asked(pipe, clip, tmp_path):
    _, masks = moving_disc(12)
    short = write_clip(tmp_path / "short.mp4", np.repeat(masks[:8, ..., None], 3, 3))
    with pytest.raises(InputError, match=r"8 frames \(0.32 s\) for 12 frames \(0.48 s\)"):
        pipe(clip[0], short, output=tmp_path / "no.mp4")
    assert pipe(clip[0], short, output=tmp_path / "stop.mp4", mask_end="stop").frames == 8
    assert pipe(clip[0], short, output=tmp_path / "hold.mp4", mask_end="hold").frames == 12
    pipe(clip[0], short, output=tmp_path / "pass.mkv", mask_end="pass", lossless=True)
    for before, after in list(zip(read_samples(clip[0]), read_samples(tmp_path / "pass.mkv"), strict=True))[
        8:
    ]:
        np.testing.assert_array_equal(before[0], after[0])


def test_masks_of_another_rate_are_matched_by_time(pipe, clip, tmp_path):
    _, masks = moving_disc(12)
    double = write_clip(
        tmp_path / "double.mp4", np.repeat(masks, 2, 0)[..., None].repeat(3, 3), rate=50, tags=BT709
    )
    pipe(*clip, output=tmp_path / "a.mkv", lossless=True)
    pipe(clip[0], double, output=tmp_path / "b.mkv", lossless=True)
    one, other = (np.concatenate([p[0] for p in read_samples(tmp_path / f"{n}.mkv")]) for n in "ab")
    assert np.abs(one.astype(int) - other).mean() < 0.3


def test_an_iterable_gives_frames_as_they_come(pipe):
    frames, masks = moving_disc(6)
    taken = []

    def source():
        for frame in frames:
            taken.append(1)
            yield frame

    generator = pipe(source(), iter(masks))
    first = next(generator)
    assert len(taken) == 1 and first.dtype == np.uint8
    np.testing.assert_array_equal(first[masks[0] == 0], frames[0][masks[0] == 0])
    assert (first != frames[0])[masks[0] == 255].any()
    assert len(list(generator)) == 5
    with pytest.raises(InputError, match="needs the whole clip"):
        pipe(frames, masks, smoothing="two-pass")


def test_a_stopped_job_with_other_settings_is_not_mixed_up(pipe, clip, tmp_path):
    out = tmp_path / "out.mp4"

    class Stop(Exception):
        pass

    def stop(*_):
        raise Stop

    original, pipe._render = pipe._render, stop
    with pytest.raises(Stop):
        pipe(*clip, output=out)
    pipe._render = original
    assert job_folder(out).is_dir() and not out.exists()
    with pytest.raises(OutputError, match=r"other settings \(settings\)"):
        pipe(*clip, output=out, strength=0.5)
    restarted = pipe(*clip, output=out, strength=0.5, resume=False)
    assert restarted.frames == 12 and not job_folder(out).exists()
