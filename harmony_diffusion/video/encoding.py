"""Write video files: frames to packets, segment by segment, and packets to a file with sound and tags.

A clip is encoded in segments, each by a fresh encoder, so that a job that was stopped goes on with the same
bytes. A segment is a file of packets, not a small video: containers shift or lose timestamps.
"""

import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from harmony_diffusion.errors import InputError, OutputError
from harmony_diffusion.images.arrays import note
from harmony_diffusion.numbers import check_number
from harmony_diffusion.video.files import TAGS, VideoInfo, import_av, open_input, sample_coding
from harmony_diffusion.video.frame_colors import Frame

# The same for every machine: x264 and x265 give other bytes with other numbers of threads.
THREADS = 2
_ENCODERS = {
    "h264": "libx264",
    "hevc": "libx265",
    "av1": "libsvtav1",
    "vp8": "libvpx",
    "vp9": "libvpx-vp9",
    "prores": "prores_ks",
    "ffv1": "ffv1",
    "qtrle": "qtrle",
    "png": "png",
}
_QUALITY = {"libx264": 17, "libx264rgb": 17, "libx265": 18, "libsvtav1": 24, "libvpx": 8, "libvpx-vp9": 20}
_WORST_QUALITY = {"libx264": 51, "libx264rgb": 51, "libx265": 51}  # 63 for the others
# With its macroblock tree, x264 gives other bytes from one run to the next on processors with AVX-512, even
# with one thread.
_X264 = "mbtree=0"
_OPTIONS = {
    "libx264": {"preset": "medium", "x264-params": _X264},
    "libx264rgb": {"preset": "medium", "x264-params": _X264},
    "libx265": {
        "preset": "medium",
        "x265-params": f"log-level=error:pools={THREADS}:frame-threads={THREADS}",
    },
    "libsvtav1": {"preset": "8", "svtav1-params": f"lp={THREADS}"},
    "libvpx": {"b": "20M", "deadline": "good", "cpu-used": "2"},
    "libvpx-vp9": {"b": "0", "deadline": "good", "cpu-used": "3", "row-mt": "1"},
    "ffv1": {"level": "3", "slices": "4", "slicecrc": "1"},
}
_PRORES = {
    "proxy": "proxy",
    "lt": "lt",
    "standard": "standard",
    "hq": "hq",
    "high quality": "hq",
    "4444": "4444",
    "4444 xq": "4444xq",
    "4444xq": "4444xq",
    "xq": "4444xq",
}
# Formats that hold the same samples in another order.
_SAME_SAMPLES = {
    "nv12": "yuv420p",
    "nv16": "yuv422p",
    "p010le": "yuv420p10le",
    "yuyv422": "yuv422p",
    "uyvy422": "yuv422p",
}
_PACKED = {"rgb24": "rgb", "bgr0": "bgr0", "bgra": "bgra", "argb": "argb", "rgba": "rgba"}
_PACKED_WIDE = {"rgb48le": "rgb", "rgb48be": "rgb", "rgba64le": "rgba", "rgba64be": "rgba"}
_PACKET = struct.Struct("<qqIB")  # pts, duration, size, key frame


@dataclass(frozen=True)
class VideoTarget:
    """How a clip is written.

    Attributes:
        path: File to be written.
        container: FFmpeg's name of the container format.
        encoder: FFmpeg's name of the encoder.
        pixel_format: Samples that the encoder is given.
        options: Options of the encoder.
        width: Columns of the coded frame.
        height: Rows of the coded frame.
        info: The file whose timestamps, tags, sound and metadata are taken over.
    """

    path: Path
    container: str
    encoder: str
    pixel_format: str
    options: dict[str, str]
    width: int
    height: int
    info: VideoInfo = field(compare=False)

    def describe(self) -> dict[str, Any]:
        """Return what decides the bytes of a segment."""
        return {
            "container": self.container,
            "encoder": self.encoder,
            "pixel_format": self.pixel_format,
            "options": self.options,
            "size": [self.width, self.height],
            "threads": THREADS,
        }


