"""Read video files one frame at a time with PyAV, in the samples they hold."""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from harmony_diffusion.errors import (
    DecodeError,
    InputError,
    MissingDependencyError,
    TooLargeError,
)
from harmony_diffusion.images.arrays import MAX_PIXELS, note
from harmony_diffusion.images.decoding import open_regular
from harmony_diffusion.numbers import check_number
from harmony_diffusion.video.frame_colors import Frame, SampleCoding

if TYPE_CHECKING:
    import av
    from av.container import InputContainer

_OLDEST_AV = (17, 1)
_PQ, _HLG = 16, 18  # values of color_trc, ITU-T H.273
_UNKNOWN = (0, 2)  # of color_primaries, color_trc
_MATRICES = {1: "bt709", 4: "bt601", 5: "bt601", 6: "bt601", 9: "bt2020"}  # of colorspace; 2 is unspecified
_FULL = 2  # of color_range
_HD_ROWS = 720  # untagged files of this height are taken for BT.709
# Order of the bytes, or pairs of bytes, of packed formats; 0 is padding.
_PACKED_8 = {
    "rgb24": "rgb",
    "bgr24": "bgr",
    "rgba": "rgba",
    "bgra": "bgra",
    "argb": "argb",
    "abgr": "abgr",
    "rgb0": "rgb0",
    "bgr0": "bgr0",
    "0rgb": "0rgb",
    "0bgr": "0bgr",
}
_PACKED_16 = {"rgb48le": "rgb", "rgb48be": "rgb", "rgba64le": "rgba", "rgba64be": "rgba", "bgr48le": "bgr"}
_PACKED_422 = {"yuyv422": (0, 1, 3), "uyvy422": (1, 0, 2)}
# Decoders that read the alpha of VP8 and VP9; FFmpeg's own leave it out.
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
_FORMATS_THAT_NAME_OTHERS = {
    *("avisynth", "concat", "dash", "hls", "imf", "rtp", "rtsp", "sap", "sdp", "vapoursynth", "vobsub"),
    *("webm_dash_manifest", "alsa", "fbdev", "kmsgrab", "lavfi", "v4l2", "video4linux2", "x11grab"),
}
TAGS = ("color_primaries", "color_trc", "colorspace", "color_range")


def import_av() -> Any:
    """Import PyAV.

    Raises:
        MissingDependencyError: It is not installed, or too old.
    """
    try:
        import av
    except ImportError:
        raise MissingDependencyError("video needs PyAV: pip install 'harmony-diffusion[video]'") from None
    # Earlier ones cannot tag frames with the coding of their colours.
    if tuple(int(part) for part in av.__version__.split(".")[:2]) < _OLDEST_AV:
        raise MissingDependencyError(
            f"video needs PyAV {'.'.join(map(str, _OLDEST_AV))} or newer, found {av.__version__}: "
            "pip install --upgrade 'harmony-diffusion[video]'"
        )
    return av


