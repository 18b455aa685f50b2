"""Join encoded segments to a video file, with the sound, subtitles, chapters and metadata of the input."""

import heapq
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

from harmony_diffusion.video.encoding import open_encoder, pts_in_segment, read_segment
from harmony_diffusion.video.files import VideoInfo, file_address, import_av, open_input
from harmony_diffusion.video.targets import VideoTarget


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
    stamps = [pts_in_segment(path) for path in segments]
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
        av.open(file_address(output), "w", format=target.container, options=options) as container,
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
