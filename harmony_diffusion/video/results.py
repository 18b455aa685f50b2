"""Where rendered frames go: segments of a video file, or a folder of pictures."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

from harmony_diffusion.errors import HarmonyError, OutputError
from harmony_diffusion.images.compose import side_by_side
from harmony_diffusion.images.output_files import check_output, output_error
from harmony_diffusion.video.clips import PictureClip
from harmony_diffusion.video.encoding import SegmentWriter, check_encoder
from harmony_diffusion.video.files import VideoInfo, import_av
from harmony_diffusion.video.frame_colors import AnyFrame, Frame, PictureFrame
from harmony_diffusion.video.job import VideoJob
from harmony_diffusion.video.joining import write_video
from harmony_diffusion.video.passes import segment_path
from harmony_diffusion.video.sources import PastedSource, Source, shifted, trim_offset
from harmony_diffusion.video.targets import VideoTarget, copied_streams, doubled, plan_target

_BESIDE = "_before_after"


class VideoResult:
    """A video file that is written segment by segment.

    Args:
        source: What is read.
        target: How it is encoded.
        sound: File whose sound and subtitles are copied.
        beside: Also write a file with the composite beside the result.
    """

    def __init__(self, source: Source, target: VideoTarget, sound: VideoInfo, *, beside: bool) -> None:
        self.source, self.target, self.sound = source, target, sound
        self.kept = copied_streams(sound, target.container)
        self.targets = {"packets": target} | ({"beside": doubled(target)} if beside else {})

    @property
    def paths(self) -> list[Path]:
        """Return the files that will be written."""
        return [target.path for target in self.targets.values()]

    def describe(self) -> dict[str, Any]:
        """Return what decides the bytes."""
        return {name: target.describe() for name, target in self.targets.items()}

    def missing(self, job: VideoJob, segments: Sequence[slice]) -> list[int]:
        """Return the numbers of the segments that are not finished."""
        return [
            number
            for number in range(len(segments))
            if not all(segment_path(job.segments, number, kind).exists() for kind in self.targets)
        ]

    def write(
        self, job: VideoJob, segments: Sequence[slice], frames: Iterable[tuple[int, AnyFrame, AnyFrame]]
    ) -> Iterable[int]:
        """Encode frames; yield the number of each when it is done."""
        writers: list[SegmentWriter] = []
        number = -1
        try:
            for index, before, after in frames:
                if number < 0 or not segments[number].start <= index < segments[number].stop:
                    self._close(writers)
                    number = next(i for i, part in enumerate(segments) if part.start <= index < part.stop)
                    writers = [
                        SegmentWriter(target, segment_path(job.segments, number, kind))
                        for kind, target in self.targets.items()
                    ]
                assert isinstance(before, Frame) and isinstance(after, Frame)
                before, after = shifted(before, self.source), shifted(after, self.source)
                writers[0].encode(after)
                for writer in writers[1:]:
                    writer.encode(before.beside(after))
                yield index
            self._close(writers)
            writers = []
        finally:
            for writer in writers:
                writer.abandon()

    @staticmethod
    def _close(writers: list[SegmentWriter]) -> None:
        for writer in writers:
            writer.close()
        writers.clear()

    def join(self, job: VideoJob, segments: Sequence[slice]) -> list[tuple[Path, Path]]:
        """Put the segments together; return the finished files and their places, the main one last."""
        offset = trim_offset(self.source)
        end = Fraction(self.source.end).limit_denominator(10**6) if self.source.end is not None else None
        moves = []
        for kind, target in reversed(self.targets.items()):
            parts = [segment_path(job.segments, number, kind) for number in range(len(segments))]
            joined = job.folder / f"joined-{kind}{target.path.suffix}"
            write_video(target, parts, joined, sound=self.sound, kept=self.kept, offset=offset, end=end)
            moves.append((joined, target.path))
        return moves


class PictureResult:
    """A folder of pictures with the names of those that are read.

    Args:
        source: What is read.
        output: Folder to write.
        beside: Also write a folder with the composite beside the result.
    """

    def __init__(self, source: Source, output: Path, *, beside: bool) -> None:
        assert isinstance(source.clip, PictureClip)
        self.source, self.output, self.beside = source, output, beside
        self.names = [path.name for path in source.clip.paths][source.chosen]

    @property
    def paths(self) -> list[Path]:
        """Return the folders that will be written."""
        return [self.output, *([self.output.with_name(self.output.name + _BESIDE)] if self.beside else [])]

    def describe(self) -> dict[str, Any]:
        """Return what decides the bytes."""
        return {"pictures": len(self.names), "beside": self.beside}

    def _folders(self, job: VideoJob) -> list[Path]:
        return [job.folder / "frames", *([job.folder / "beside"] if self.beside else [])]

    def missing(self, job: VideoJob, segments: Sequence[slice]) -> list[int]:
        """Return the numbers of the segments that are not finished."""
        folders = self._folders(job)
        return [
            number
            for number, part in enumerate(segments)
            if not all(
                (folder / self.names[i]).exists() for folder in folders for i in range(part.start, part.stop)
            )
        ]

    def write(
        self, job: VideoJob, segments: Sequence[slice], frames: Iterable[tuple[int, AnyFrame, AnyFrame]]
    ) -> Iterable[int]:
        """Save frames; yield the number of each when it is done."""
        folders = self._folders(job)
        for folder in folders:
            folder.mkdir(exist_ok=True)
        for index, before, after in frames:
            assert isinstance(before, PictureFrame) and isinstance(after, PictureFrame)
            after.picture.save(folders[0] / self.names[index], overwrite=True)
            if self.beside:
                joined = side_by_side(before.picture, after.picture)
                joined.save(folders[1] / self.names[index], overwrite=True)
            yield index

    def join(self, job: VideoJob, segments: Sequence[slice]) -> list[tuple[Path, Path]]:
        """Return the finished folders and their places, the main one last."""
        return list(zip(self._folders(job), self.paths, strict=True))[::-1]


Result = VideoResult | PictureResult


def plan_result(
    source: Source,
    output: Path,
    *,
    codec: str | None,
    quality: float | None,
    lossless: bool,
    beside: bool,
    audio: str,
) -> Result:
    """Choose how the result is written, and check that it can be.

    Raises:
        OutputError: The place or the format does not fit.
        InputError: `codec` or `quality` does not.
    """
    if output.name in ("", ".."):
        raise OutputError(output, "is no name of a new file or folder", "Give it a name of its own.")
    if isinstance(source.clip, PictureClip):
        if output.suffix.lower() in (".mp4", ".mov", ".mkv", ".webm", ".avi"):
            raise OutputError(
                output, "is a video file, but the composite is a folder of pictures", "Name a folder."
            )
        return PictureResult(source, output, beside=beside)
    info = source.clip.info
    target = plan_target(output, info, codec=codec, quality=quality, lossless=lossless)
    sound = info
    if (
        audio == "foreground"
        and isinstance(source, PastedSource)
        and not isinstance(source.foreground, PictureClip)
    ):
        sound = source.foreground.info
    result = VideoResult(source, target, sound, beside=beside)
    for written in result.targets.values():
        check_encoder(written)
    return result


def check_places(result: Result, source: Source, *, overwrite: bool) -> None:
    """Check, before any work is done, that the results may be written in their places.

    Raises:
        OutputError: One exists and `overwrite` is false, or cannot be written there.
    """
    inputs = source.files()
    for path in result.paths:
        try:
            _check_place(path, isinstance(result, PictureResult), inputs, overwrite)
        except OutputError:
            raise
        except (OSError, RuntimeError, ValueError) as error:
            raise output_error(path, error) from None


def _check_place(path: Path, is_folder: bool, inputs: list[Path], overwrite: bool) -> None:
    if not is_folder:
        check_output(path, overwrite=overwrite, inputs=inputs)
        if path.exists() and any(path.resolve() == file.resolve() for file in inputs):
            raise OutputError(path, "is the file that is read", "Choose another name.")
        return
    folder = path.resolve()
    if any(file.resolve().parent == folder for file in inputs):
        raise OutputError(path, "is the folder that is read", "Choose another name.")
    if folder.exists() and not folder.is_dir():
        raise OutputError(path, "is a file", "Name a folder.")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise OutputError(
            path,
            "exists and is not empty",
            "Choose another name, or allow it with `overwrite` (`--overwrite`).",
        )
    if not folder.parent.is_dir():
        raise OutputError(path, "its folder does not exist", "Create it first.")


def as_output_error(output: Path, error: Exception) -> HarmonyError:
    """Return an error of the file system or of the muxer in one line."""
    reason = getattr(error, "strerror", None) or str(error)
    with suppress(ValueError):
        if isinstance(error, import_av().error.FFmpegError):
            reason = f"cannot be written ({error.strerror})"
    return OutputError(output, reason, "Free some space, or choose another place or format.")