@dataclass(frozen=True)
class VideoInfo:
    """What a video file says of itself.

    Attributes:
        path: The file.
        width: Columns of the coded frame.
        height: Rows of the coded frame.
        turns: Quarter turns counter-clockwise to show it upright.
        codec: Name of the codec, such as `h264`.
        profile: Profile of the codec, if any.
        pixel_format: FFmpeg's name of the sample format.
        time_base: Seconds of one unit of a timestamp.
        rate: Frames a second, on average.
        times: Timestamp of every frame in order of display, in units of `time_base`.
        last_duration: Length of the last frame in the same units.
        tags: `color_primaries`, `color_trc`, `colorspace` and `color_range` as FFmpeg numbers them.
        aspect: Width of a sample over its height; None when not told.
        container: Names of the container format.
        alpha_in_side_data: VP8 or VP9 with an alpha channel that the usual decoder leaves out.
    """

    path: str
    width: int
    height: int
    turns: int
    codec: str
    profile: str | None
    pixel_format: str
    time_base: Fraction
    rate: Fraction
    times: tuple[int, ...]
    last_duration: int
    tags: dict[str, int]
    aspect: Fraction | None
    container: str
    alpha_in_side_data: bool = False
    hdr_as_is: bool = field(default=False, compare=False)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width as shown."""
        return (self.width, self.height) if self.turns % 2 else (self.height, self.width)

    @property
    def seconds(self) -> np.ndarray:
        """Time of every frame in seconds from the first one."""
        return np.array([float((t - self.times[0]) * self.time_base) for t in self.times])

    @property
    def duration(self) -> float:
        """Seconds from the first frame to the end of the last."""
        return float((self.times[-1] - self.times[0] + self.last_duration) * self.time_base)


def open_input(path: str | os.PathLike[str]) -> "InputContainer":
    """Open a media file; nothing but this one file is read, whatever its name or its content says.

    Raises:
        DecodeError: It is missing, damaged, or no media file.
        InputError: It is no regular file, or may not be read.
    """
    av = import_av()
    try:
        open_regular(path, "video").close()
    except InputError as error:
        if error.reason != "does not exist":
            raise
        raise DecodeError(path, "there is no such file", error.fix) from None
    options = {"protocol_whitelist": "file", "format_whitelist": _own_formats()}
    try:
        return av.open(file_address(path), options=options, metadata_errors="replace")
    except (OSError, ValueError, av.error.FFmpegError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DecodeError(path, f"cannot be read as a video ({reason})") from None


def file_address(path: str | os.PathLike[str]) -> str:
    """Return a path as FFmpeg takes it for nothing but a file: it reads `a:b.mp4` as a protocol `a`."""
    return "file:" + os.path.abspath(os.fsdecode(path))


@cache
def _own_formats() -> str:
    """Return FFmpeg's formats whose files hold what is played, and do not name other files or devices."""
    names = {name for listed in import_av().formats_available for name in listed.split(",")}
    return ",".join(sorted(names - _FORMATS_THAT_NAME_OTHERS))


def read_info(
    path: str | os.PathLike[str],
    *,
    max_pixels: int = MAX_PIXELS,
    allow_truncated: bool = False,
    hdr_as_is: bool = False,
) -> VideoInfo:
    """Read what a video file says of itself, and look at every packet of it without decoding.

    Args:
        path: File of any container and codec that FFmpeg reads.
        max_pixels: Limit of height times width.
        allow_truncated: Accept a file that ends before its declared duration.
        hdr_as_is: Accept PQ, whose code values are then treated as sRGB ones.

    Raises:
        DecodeError: It is no video, holds no frame, or is cut off.
        TooLargeError: Its frames have more than `max_pixels`.
        InputError: It is interlaced, or of a transfer curve or sample format that is not worked with.
    """
    name, max_pixels = os.fspath(path), int(check_number("max_pixels", max_pixels, 1))
    with open_input(path) as container:
        if not container.streams.video:
            raise DecodeError(path, "has no video stream")
        stream = container.streams.video[0]
        context = stream.codec_context
        if context is None or not context.width or not context.pix_fmt:
            raise DecodeError(path, "its video stream cannot be decoded")
        if context.width * context.height > max_pixels:
            raise TooLargeError(
                path,
                f"has frames of {context.width}x{context.height}, more than {max_pixels:,} pixels",
                "Allow them with `max_pixels` (`--max-pixels`).",
            )
        times, last_duration = _read_times(path, container, stream, allow_truncated)
        tags = {tag: int(getattr(context, tag) or 0) for tag in TAGS}
        info = VideoInfo(
            path=name,
            width=context.width,
            height=context.height,
            turns=0,
            codec=context.codec.canonical_name,
            profile=context.profile,
            pixel_format=context.pix_fmt,
            time_base=stream.time_base or Fraction(1, 25),
            rate=stream.average_rate or stream.guessed_rate or Fraction(25),
            times=times,
            last_duration=last_duration,
            tags=tags,
            aspect=stream.sample_aspect_ratio or None,
            container=container.format.name,
            alpha_in_side_data=stream.metadata.get("alpha_mode", stream.metadata.get("ALPHA_MODE")) == "1"
            and context.name in (*_ALPHA_DECODERS, *_ALPHA_DECODERS.values()),
            hdr_as_is=hdr_as_is,
        )
    info = _look_at_first_frame(info)
    return _times_of_decoded_frames(info) if allow_truncated else info


