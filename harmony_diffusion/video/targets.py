"""How a clip is written: container, encoder, samples, and which streams of the input are kept."""

import io
import os
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harmony_diffusion.errors import InputError, OutputError
from harmony_diffusion.images.arrays import note
from harmony_diffusion.numbers import check_number
from harmony_diffusion.video.files import VideoInfo, import_av, open_input, sample_coding

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
    if lossless and codec is not None and _ENCODERS.get(codec, codec) != "ffv1":
        raise InputError("codec and lossless", "exclude each other", "Give one of them; lossless is FFV1.")
    if lossless and container != "matroska":
        raise OutputError(path, "is no .mkv file, which lossless needs", "Name a .mkv file.")
    encoder = "ffv1" if lossless else _encoder_named(codec, info)
    alpha, is_rgb = (
        "a" in _plain(info.pixel_format)[:4] and "gray" not in info.pixel_format,
        sample_coding(info).is_rgb,
    )
    if encoder == "libx264" and is_rgb:
        encoder = "libx264rgb"
    pixel_format = _format_for(encoder, info, alpha)
    with _Scratch(container) as probe:
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
    if name.startswith(("rgb48", "rgba64")):
        return name
    return name.replace("yuvj", "yuv").replace("be", "le")


class _Scratch:
    """A container that is opened for questions only, in memory."""

    def __init__(self, container: str) -> None:
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
    with open_input(info.path) as source, _Scratch(container) as probe:
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


def doubled(target: VideoTarget) -> VideoTarget:
    """Return the target of the two clips beside each other."""
    across = target.info.turns % 2 == 0
    width = target.width - target.width % 2 if across else target.width
    height = target.height if across else target.height - target.height % 2
    path = target.path.with_name(f"{target.path.stem}_before_after{target.path.suffix}")
    return replace(
        target, path=path, width=2 * width if across else width, height=height if across else 2 * height
    )