def plan_target(
    path: str | os.PathLike[str],
    info: VideoInfo,
    *,
    codec: str | None = None,
    quality: float | None = None,
    lossless: bool = False,
) -> VideoTarget:
    """Choose container, encoder and sample format, and refuse what could not be written at the end.

    Args:
        path: File to be written; its suffix names the container.
        info: The file that is read: codec, samples, tags and streams are kept where possible.
        codec: Encoder or codec to use instead of the input's.
        quality: Its constant rate factor (lower is better) instead of the default.
        lossless: FFV1 with the input's own samples.

    Raises:
        OutputError: No such container, or one that cannot hold the codec or the sound.
        InputError: `codec` or `quality` is not to be had.
    """
    av = import_av()
    target = Path(path)
    container = container_of(target)
    encoder = "ffv1" if lossless else _encoder_named(codec, info)
    alpha, is_rgb = (
        "a" in _plain(info.pixel_format)[:4] and "gray" not in info.pixel_format,
        sample_coding(info).is_rgb,
    )
    if encoder == "libx264" and is_rgb:
        encoder = "libx264rgb"
    pixel_format = _format_for(encoder, info, alpha)
    with _scratch(container) as probe:
        _check_streams(path, probe, encoder, av)
    options = dict(_OPTIONS.get(encoder, {}))
    if quality is not None and encoder not in _QUALITY:
        raise InputError(
            "quality", f"is not a setting of {encoder}", "Leave it out, or choose another codec."
        )
    if encoder in _QUALITY:
        worst = _WORST_QUALITY.get(encoder, 63)
        chosen = _QUALITY[encoder] if quality is None else check_number("quality", quality, 0, worst)
        options["crf"] = f"{chosen:g}"
    if encoder == "prores_ks":
        options["profile"] = (
            _PRORES.get((info.profile or "hq").lower(), "hq") if info.codec == "prores" else "hq"
        )
        options["vendor"] = "apl0"
    if encoder.startswith("libvpx") and "yuva" in pixel_format:
        options["auto-alt-ref"] = "0"
    return VideoTarget(target, container, encoder, pixel_format, options, info.width, info.height, info)


def container_of(path: Path) -> str:
    """Return FFmpeg's name of the container that a suffix stands for.

    Raises:
        OutputError: It stands for none.
    """
    av = import_av()
    names = {".mkv": "matroska", ".mka": "matroska", ".m4v": "mp4", ".ts": "mpegts", ".mts": "mpegts"}
    suffix = path.suffix.lower()
    name = names.get(suffix, suffix[1:])
    with suppress(ValueError):
        if name and av.ContainerFormat(name, "w").is_output:
            return name
    raise OutputError(
        path, f"no video format has the suffix {suffix or '(none)'}", "Use .mp4, .mov, .webm or .mkv."
    )


def _encoder_named(codec: str | None, info: VideoInfo) -> str:
    av = import_av()
    encoder = _ENCODERS.get(info.codec, "libx264") if codec is None else _ENCODERS.get(codec, codec)
    try:
        found = av.Codec(encoder, "w")
    except ValueError:
        found = None
    if found is None or found.type != "video":
        raise InputError("codec", f"there is no video encoder {codec!r} here", f"Try {', '.join(_ENCODERS)}.")
    return encoder


def _format_for(encoder: str, info: VideoInfo, alpha: bool) -> str:
    """Return the samples to encode: the input's own, or the nearest that the encoder takes."""
    av = import_av()
    takes = {form.name for form in av.Codec(encoder, "w").video_formats or ()}
    wanted = _plain(info.pixel_format)
    odd = info.width % 2 or info.height % 2
    if encoder in ("libx264", "libx265") and wanted.startswith("yuv420p") and odd:
        note(
            info.path, f"has an odd size ({info.width}x{info.height}); chroma is written at full size (4:4:4)"
        )
        wanted = wanted.replace("420", "444")
    candidates = [wanted]
    if sample_coding(info).is_rgb and sample_coding(info).bits == 8:
        candidates += ["bgra", "rgba", "argb"] if alpha else ["bgr0", "rgb24", "gbrp"]
    candidates += [name.replace("12le", "10le") for name in candidates]
    if alpha:
        candidates += [name.replace("yuva", "yuv").replace("gbrap", "gbrp") for name in candidates]
        candidates += ["bgr0", "rgb24"] if sample_coding(info).is_rgb else []
    for name in candidates:
        if name in takes:
            if alpha and "a" not in name[:4]:
                note(info.path, f"has an alpha channel, which {encoder} cannot hold; it is left out")
            return name
    raise InputError(
        "codec",
        f"{encoder} cannot hold samples of the format {info.pixel_format}",
        "Use `lossless=True` (`--lossless`) with a .mkv file, or another codec.",
    )


def _plain(pixel_format: str) -> str:
    name = _SAME_SAMPLES.get(pixel_format, pixel_format)
    return name.replace("yuvj", "yuv").replace("be", "le") if name not in _PACKED_WIDE else name


class _scratch:
    """A container that is opened for questions only, in memory."""

    def __init__(self, container: str) -> None:
        import io

        self.container = import_av().open(io.BytesIO(), "w", format=container)

    def __enter__(self) -> Any:
        return self.container

    def __exit__(self, *_: object) -> None:
        # Nothing was started, so closing writes nothing.
        with suppress(Exception):
            self.container.close()