def _read_times(
    path: object, container: Any, stream: Any, allow_truncated: bool
) -> tuple[tuple[int, ...], int]:
    """Collect the timestamps of all packets; check that the file does not end early."""
    av = import_av()
    times, last_duration, end, count = [], 0, 0.0, 0
    try:
        for packet in container.demux():
            if packet.size == 0 or packet.time_base is None:
                continue
            stamp = packet.pts if packet.pts is not None else packet.dts
            if stamp is not None:
                end = max(end, float((stamp + (packet.duration or 0)) * packet.time_base))
            if packet.stream.index != stream.index or packet.is_discard:
                continue
            count += 1
            if stamp is not None:
                times.append((stamp, packet.duration or 0))
    except av.error.FFmpegError as error:
        if not allow_truncated:
            raise DecodeError(
                path,
                f"is damaged after {end:.2f} s ({error.strerror})",
                "Read what there is with `allow_truncated` (`--allow-truncated`).",
            ) from None
    if not count:
        raise DecodeError(path, "holds no video frames")
    declared, start = _declared_length(container), float((container.start_time or 0) / 1e6)
    if declared is not None and declared + start - end > max(1.0, 0.02 * declared) and not allow_truncated:
        raise DecodeError(
            path,
            f"ends after {end - start:.2f} s of {declared:.2f} s: its end is missing",
            "Read what there is with `allow_truncated` (`--allow-truncated`).",
        )
    step = round(1 / (stream.time_base * (stream.average_rate or 25))) if stream.time_base else 1
    if len(times) != count or 2 * len({t for t, _ in times}) <= count > 1:
        # No timestamps, or ones that say nothing: number the frames.
        return tuple(step * i for i in range(count)), step
    times.sort()
    last_duration = times[-1][1] or (times[-1][0] - times[-2][0] if len(times) > 1 else 0) or step
    return _apart(path, [t for t, _ in times]), last_duration


def _apart(path: object, times: list[int]) -> tuple[int, ...]:
    """Move timestamps that repeat behind each other, by one unit each."""
    moved = times[:1]
    for time in times[1:]:
        moved.append(max(time, moved[-1] + 1))
    count = sum(before != after for before, after in zip(times, moved, strict=True))
    if count:
        note(path, f"has frames with the timestamp of another; {count} moved by one unit or more")
    return tuple(moved)


def _times_of_decoded_frames(info: VideoInfo) -> VideoInfo:
    """Replace the times of all packets by those of the frames that can be decoded, up to the first error."""
    stamps: list[int | None] = []
    with open_input(info.path) as container, suppress(import_av().error.FFmpegError):
        for frame in _decode(container, info):
            stamps.append(frame.pts)
    known = [stamp for stamp in stamps if stamp is not None]
    if len(known) == len(stamps) == len(set(known)):
        return replace(info, times=tuple(known))
    return replace(info, times=info.times[: len(stamps)])


def _declared_length(container: Any) -> float | None:
    """Return the seconds from the first timestamp to the end that a file declares."""
    if container.duration is None:
        return None
    # The duration of these is the time of their end, whatever they begin with.
    absolute = container.format.name in ("matroska,webm", "flv")
    begin = max(0, container.start_time or 0) if absolute else 0
    return float((container.duration - begin) / 1e6)


