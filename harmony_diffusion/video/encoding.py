"""Encode frames to packets, segment by segment.

A clip is encoded in segments, each by a fresh encoder, so that a job that was stopped goes on with the same
bytes. A segment is a file of packets, not a small video: containers shift or lose timestamps.
"""

import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from harmony_diffusion.errors import InputError
from harmony_diffusion.video.files import TAGS, import_av, sample_coding
from harmony_diffusion.video.frame_colors import Frame
from harmony_diffusion.video.targets import THREADS, VideoTarget

_PACKED = {"rgb24": "rgb", "bgr0": "bgr0", "bgra": "bgra", "argb": "argb", "rgba": "rgba"}
_PACKED_WIDE = {"rgb48le": "rgb", "rgb48be": "rgb", "rgba64le": "rgba", "rgba64be": "rgba"}
_PACKET = struct.Struct("<qqIB")  # pts, duration, size, key frame


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


def check_encoder(target: VideoTarget) -> None:
    """Open the encoder of a target once, before any work is done.

    Raises:
        InputError: It does not take this size and these samples, or needs a device that is not there.
    """
    av = import_av()
    try:
        open_encoder(target).open()
    except (OSError, ValueError, av.error.FFmpegError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(
            "codec",
            f"{target.encoder} cannot be opened for {target.width}x{target.height} frames of "
            f"{target.pixel_format} ({reason})",
            "Choose another codec, such as h264, or ffv1 with a .mkv file.",
        ) from None


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


def pts_in_segment(path: Path) -> list[int]:
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