def _check_streams(path: object, probe: Any, encoder: str, av: Any) -> None:
    codec = av.Codec(encoder, "w").canonical_name
    if probe.supported_codecs and codec not in probe.supported_codecs:
        raise OutputError(
            path, f"{probe.format.name} cannot hold {codec}", "Use a .mkv file, or another codec."
        )


def copied_streams(info: VideoInfo, container: str) -> list[int]:
    """Return the indices of the streams beside the video that are carried over: sound and subtitles.

    Raises:
        OutputError: `container` cannot hold one of them.
    """
    kept = []
    with open_input(info.path) as source, _scratch(container) as probe:
        # MP4 and MOV hold the names of chapters in a data stream of their own; they are copied as chapters.
        chapter_tracks = 1 if source.chapters() and "mp4" in source.format.name else 0
        for stream in source.streams:
            if stream.type in ("audio", "subtitle"):
                name = stream.codec_context.codec.canonical_name if stream.codec_context else None
                if probe.supported_codecs and name not in probe.supported_codecs:
                    raise OutputError(
                        info.path,
                        f"has {stream.type} of the codec {name}, which {container} cannot hold",
                        "Write a .mkv file.",
                    )
                kept.append(stream.index)
            elif stream.type == "data" and chapter_tracks:
                chapter_tracks -= 1
            elif stream.type != "video":
                note(info.path, f"its {stream.type} stream is left out")
    return kept


def open_encoder(target: VideoTarget, context: Any = None) -> Any:
    """Set up the encoder of a target, or the codec context of an output stream in the same way."""
    av = import_av()
    info = target.info
    if context is None:
        context = av.CodecContext.create(target.encoder, "w")
        if av.ContainerFormat(target.container, "w").flags & av.format.Flags.global_header.value:
            context.flags |= av.codec.context.Flags.global_header.value
    context.width, context.height, context.pix_fmt = target.width, target.height, target.pixel_format
    context.time_base, context.framerate = info.time_base, info.rate
    context.thread_count = THREADS
    context.options = dict(target.options)
    for tag, value in _written_tags(target).items():
        setattr(context, tag, value)
    if info.aspect:
        context.sample_aspect_ratio = info.aspect
    if target.encoder == "libx265" and target.container in ("mp4", "mov"):
        context.codec_tag = "hvc1"
    return context


def _written_tags(target: VideoTarget) -> dict[str, int]:
    tags = {
        tag: value
        for tag in TAGS
        if (value := target.info.tags[tag]) not in (None, 0 if tag != "colorspace" else 2)
    }
    if "yuvj" in target.info.pixel_format:
        tags["color_range"] = 2
    if sample_coding(target.info).is_rgb:
        tags.pop("colorspace", None)
    return tags


def to_video_frame(frame: Frame, target: VideoTarget) -> Any:
    """Copy the samples of a frame to one that the encoder takes."""
    av = import_av()
    name = target.pixel_format
    planes = frame.coded_planes()
    made = av.VideoFrame(target.width, target.height, name)
    if frame.coding.is_rgb:
        _fill_rgb(made, name, planes)
    else:
        bits = made.format.components[0].bits
        luma_size = (target.height, target.width)
        for i, out in enumerate(made.planes):
            plane = _with_bits(planes[i], frame.coding.bits, bits)
            if plane.shape != (out.height, out.width) and luma_size == (out.height, out.width):
                plane = cv2.resize(
                    np.ascontiguousarray(plane), None, fx=2, fy=2, interpolation=cv2.INTER_LINEAR
                )
            _write(out, plane[: out.height, : out.width])
    made.pts, made.time_base = frame.pts, target.info.time_base
    made.pict_type = 0
    for tag, value in _written_tags(target).items():
        setattr(made, tag, value)
    return made


def _with_bits(plane: np.ndarray, bits: int, wanted: int) -> np.ndarray:
    if bits <= wanted:
        return plane
    shift = bits - wanted
    return np.minimum((plane.astype(np.uint32) + (1 << (shift - 1))) >> shift, (1 << wanted) - 1).astype(
        np.uint16 if wanted > 8 else np.uint8
    )