def _look_at_first_frame(info: VideoInfo) -> VideoInfo:
    """Add what only a decoded frame tells, and refuse what is not worked with."""
    av = import_av()
    with open_input(info.path) as container:
        try:
            frame = next(_decode(container, info), None)
        except av.error.FFmpegError as error:
            raise DecodeError(info.path, f"cannot be decoded ({error.strerror})") from None
    if frame is None:
        raise DecodeError(info.path, "holds no video frames")
    if frame.interlaced_frame:
        raise InputError(info.path, "is interlaced", "Deinterlace it first.")
    turns = _quarter_turns(info.path, frame)
    tags = {
        tag: info.tags[tag] if info.tags[tag] not in _UNKNOWN else int(getattr(frame, tag) or 0)
        for tag in TAGS
    }
    info = replace(info, tags=tags, turns=turns, pixel_format=frame.format.name)
    if tags["color_trc"] == _PQ and not info.hdr_as_is:
        raise InputError(
            info.path,
            "is HDR with the PQ curve, which no model here was trained on",
            "Take its code values as they are with `hdr_as_is=True` (`--hdr as-is`), or convert it to SDR.",
        )
    if tags["color_trc"] == _HLG:
        note(info.path, "is HDR (HLG); its code values are treated as those of an SDR picture")
    sample_coding(info)
    if tags["colorspace"] not in _MATRICES and not frame.format.is_rgb and not is_grey(frame.format.name):
        matrix = "BT.709" if info.height >= _HD_ROWS else "BT.601"
        note(
            info.path,
            f"does not say how its colours are coded; {matrix} is assumed for its {info.height} lines",
        )
    read_planes(frame, info)
    return info


def _quarter_turns(path: str, frame: Any) -> int:
    """Return the quarter turns counter-clockwise that show a frame upright.

    Raises:
        InputError: It is to be mirrored, sheared, or turned by another angle.
    """
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return 0
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].astype(float)
    if a * d == b * c:
        raise InputError(
            path, "has a display matrix that leaves no picture (its determinant is 0)", "Remove the matrix."
        )
    if a * d < b * c:
        raise InputError(path, "is to be shown mirrored", "Mirror its frames first, and remove the matrix.")
    rotation = int(frame.rotation)
    if rotation % 90 or ((b or c) and (a or d)):
        raise InputError(path, f"is to be shown turned by {rotation} degrees or sheared", "Turn it first.")
    return rotation // 90 % 4


def is_grey(pixel_format: str) -> bool:
    """Return whether a format holds luma alone, from black to white in its full range."""
    return pixel_format in ("gray", "gray10le", "gray12le", "gray16le")


def sample_coding(info: VideoInfo) -> SampleCoding:
    """Return what the samples of a file mean.

    Raises:
        InputError: A matrix or sample format that is not worked with.
    """
    av = import_av()
    layout = av.VideoFormat(info.pixel_format)
    bits = max(component.bits for component in layout.components)
    if layout.is_rgb:
        return SampleCoding(True, 16 if info.pixel_format in _PACKED_16 else bits)
    full = info.tags["color_range"] == _FULL or "yuvj" in info.pixel_format or is_grey(info.pixel_format)
    matrix = info.tags["colorspace"]
    if matrix in _MATRICES:
        named = _MATRICES[matrix]
    elif matrix in _UNKNOWN or matrix is None:
        named = "bt709" if info.height >= _HD_ROWS else "bt601"
    else:
        raise InputError(info.path, f"uses colour matrix {matrix} of ITU-T H.273", "Convert it to BT.709.")
    return SampleCoding(False, bits, named, full)


def read_frames(info: VideoInfo) -> Iterator[Frame]:
    """Decode a video, one frame at a time.

    Yields:
        Frames in order of display; their planes are valid until the next one is asked for.

    Raises:
        DecodeError: Damaged data.
        InputError: The size or sample format changes midway.
    """
    av = import_av()
    coding = sample_coding(info)
    with open_input(info.path) as container:
        index = 0
        try:
            for frame in _decode(container, info):
                time = float((info.times[index] - info.times[0]) * info.time_base)
                found = (frame.width, frame.height, frame.format.name)
                if found != (info.width, info.height, info.pixel_format):
                    raise InputError(
                        info.path,
                        f"changes at {time:.2f} s from {info.width}x{info.height} {info.pixel_format} to "
                        f"{found[0]}x{found[1]} {found[2]}",
                        "Split it there, or convert it to one size first.",
                    )
                planes = tuple(np.rot90(plane, info.turns) for plane in read_planes(frame, info))
                yield Frame(planes, coding, info.turns, info.times[index])
                index += 1
                if index == len(info.times):
                    return
        except av.error.FFmpegError as error:
            raise DecodeError(
                info.path,
                f"cannot be decoded after frame {index} ({error.strerror})",
                "Read what there is with `allow_truncated` (`--allow-truncated`).",
            ) from None
    raise DecodeError(
        info.path,
        f"holds {len(info.times)} frames, of which {index} can be decoded",
        "Read these with `allow_truncated` (`--allow-truncated`).",
    )


