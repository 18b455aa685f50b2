"""Harmonize clips with any model of the registry: without flicker, with sound and timestamps kept."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput

from harmony_diffusion.errors import HarmonyError, InputError, InputTypeError
from harmony_diffusion.images.arrays import MAX_PIXELS
from harmony_diffusion.images.masks import check_background, load_mask
from harmony_diffusion.images.picture import load_picture
from harmony_diffusion.numbers import check_integer, check_number
from harmony_diffusion.pipelines.harmonization import HarmonizationPipeline
from harmony_diffusion.pipelines.separate_calls import in_turn
from harmony_diffusion.video.clips import MaskClip, open_clip
from harmony_diffusion.video.filters import LEAST_PIXELS, FilterModel
from harmony_diffusion.video.frame_colors import PictureFrame
from harmony_diffusion.video.job import (
    BATCH,
    VideoJob,
    identity_of_files,
    identity_of_model,
    identity_of_versions,
    job_folder,
    locked,
    read_job,
)
from harmony_diffusion.video.passes import (
    PredictionPass,
    RenderPlan,
    are_saved,
    load_filters,
    plan_rendering,
    render_frames,
    save_filters,
)
from harmony_diffusion.video.results import Result, as_output_error, check_places, plan_result
from harmony_diffusion.video.sources import CompositeSource, Source, open_pasted
from harmony_diffusion.video.temporal import (
    THUMBNAIL,
    TIME_CONSTANT,
    CausalSmoother,
    check_smoothing,
    shots_at,
)


@dataclass
class VideoHarmonizationOutput(BaseOutput):
    """What a clip became.

    Attributes:
        path: The file or folder that was written.
        frames: Number of frames.
        shots: First frame and the one after the last of each shot.
        flicker_before: Flicker that frame-by-frame harmonization has, in levels of 255, measured in a small
            copy of the foreground.
        flicker: Flicker of the result.
    """

    path: Path
    frames: int
    shots: list[tuple[int, int]]
    flicker_before: float
    flicker: float


class VideoHarmonizationPipeline(HarmonizationPipeline):
    """Make the moving foreground of a clip agree with its background.

    It is loaded, saved and offloaded as a `HarmonizationPipeline`, and called with clips.

    Args:
        model: Any model of `harmony_diffusion.MODELS`.

    Example:
        >>> from harmony_diffusion import VideoHarmonizationPipeline, load_model
        >>> pipe = VideoHarmonizationPipeline(load_model("reinhard"))
        >>> frames = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
        >>> mask = np.zeros((64, 64), np.uint8)
        >>> mask[20:40, 20:40] = 255
        >>> np.stack(list(pipe(frames, mask))).shape
        (3, 64, 64, 3)
    """

    def __init__(self, model: ModelMixin) -> None:
        super().__init__(model)
        self.set_progress_bar_config(unit="frame", desc="both passes")

    def __call__(  # type: ignore[override]
        self,
        composite: Any,
        mask: Any,
        *,
        output: str | os.PathLike[str] | None = None,
        strength: float = 1.0,
        reference_mask: Any = None,
        smoothing: str | None = None,
        time_constant: float | None = None,
        predict_every: int = 1,
        cuts: str | list[int] | None = "auto",
        mask_end: str = "error",
        codec: str | None = None,
        quality: float | None = None,
        lossless: bool = False,
        side_by_side: bool = False,
        overwrite: bool = False,
        resume: bool = True,
        start: float | None = None,
        end: float | None = None,
        frame_rate: float = 25.0,
        filters: str | os.PathLike[str] | None = None,
        max_pixels: int = MAX_PIXELS,
        allow_truncated: bool = False,
        hdr_as_is: bool = False,
    ) -> VideoHarmonizationOutput | Iterator[Any]:
        """Harmonize a clip.

        Samples of the clip that the mask does not touch go to the encoder as they are. The filters of all
        frames are predicted first and smoothed over time, then the clip is read again and rendered. A call
        that was stopped goes on where it was when it is repeated.

        Args:
            composite: A video file; a folder of frames, or a pattern such as `frames/%05d.png`; or, without
                `output`, an iterable of what `load_picture` takes.
            mask: The foreground of each frame: a video, a folder, one still picture for all frames; for an
                iterable composite an iterable of masks, or one mask. Frames are matched by number when there
                are as many masks as frames, else by time.
            output: File or, for frames, folder to write. None returns a generator of frames, smoothed from
                the past alone.
            strength: 0 returns the input, 1 the model's result, values between blend the two.
            reference_mask: Which part of the background to harmonize to, as `mask`.
            smoothing: "two-pass" (both sides, the default for files), "causal" (the past alone), "shot" (one
                correction a shot) or "none".
            time_constant: Seconds of smoothing; 0.5 by default.
            predict_every: Run the model on every n-th frame only, and interpolate.
            cuts: "auto" finds the cuts of the clip; a list gives the first frame of each shot but the first;
                None treats the clip as one shot.
            mask_end: What to do where the masks end early: "error", "hold" the last mask, "stop" there, or
                "pass" the rest unchanged.
            codec: Encoder to use instead of that of the input.
            quality: Constant rate factor of the encoder, lower is better.
            lossless: Write FFV1 (in a .mkv file) with the input's own samples.
            side_by_side: Also write OUT_before_after.
            overwrite: Whether files that exist may be replaced.
            resume: Go on with a job that was stopped; else begin anew.
            start: First second of the clip to read.
            end: Second to stop at.
            frame_rate: Frames a second of folders and iterables.
            filters: File with the smoothed filters (.npz): read, and the model not run, if it exists; written
                if not.
            max_pixels: Refuse larger frames.
            allow_truncated: Read what is left of a damaged file.
            hdr_as_is: Treat code values of PQ files as sRGB ones.

        Returns:
            What was written, or a generator of frames.

        Raises:
            InputError: A clip, mask or argument that cannot be used; nothing is left behind.
            OutputError: The result cannot be written.
        """
        method = smoothing or ("causal" if output is None else "two-pass")
        constant = TIME_CONSTANT if time_constant is None else time_constant
        check_settings(strength, method, constant, predict_every, cuts)
        if output is None:
            return self.stream(
                composite,
                mask,
                strength=strength,
                smoothing=method,
                time_constant=constant,
                frame_rate=frame_rate,
            )
        reading = {"max_pixels": max_pixels, "allow_truncated": allow_truncated, "hdr_as_is": hdr_as_is}
        if not isinstance(composite, str | os.PathLike):
            raise InputTypeError(
                "composite",
                f"is a {type(composite).__name__}",
                "With `output`, give a video file or a folder of frames.",
            )
        clip = open_clip(composite, rate=frame_rate, **reading)
        masks = MaskClip(mask, clip, mask_end, frame_rate, reading=reading)
        reference = None
        if reference_mask is not None:
            reference = MaskClip(reference_mask, clip, "hold", frame_rate, "reference_mask", reading)
        return self.harmonize_source(
            CompositeSource(clip, masks, reference, start, end),
            output,
            strength=strength,
            smoothing=method,
            time_constant=constant,
            predict_every=predict_every,
            cuts=cuts,
            codec=codec,
            quality=quality,
            lossless=lossless,
            side_by_side=side_by_side,
            overwrite=overwrite,
            resume=resume,
            filters=filters,
        )

    def paste(
        self,
        foreground: str | os.PathLike[str],
        background: str | os.PathLike[str],
        *,
        output: str | os.PathLike[str],
        at: tuple[int, int] | None = None,
        scale: float = 1.0,
        loop_background: bool = False,
        audio: str = "background",
        start: float | None = None,
        end: float | None = None,
        frame_rate: float = 25.0,
        reading: dict[str, Any] | None = None,
        **options: Any,
    ) -> VideoHarmonizationOutput:
        """Paste a cut-out that moves on a background clip, and harmonize it.

        Args:
            foreground: Clip with an alpha channel, matched with the background by time.
            background: Clip whose size, timestamps and sound the result has.
            output: File or folder to write.
            at: Left and top of the foreground in pixels of the background; centred by default.
            scale: Size of the foreground relative to its own.
            loop_background: Repeat a background that is shorter than the foreground.
            audio: "background" or "foreground".
            start: First second of the background to read.
            end: Second to stop at.
            frame_rate: Frames a second of folders.
            reading: `max_pixels`, `allow_truncated` and `hdr_as_is`, see `__call__`.
            options: Arguments of `harmonize_source`.

        Raises:
            InputError: A clip or argument that cannot be used.
            OutputError: The result cannot be written.
        """
        if audio not in ("background", "foreground"):
            raise InputError("audio", f"is {audio!r}", "Choose background or foreground.")
        source = open_pasted(
            foreground,
            background,
            rate=frame_rate,
            reading=reading or {},
            at=at,
            scale=scale,
            loop=loop_background,
            start=start,
            end=end,
        )
        return self.harmonize_source(source, output, audio=audio, **options)

    def harmonize_source(
        self,
        source: Source,
        output: str | os.PathLike[str],
        *,
        strength: float = 1.0,
        smoothing: str = "two-pass",
        time_constant: float = TIME_CONSTANT,
        predict_every: int = 1,
        cuts: str | list[int] | None = "auto",
        codec: str | None = None,
        quality: float | None = None,
        lossless: bool = False,
        side_by_side: bool = False,
        audio: str = "background",
        overwrite: bool = False,
        resume: bool = True,
        filters: str | os.PathLike[str] | None = None,
    ) -> VideoHarmonizationOutput:
        """Harmonize frames that are ready to be read; arguments as in `__call__`."""
        settings = check_settings(strength, smoothing, time_constant, predict_every, cuts)
        if isinstance(settings.cuts, list):
            shots_at(settings.cuts, len(source.times))  # refuses those beyond the end
        place = Path(output)
        result = plan_result(
            source, place, codec=codec, quality=quality, lossless=lossless, beside=side_by_side, audio=audio
        )
        identity: dict[str, Any] = {
            "inputs": identity_of_files(source.files()),
            "frames": [source.chosen.start, source.chosen.stop],
            "placing": source.placing,
            "settings": [*astuple(settings), audio, BATCH],
            "output": result.describe(),
            "model": identity_of_model(self.model),
            "versions": identity_of_versions(),
        }
        model = FilterModel(self.model, restricted=source.restricted)
        saved = None if filters is None else Path(filters)
        plan = None
        if saved is not None and are_saved(saved):
            plan = load_filters(saved, model, source, identity["model"]["weights"])
        with locked(place):
            unfinished = read_job(job_folder(place))
            if unfinished is None or unfinished["result"] is None or not resume:
                check_places(result, source, overwrite=overwrite)
            job = VideoJob(place, identity, resume=resume)
            try:
                if job.result is None:
                    with in_turn(self):
                        self._run(source, result, model, job, settings, saved, plan)
                        self.maybe_free_model_hooks()
                else:
                    job.finish(job.result, _moves_left(result, job))
            except HarmonyError:
                job.remove()
                raise
            except (OSError, ValueError) as error:
                job.remove()
                raise as_output_error(place, error) from error
        assert job.result is not None
        return VideoHarmonizationOutput(path=place, **job.result)

    def _run(
        self,
        source: Source,
        result: Result,
        model: FilterModel,
        job: VideoJob,
        settings: "Settings",
        filters: Path | None,
        plan: RenderPlan | None,
    ) -> None:
        total, weights = len(source.times), job.identity["model"]["weights"]
        with self.progress_bar(total=2 * total if plan is None else total) as progress:
            if plan is None:
                every, cuts = settings.predict_every, settings.cuts
                PredictionPass(source, model, job, every, cuts).run(progress.update)
                plan = plan_rendering(
                    source,
                    model,
                    job,
                    cuts=cuts,
                    smoothing=settings.smoothing,
                    time_constant=settings.time_constant,
                    strength=settings.strength,
                )
                if filters is not None:
                    save_filters(filters, plan, model, source, weights)
            self._render(source, result, model, job, plan, settings.strength, progress.update)
        summary = {
            "frames": total,
            "shots": [(shot.start, shot.stop) for shot in plan.shots],
            "flicker_before": plan.flicker_before,
            "flicker": plan.flicker,
        }
        job.finish(summary, result.join(job, plan.segments))

    @staticmethod
    def _render(
        source: Source,
        result: Result,
        model: FilterModel,
        job: VideoJob,
        plan: RenderPlan,
        strength: float,
        progress: Callable[[int], object],
    ) -> None:
        missing = result.missing(job, plan.segments)
        wanted = np.zeros(len(source.times), bool)
        for number in missing:
            wanted[plan.segments[number]] = True
        progress(int((~wanted).sum()))
        if not missing:
            return
        frames = render_frames(source, model, plan.numbers_at, lambda index: bool(wanted[index]), strength)
        for _ in result.write(job, plan.segments, frames):
            progress(1)

    def stream(
        self,
        composite: Any,
        mask: Any,
        *,
        strength: float = 1.0,
        smoothing: str = "causal",
        time_constant: float = TIME_CONSTANT,
        frame_rate: float = 25.0,
    ) -> Iterator[Any]:
        """Harmonize frames as they come, smoothed from the past alone.

        Args:
            composite: Iterable of what `load_picture` takes.
            mask: Iterable of masks, or one mask for all frames.
            strength: See `__call__`.
            smoothing: "causal" or "none".
            time_constant: Seconds in which the weight of a frame falls to 1/e.
            frame_rate: Frames a second.

        Yields:
            Frames `(H, W, 3)` (RGBA `(H, W, 4)`) in the dtype of the composite.

        Raises:
            InputError: Something that cannot be used, when its frame is reached.
        """
        if smoothing not in ("causal", "none"):
            raise InputError(
                "smoothing", f"{smoothing!r} needs the whole clip", "Use causal, or give `output`."
            )
        if isinstance(composite, str | os.PathLike) or not isinstance(composite, Iterable):
            raise InputTypeError(
                "composite",
                f"is a {type(composite).__name__}",
                "Without `output`, give an iterable of frames.",
            )
        settings = check_settings(strength, smoothing, time_constant)
        return self._stream(composite, mask, settings, check_number("frame_rate", frame_rate, 0.001))

    def _stream(
        self,
        composite: Any,
        mask: Any,
        settings: "Settings",
        frame_rate: float,
    ) -> Iterator[Any]:
        model, smoother = FilterModel(self.model), CausalSmoother(settings.time_constant)
        one_mask = (
            isinstance(mask, str | os.PathLike) or getattr(mask, "ndim", 3) == 2 or hasattr(mask, "mode")
        )
        masks = None if one_mask else iter(mask)
        for index, frame in enumerate(composite):
            picture = load_picture(frame, name=f"composite[{index}]")
            given = mask if masks is None else next(masks, None)
            if given is None:
                raise InputError("mask", f"ends after {index} frames", "Give one for every frame.")
            foreground = load_mask(given, size=picture.size, name=f"mask[{index}]")
            if picture.visible is not None:
                foreground = np.where(picture.visible > 0, foreground, np.float32(0))
            seen = PictureFrame(picture, index)
            smoother.see(seen.thumbnail(*THUMBNAIL))
            numbers = None
            if foreground.sum() >= LEAST_PIXELS:
                check_background(foreground)
                numbers = model.predict([model.view(seen, foreground)])[0]
            if settings.smoothing == "causal":
                numbers = smoother.update(numbers, index / frame_rate)
            if numbers is not None and foreground.any():
                seen = seen.changed(model.changes(seen, foreground, numbers, settings.strength))
            yield seen.picture.to_numpy()


def _moves_left(result: Result, job: VideoJob) -> list[tuple[Path, Path]]:
    """Return the finished files of a job that was stopped while it put them in their places."""
    from harmony_diffusion.video.results import PictureResult

    if isinstance(result, PictureResult):
        return result.join(job, [])
    kinds = list(result.targets.items())[::-1]
    return [(job.folder / f"joined-{kind}{target.path.suffix}", target.path) for kind, target in kinds]


@dataclass(frozen=True)
class Settings:
    """What decides the colours of a result; see `VideoHarmonizationPipeline.__call__`."""

    strength: float
    smoothing: str
    time_constant: float
    predict_every: int
    cuts: str | list[int] | None


def check_settings(
    strength: float,
    smoothing: str,
    time_constant: float,
    predict_every: int = 1,
    cuts: str | Sequence[int] | None = None,
) -> Settings:
    """Check the settings of a call.

    Raises:
        InputError: One is out of range.
    """
    if isinstance(cuts, str):
        if cuts != "auto":
            raise InputError("cuts", f"is {cuts!r}", "Give 'auto', a list of frame numbers, or None.")
    elif cuts is not None:
        cuts = [check_integer("cuts", cut, 1) for cut in cuts]
    return Settings(
        check_number("strength", strength, 0, 1),
        smoothing,
        check_smoothing(smoothing, time_constant),
        check_integer("predict_every", predict_every, 1),
        cuts,
    )