def _fill_rgb(made: Any, name: str, planes: tuple[np.ndarray, ...]) -> None:
    order = _PACKED.get(name) or _PACKED_WIDE.get(name)
    if order is None:  # planar: G, B, R, alpha
        for out, plane in zip(made.planes, (planes[1], planes[2], planes[0], *planes[3:]), strict=False):
            _write(out, plane)
        return
    kind = np.dtype(np.uint8 if name in _PACKED else ">u2" if name.endswith("be") else "<u2")
    height, width = planes[0].shape
    packed = np.zeros((height, width, len(order)), kind)
    for i, channel in enumerate(order):
        if channel != "0":
            packed[..., i] = (
                planes["rgba".index(channel)] if "rgba".index(channel) < len(planes) else np.iinfo(kind).max
            )
    _write(made.planes[0], packed.reshape(height, -1))


def _write(out: Any, samples: np.ndarray) -> None:
    kind = np.dtype(np.uint8) if samples.dtype.itemsize == 1 else samples.dtype
    rows = np.frombuffer(out, kind)
    stride = out.line_size // kind.itemsize
    rows[: stride * samples.shape[0]].reshape(samples.shape[0], stride)[:, : samples.shape[1]] = samples


class SegmentWriter:
    """Encode frames to a file of packets that appears whole or not at all."""

    def __init__(self, target: VideoTarget, path: Path) -> None:
        self.target, self.path = target, path
        self._temporary = path.with_name(path.name + ".tmp")
        self._context = open_encoder(target)
        self._file = open(self._temporary, "wb")

    def encode(self, frame: Frame) -> None:
        """Encode one frame."""
        self._store(self._context.encode(to_video_frame(frame, self.target)))

    def close(self) -> None:
        """Encode what the encoder holds back, and put the file in place."""
        self._store(self._context.encode(None))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._temporary, self.path)

    def abandon(self) -> None:
        """Remove the unfinished file."""
        self._file.close()
        self._temporary.unlink(missing_ok=True)

    def _store(self, packets: Iterable[Any]) -> None:
        for packet in packets:
            content = bytes(packet)
            self._file.write(_PACKET.pack(packet.pts, packet.duration or 0, len(content), packet.is_keyframe))
            self._file.write(content)
            sides = list(packet.iter_sidedata())
            alpha = [bytes(side) for side in sides if side.data_type == "matroska_blockadditional"]
            self._file.write(struct.pack("<I", len(alpha[0]) if alpha else 0) + (alpha[0] if alpha else b""))


@dataclass(frozen=True)
class StoredPacket:
    """One packet of a segment; `alpha` is the alpha channel of VP8 and VP9."""

    pts: int
    duration: int
    key: bool
    content: bytes
    alpha: bytes


def read_segment(path: Path) -> Iterator[StoredPacket]:
    """Read the packets of a segment in the order in which they were encoded."""
    with open(path, "rb") as file:
        while header := file.read(_PACKET.size):
            pts, duration, size, key = _PACKET.unpack(header)
            content = file.read(size)
            (alpha,) = struct.unpack("<I", file.read(4))
            yield StoredPacket(pts, duration, bool(key), content, file.read(alpha))


def _pts_in_segment(path: Path) -> list[int]:
    """Read the timestamps of a segment, and skip the rest of it."""
    found = []
    with open(path, "rb") as file:
        while header := file.read(_PACKET.size):
            pts, _, size, _ = _PACKET.unpack(header)
            found.append(pts)
            file.seek(size, os.SEEK_CUR)
            (alpha,) = struct.unpack("<I", file.read(4))
            file.seek(alpha, os.SEEK_CUR)
    return found


def write_video(
    target: VideoTarget,
    segments: list[Path],
    output: Path,
    *,
    sound: VideoInfo | None = None,
    kept: list[int] | None = None,
    offset: Fraction = Fraction(0),
    end: Fraction | None = None,
) -> None:
    """Put segments, sound, subtitles, chapters and metadata together in one file.

    Args:
        target: How the segments were encoded.
        segments: Files of `SegmentWriter`, in order.
        output: File to write.
        sound: File whose other streams are copied; None = that of `target`.
        kept: Which of its streams, see `copied_streams`.
        offset: Seconds by which its timestamps are moved back; what starts before is left out.
        end: Seconds, before the move, from which on its packets are left out.
    """
    av = import_av()
    info, sound = target.info, sound or target.info
    stamps = [_pts_in_segment(path) for path in segments]
    coded = [stamp for segment in stamps for stamp in segment]
    decode_times = _decode_times(coded)
    shown = sorted(coded)
    following = dict(zip(shown, [*shown[1:], shown[-1] + max(info.last_duration, 1)], strict=True))
    # Without this flag, Matroska files hold random numbers.
    options = {"fflags": "+bitexact"}
    if target.container in ("matroska", "webm"):
        # Sound that begins before the pictures, as AAC does, would move all timestamps.
        options["avoid_negative_ts"] = "disabled"
    with (
        open_input(sound.path) as source,
        av.open(os.fspath(output), "w", format=target.container, options=options) as container,
    ):
        stream = container.add_stream(target.encoder, rate=info.rate)
        open_encoder(target, stream.codec_context)
        stream.time_base = info.time_base
        if info.turns:
            stream.set_display_rotation(90 * info.turns)
        with open_input(info.path) as described:
            for key, value in described.streams.video[0].metadata.items():
                if key.lower() not in (
                    "duration",
                    "encoder",
                    "vendor_id",
                    "alpha_mode",
                ) and not key.startswith("_STATISTICS"):
                    stream.metadata[key] = value
            if "yuva" in target.pixel_format and target.encoder.startswith("libvpx"):
                stream.metadata["alpha_mode"] = "1"
            container.metadata.update(
                {
                    k: v
                    for k, v in described.metadata.items()
                    if k not in ("encoder", "major_brand", "minor_version", "compatible_brands")
                }
            )
            _copy_chapters(described, container, offset, end)
        others = {i: container.add_stream_from_template(source.streams[i]) for i in kept or []}
        container.start_encoding()
        pictures = _picture_packets(segments, decode_times, following, stream, info.time_base)
        sounds = _other_packets(source, others, offset, end)
        for packet in _by_time(pictures, sounds):
            container.mux(packet)