def _decode(container: Any, info: VideoInfo) -> Iterator["av.VideoFrame"]:
    stream = container.streams.video[0]
    if not info.alpha_in_side_data:
        stream.thread_type = "AUTO"
        stream.codec_context.thread_count = 2
        yield from container.decode(stream)
        return
    av = import_av()
    codec = stream.codec_context.name
    decoder = av.CodecContext.create(_ALPHA_DECODERS.get(codec, codec), "r")
    for packet in container.demux(stream):
        if packet.size:
            yield from decoder.decode(packet)
    yield from decoder.decode(None)


def read_planes(frame: Any, info: VideoInfo) -> tuple[np.ndarray, ...]:
    """Return the samples of a frame, Y, U, V or R, G, B, and alpha if there is one; where possible as views.

    Raises:
        InputError: A sample format that is not worked with.
    """
    name, layout = frame.format.name, frame.format
    packed = _packed_planes(frame)
    if packed is not None:
        return packed
    if is_grey(name):
        luma = _rows_of(frame.planes[0], "<u2" if layout.components[0].bits > 8 else np.uint8, frame.width)
        middle = np.broadcast_to(luma.dtype.type(1 << (layout.components[0].bits - 1)), luma.shape)
        return luma, middle, middle
    if len(frame.planes) < 3 or not (layout.is_planar or name.startswith("gbr")) or layout.has_palette:
        raise InputError(
            info.path, f"has samples of the format {name}, which is not worked with", "Convert it to yuv420p."
        )
    bits = max(component.bits for component in layout.components)
    kind = np.dtype(np.uint8 if bits <= 8 else (">u2" if layout.is_big_endian else "<u2"))
    planes = [_rows_of(plane, kind, plane.width, plane.height) for plane in frame.planes]
    if layout.is_big_endian and bits > 8:
        planes = [plane.astype(np.uint16) for plane in planes]
    if layout.is_rgb:  # stored G, B, R
        planes = [planes[2], planes[0], planes[1], *planes[3:]]
    return tuple(planes)


def _packed_planes(frame: Any) -> tuple[np.ndarray, ...] | None:
    """Return the planes of formats whose samples alternate in memory, None for others."""
    name, width, height = frame.format.name, frame.width, frame.height
    first = frame.planes[0]
    if name in _PACKED_8 or name in _PACKED_16:
        order = _PACKED_8.get(name) or _PACKED_16[name]
        kind: Any = np.uint8 if name in _PACKED_8 else ">u2" if name.endswith("be") else "<u2"
        pixels = _rows_of(first, kind, width * len(order)).reshape(height, width, len(order))
        pixels = pixels.astype(np.uint8 if name in _PACKED_8 else np.uint16, copy=False)
        return tuple(pixels[..., order.index(c)] for c in "rgba" if c in order)
    if name in _PACKED_422 and width % 2 == 0:
        pixels = _rows_of(first, np.uint8, width * 2)
        luma, blue, red = _PACKED_422[name]
        return pixels[:, luma::2], pixels[:, blue::4], pixels[:, red::4]
    if name in ("nv12", "nv16", "p010le"):
        kind = "<u2" if name == "p010le" else np.uint8
        both = _rows_of(frame.planes[1], kind, 2 * (-(-width // 2)), frame.planes[1].height)
        planes = (_rows_of(first, kind, width), both[:, ::2], both[:, 1::2])
        # The ten bits of p010 are the upper ones of sixteen.
        return tuple(plane >> 6 for plane in planes) if name == "p010le" else planes
    return None


def _rows_of(plane: Any, kind: Any, width: int, height: int | None = None) -> np.ndarray:
    """Return a plane without the padding at the end of its rows."""
    kind = np.dtype(kind)
    samples = np.frombuffer(plane, kind)
    stride = plane.line_size // kind.itemsize
    height = plane.height if height is None else height
    return samples[: stride * height].reshape(height, stride)[:, :width]
