"""`harmony video`: harmonize a clip."""

import argparse
from typing import Any

from harmony_diffusion.cli.number_types import integer, number, position
from harmony_diffusion.cli.terminal import show
from harmony_diffusion.errors import InputError


def add_command(commands: Any) -> None:
    """Describe `harmony video`."""
    video = commands.add_parser(
        "video",
        help="harmonize a clip",
        description="Harmonize every frame of a clip without flicker. Sound and timestamps stay as they are. "
        "Give COMPOSITE and MASK, or --foreground and --background.",
    )
    video.add_argument("composite", metavar="COMPOSITE", nargs="?", help="video, folder or pattern of frames")
    video.add_argument("mask", metavar="MASK", nargs="?", help="video, folder, or one picture for all frames")
    video.add_argument(
        "-o", "--output", metavar="OUT", required=True, help="file to write; for frames a folder"
    )
    video.add_argument("--model", help="a name of `harmony models` with weights, or a saved folder")
    video.add_argument(
        "--strength", type=number(0, 1), default=1.0, help="0 keeps the input, 1 is full (default: 1)"
    )
    video.add_argument("--reference-mask", metavar="FILE", help="white on the background to harmonize to")
    video.add_argument(
        "--mask-end",
        choices=("error", "hold", "stop", "pass"),
        default="error",
        help="where the masks end early: refuse, hold the last, stop, or pass the rest (default: error)",
    )
    _add_pasting(video)
    _add_smoothing(video)
    _add_writing(video)
    video.add_argument("--start", type=number(0), metavar="SECONDS", help="first second to read")
    video.add_argument("--end", type=number(0), metavar="SECONDS", help="second to stop at")
    video.add_argument(
        "--frame-rate", type=number(0.001), default=25.0, help="frames a second of folders (default: 25)"
    )
    video.add_argument("--max-pixels", type=integer(1), default=100_000_000, help="refuse larger frames")
    video.add_argument("--allow-truncated", action="store_true", help="read what is left of a damaged file")
    video.add_argument(
        "--hdr", choices=("refuse", "as-is"), default="refuse", help="what to do with PQ files"
    )
    video.add_argument("--debug", action="store_true", help="show the traceback of an error")
    video.set_defaults(run=run_video)


def _add_pasting(video: argparse.ArgumentParser) -> None:
    pasting = video.add_argument_group("a cut-out that moves")
    pasting.add_argument("--foreground", metavar="FG", help="clip with an alpha channel")
    pasting.add_argument("--background", metavar="BG", help="clip to paste it on")
    pasting.add_argument("--at", type=position, metavar="X,Y", help="left and top (default: centred)")
    pasting.add_argument(
        "--scale", type=number(0.001), default=1.0, help="size of the foreground (default: 1)"
    )
    pasting.add_argument("--loop-background", action="store_true", help="repeat a background that is shorter")
    pasting.add_argument("--audio", choices=("background", "foreground"), default="background")


def _add_smoothing(video: argparse.ArgumentParser) -> None:
    smoothing = video.add_argument_group("smoothing")
    smoothing.add_argument(
        "--smoothing",
        choices=("two-pass", "causal", "shot", "none"),
        default="two-pass",
        help="over both sides, the past, the whole shot, or not at all (default: two-pass)",
    )
    smoothing.add_argument(
        "--time-constant", type=number(0.001), metavar="SECONDS", help="how far (default: 0.5)"
    )
    smoothing.add_argument(
        "--predict-every", type=integer(1), default=1, metavar="N", help="run the model on every Nth frame"
    )
    smoothing.add_argument("--cuts", type=_frame_numbers, metavar="N,N", help="first frames of new shots")
    smoothing.add_argument("--no-cuts", action="store_true", help="treat the clip as one shot")
    smoothing.add_argument(
        "--filters", metavar="FILE", help=".npz to save the filters to, or to take them from"
    )


def _add_writing(video: argparse.ArgumentParser) -> None:
    writing = video.add_argument_group("output")
    writing.add_argument("--codec", help="encoder to use (default: that of the input)")
    writing.add_argument("--quality", type=number(0, 63), metavar="CRF", help="lower is better and larger")
    writing.add_argument("--lossless", action="store_true", help="FFV1; needs a .mkv file")
    writing.add_argument("--side-by-side", action="store_true", help="also write OUT_before_after")
    writing.add_argument("--overwrite", action="store_true", help="replace files that exist")
    writing.add_argument("--restart", action="store_true", help="begin a job anew that was stopped")


def run_video(args: argparse.Namespace) -> None:
    """Harmonize one clip, and print what it became."""
    pasted = args.foreground is not None or args.background is not None
    if pasted and (args.foreground is None or args.background is None or args.composite is not None):
        raise InputError("--foreground and --background", "go together, and without COMPOSITE and MASK")
    if not pasted and (args.composite is None or args.mask is None):
        raise InputError("harmony video", "needs COMPOSITE and MASK, or --foreground and --background")
    placing = {
        "--at": args.at is not None,
        "--scale": args.scale != 1,
        "--loop-background": args.loop_background,
        "--audio": args.audio != "background",
    }
    masking = {"--reference-mask": args.reference_mask is not None, "--mask-end": args.mask_end != "error"}
    for option, is_given in (masking if pasted else placing).items():
        if is_given:
            wanted = "COMPOSITE and MASK" if pasted else "--foreground and --background"
            raise InputError(option, f"belongs to {wanted}", "Leave it out.")
    if args.no_cuts and args.cuts is not None:
        raise InputError("--cuts and --no-cuts", "exclude each other")
    from harmony_diffusion.pipelines.video import VideoHarmonizationPipeline

    pipe = VideoHarmonizationPipeline.from_pretrained(args.model or "default")
    options: dict[str, Any] = {
        "strength": args.strength,
        "smoothing": args.smoothing,
        "predict_every": args.predict_every,
        "cuts": None if args.no_cuts else "auto" if args.cuts is None else args.cuts,
        "codec": args.codec,
        "quality": args.quality,
        "lossless": args.lossless,
        "side_by_side": args.side_by_side,
        "overwrite": args.overwrite,
        "resume": not args.restart,
        "filters": args.filters,
    }
    if args.time_constant is not None:
        options["time_constant"] = args.time_constant
    window = {"start": args.start, "end": args.end, "frame_rate": args.frame_rate}
    reading = {
        "max_pixels": args.max_pixels,
        "allow_truncated": args.allow_truncated,
        "hdr_as_is": args.hdr == "as-is",
    }
    result: Any
    if pasted:
        result = pipe.paste(
            args.foreground,
            args.background,
            output=args.output,
            at=args.at,
            scale=args.scale,
            loop_background=args.loop_background,
            audio=args.audio,
            reading=reading,
            **window,
            **options,
        )
    else:
        result = pipe(
            args.composite,
            args.mask,
            output=args.output,
            reference_mask=args.reference_mask,
            mask_end=args.mask_end,
            **window,
            **reading,
            **options,
        )
    shots = f"{len(result.shots)} shot{'s' if len(result.shots) > 1 else ''}"
    flicker = f"flicker {result.flicker_before:.1f} -> {result.flicker:.1f}"
    show(f"{result.path}\n{result.frames} frames, {shots}, {flicker}")


def _frame_numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected frame numbers N,N, got {text[:40]!r}") from None