def _decode_times(coded: list[int]) -> list[int]:
    """Return decoding times that rise and never lie behind the time of display."""
    shown = sorted(coded)
    position = {stamp: i for i, stamp in enumerate(shown)}
    # A packet may be shown no earlier than it is decoded: how far must decoding go ahead?
    delay = max((i - position[stamp] for i, stamp in enumerate(coded)), default=0)
    step = shown[1] - shown[0] if len(shown) > 1 else 1
    early = [shown[0] - step * (delay - i) for i in range(min(delay, len(shown)))]
    return early + shown[: len(shown) - len(early)]


def _picture_packets(
    segments: list[Path], decode_times: list[int], following: dict[int, int], stream: Any, time_base: Fraction
) -> Iterator[tuple[Fraction, Any]]:
    av = import_av()
    times = iter(decode_times)
    for path in segments:
        for stored in read_segment(path):
            packet = av.Packet(stored.content)
            packet.pts, packet.dts, packet.time_base = stored.pts, next(times), time_base
            packet.duration = following[stored.pts] - stored.pts
            packet.is_keyframe = stored.key
            packet.stream = stream
            if stored.alpha:
                side = packet.get_sidedata("matroska_blockadditional")
                side.update(stored.alpha)
                packet.set_sidedata(side)
            yield packet.dts * time_base, packet


def _other_packets(
    source: Any, others: dict[int, Any], offset: Fraction, end: Fraction | None
) -> Iterator[tuple[Fraction, Any]]:
    if not others:
        return
    for packet in source.demux([source.streams[i] for i in others]):
        if packet.dts is None and packet.pts is None:
            continue
        base = packet.time_base
        stamp = packet.dts if packet.dts is not None else packet.pts
        time = stamp * base
        if offset and (packet.pts if packet.pts is not None else stamp) * base < offset:
            continue
        if end is not None and time >= end:
            continue
        moved = round(offset / base)
        if moved:
            packet.pts = None if packet.pts is None else packet.pts - moved
            packet.dts = None if packet.dts is None else packet.dts - moved
        packet.stream = others[packet.stream.index]
        yield time - offset, packet


def _by_time(*streams: Iterator[tuple[Fraction, Any]]) -> Iterator[Any]:
    import heapq

    for _, packet in heapq.merge(*streams, key=lambda pair: pair[0]):
        yield packet


def _copy_chapters(source: Any, container: Any, offset: Fraction, end: Fraction | None) -> None:
    chapters = []
    for chapter in source.chapters():
        base = chapter["time_base"]
        start, stop = chapter["start"] * base - offset, chapter["end"] * base - offset
        if stop <= 0 or (end is not None and start >= end - offset):
            continue
        chapters.append(
            {**chapter, "start": round(max(start, Fraction(0)) / base), "end": round(stop / base)}
        )
    if chapters:
        container.set_chapters(chapters)


def doubled(target: VideoTarget) -> VideoTarget:
    """Return the target of the two clips beside each other."""
    across = target.info.turns % 2 == 0
    width = target.width - target.width % 2 if across else target.width
    height = target.height if across else target.height - target.height % 2
    path = target.path.with_name(f"{target.path.stem}_before_after{target.path.suffix}")
    return replace(
        target, path=path, width=2 * width if across else width, height=height if across else 2 * height
    )
