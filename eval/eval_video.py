"""Score a model on clips with ground truth: fidelity, flicker and temporal metrics, by way to smooth.

    python eval/eval_video.py --data PATH/TO/HYOUTUBE --model default --output outputs/video/default
    python eval/eval_video.py --data FOLDER_OF_REAL_CLIPS --frame-rate 24 --size 0 --output outputs/video/real
    python eval/make_tables.py default=outputs/video/default/rows.csv --output outputs/video

DATA is HYouTube, or a folder whose subfolders hold the frames of a real clip and their masks; the object is
then recoloured by two fixed transforms, and the clip itself is the ground truth (see
`harmony_diffusion.data.clips`). Clips are resized to `--size` squared, as papers do; 0 keeps their own size.
A clip with cuts is scored as one: those of these sets have none.

Ways: `two-pass`, `causal`, `shot` and `none` smooth over time; `every4` predicts every 4th frame and smooths
in two passes. "composite" and "real" are the clips themselves. OUTPUT gets `rows.csv`, a row a clip and way.
The same command goes on where it was stopped.
"""

import argparse
import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch

from harmony_diffusion.data.clips import ClipSample, list_clips, recolored
from harmony_diffusion.errors import HarmonyError, InputError
from harmony_diffusion.images.output_files import write_atomically
from harmony_diffusion.images.picture import Picture
from harmony_diffusion.images.quick_decoding import read_mask, read_picture
from harmony_diffusion.metrics.functional import fab, fmse, psnr
from harmony_diffusion.metrics.temporal import flicker, r_rtc, tl_dis
from harmony_diffusion.models import load_model
from harmony_diffusion.reports.video_tables import COLUMNS
from harmony_diffusion.video.filters import FilterModel
from harmony_diffusion.video.frame_colors import PictureFrame
from harmony_diffusion.video.in_memory import harmonize_frames
from harmony_diffusion.video.temporal import TIME_CONSTANT

WAYS = {
    "none": ("none", 1),
    "two-pass": ("two-pass", 1),
    "causal": ("causal", 1),
    "shot": ("shot", 1),
    "every4": ("two-pass", 4),
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="test", help="list of HYouTube (default: test)")
    parser.add_argument("--model", default="default", help="a name of `harmony models`, or a saved folder")
    parser.add_argument("--ways", default="none,two-pass,causal", help=f"of {', '.join(WAYS)}")
    parser.add_argument("--time-constant", type=float, default=TIME_CONSTANT, help="seconds")
    parser.add_argument("--frame-rate", type=float, default=25.0)
    parser.add_argument("--size", type=int, default=256, help="side of the square; 0 = as they are")
    parser.add_argument("--limit", type=int, help="only the first clips")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, required=True)
    return parser.parse_args()


def read_clip(clip: ClipSample, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return real frames and composites `(T, H, W, 3)` uint8, and masks `(T, H, W)` float32."""
    real = [read_picture(path) for path in clip.real]
    masks = [read_mask(path).astype(np.float32) for path in clip.masks]
    masks = [mask / 255 if mask.max() > 1 else mask for mask in masks]
    if clip.composites is None:
        composites = [recolored(r, m, clip.transform) for r, m in zip(real, masks, strict=True)]
    else:
        composites = [read_picture(path) for path in clip.composites]
    if size:
        square = (size, size)
        real, composites = (
            [cv2.resize(image, square, interpolation=cv2.INTER_AREA) for image in images]
            for images in (real, composites)
        )
        masks = [cv2.resize(mask, square, interpolation=cv2.INTER_AREA) for mask in masks]
    return np.stack(real), np.stack(composites), np.stack(masks)


def score_clip(filters: FilterModel, clip: ClipSample, args: argparse.Namespace) -> Iterator[dict[str, str]]:
    real, composites, masks = read_clip(clip, args.size)
    frames = [PictureFrame(Picture(image)) for image in composites]
    ways = {way: (WAYS[way][0], args.time_constant, WAYS[way][1]) for way in args.ways}
    whole = [slice(0, len(frames))]
    times = np.arange(len(frames)) / args.frame_rate
    results = {"composite": composites, "real": real}
    made = harmonize_frames(filters, frames, list(masks), times, ways, shots=whole)
    results |= {way: np.stack([frame.picture.pixels for frame in clip]) for way, clip in made.items()}

    truth, before, mask = as_tensor(real), as_tensor(composites), torch.from_numpy(masks)[:, None]
    for way, images in results.items():
        after = as_tensor(images)
        errors = fmse(after, truth, mask)
        scores = {
            "fmse": float(errors[~errors.isnan()].mean()),
            "psnr": float(psnr(after, truth).mean()),
            "fab": float(fab(after, truth, mask).nanmean()),
            "flicker": flicker(after / 255, before / 255, mask) if way != "real" else float("nan"),
            "fr_rtc": r_rtc(after / 255, truth / 255, mask),
            "tl_dis": tl_dis(after / 255, truth / 255, mask),
        }
        cells = {key: "" if np.isnan(value) else f"{value:.10g}" for key, value in scores.items()}
        yield {"name": clip.name, "way": way, "frames": str(len(frames)), **cells}


def as_tensor(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float()


def open_rows(args: argparse.Namespace) -> tuple[Path, set[str]]:
    """Make the folder; return its file of rows, and the clips that are done."""
    settings = {
        key: str(value) for key, value in sorted(vars(args).items()) if key not in ("output", "device")
    }
    args.output.mkdir(parents=True, exist_ok=True)
    target, record = args.output / "rows.csv", args.output / "run.json"
    if record.exists() and json.loads(record.read_text()) != settings:
        raise InputError(args.output, "holds rows of other settings", "Give another folder.")
    write_atomically(record, json.dumps(settings, indent=1).encode(), overwrite=True)
    if not target.exists():
        return target, set()
    with open(target, newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise InputError(target, f"has other columns than {', '.join(COLUMNS)}", "Give another folder.")
    return target, {row["name"] for row in rows}


def main() -> None:
    args = parse_args()
    try:
        args.ways = args.ways.split(",")
        if unknown := set(args.ways) - WAYS.keys():
            raise InputError(
                "--ways", f"{', '.join(sorted(unknown))}: not known", f"Choose of {', '.join(WAYS)}."
            )
        clips = list_clips(args.data, args.split)[: args.limit]
        target, done = open_rows(args)
        filters = FilterModel(load_model(args.model).eval().to(args.device))
        lines = target.read_text() if done else ",".join(COLUMNS) + "\n"
        for number, clip in enumerate(clips, 1):
            if clip.name in done:
                continue
            for row in score_clip(filters, clip, args):
                lines += ",".join(row[column] for column in COLUMNS) + "\n"
            # A clip is written whole, so a stopped run begins with the next one.
            write_atomically(target, lines.encode(), overwrite=True)
            print(f"{number}/{len(clips)} {clip.name}", file=sys.stderr)
    except (HarmonyError, OSError) as error:
        sys.exit(f"eval_video: {error}")
    print(target)


if __name__ == "__main__":
    main()
