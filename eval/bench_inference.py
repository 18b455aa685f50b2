"""Time inference from file to file, and measure its memory.

    python eval/bench_inference.py --models reinhard harmonizer --sizes 512 2048 --output outputs/bench.json

Times are seconds of CPU time and of wall time, medians of several runs, in four parts that add up to the
total: decode (read the JPEG composite and the PNG mask), model (thumbnail and network), apply (change the
full-size foreground) and encode (write a JPEG). The ratio is the total divided by decode and encode, in CPU
time. Memory is the peak of the process minus its memory after loading the model; it is also given as a
multiple of the picture's pixels in memory. Each model runs in its own process. Networks have random
weights, which does not change the time. Pictures are synthetic, 3:2, with a foreground ratio of 20 %.
Memory of a 64-megapixel picture (bar: at most 3 times the picture):

    python eval/bench_inference.py --models color_grid --sizes 9798 --repeats 1 --skip-rendering

The second table shows the benefit of rendering only the foreground: Harmonizer's six filters on a 3840x2160
picture, from pixels to pixels, without the network.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# As in the command `harmony`: waiting threads must not spin, because they would occupy the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import cv2
import numpy as np
import torch

from harmony_diffusion import color
from harmony_diffusion.highres.harmonize import (
    allowed_background,
    harmonize_thumbnail,
    predict_filters,
    render_filters,
    render_thumbnail,
    shown_mask,
)
from harmony_diffusion.highres.thumbnail import make_thumbnail
from harmony_diffusion.images.masks import load_mask
from harmony_diffusion.images.picture import Picture, load_picture
from harmony_diffusion.models import MODELS, create_model
from harmony_diffusion.models.contract import HarmonyModel
from harmony_diffusion.models.harmonizer import FILTER_NAMES
from harmony_diffusion.models.layers import blend
from harmony_diffusion.process import keep_freed_memory
from harmony_diffusion.reports.timing import describe_run, spend, write_report

PARTS = ("decode", "model", "apply", "encode")
MOST_MEMORY = 3  # times the picture, for 64 megapixels
_LARGEST_DRAWN = 2048
FOREGROUND_RATIO = 0.2
MOST_SECONDS, LEAST_SPEEDUP = 0.5, 3.0


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="NAME")
    parser.add_argument(
        "--sizes", nargs="+", type=int, default=[512, 2048, 4096], help="long sides in pixels"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    parser.add_argument("--skip-rendering", action="store_true", help="skip the second table")
    parser.add_argument("--in-process", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def make_files(folder: Path, height: int, width: int) -> tuple[Path, Path]:
    """Write a composite with structure at all scales, and the mask of an ellipse at its centre."""
    paths = folder / f"composite_{width}.jpg", folder / f"mask_{width}.png"
    if paths[0].exists():
        return paths
    rng = np.random.default_rng(0)
    scale = min(1.0, _LARGEST_DRAWN / width)
    drawn = round(width * scale), round(height * scale)
    image = np.zeros((drawn[1], drawn[0], 3), np.float32)
    for cells, amount in ((4, 0.5), (32, 0.3), (256, 0.2)):
        noise = rng.random((cells, cells, 3), dtype=np.float32)
        image += amount * cv2.resize(noise, drawn, interpolation=cv2.INTER_LINEAR)
    pixels = cv2.resize(np.rint(255 * image).astype(np.uint8), (width, height))
    Picture(pixels).save(paths[0], overwrite=True)
    y, x = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    cv2.imwrite(str(paths[1]), (y * y + x * x < FOREGROUND_RATIO * 4 / np.pi).astype(np.uint8) * 255)
    return paths


def measure_once(model: HarmonyModel, composite: Path, mask_file: Path) -> dict[str, float]:
    """Harmonize from file to file like the pipeline, and time the parts on both clocks."""
    clock = [(time.process_time(), time.perf_counter())]
    picture = load_picture(composite)
    mask = load_mask(mask_file, size=picture.size)
    clock.append((time.process_time(), time.perf_counter()))
    mask, allowed = shown_mask(picture, mask), allowed_background(picture, None)
    thumbnail = make_thumbnail(model, picture, mask, allowed)
    white_box = model.predicts_filters
    predicted = predict_filters(model, thumbnail) if white_box else harmonize_thumbnail(model, thumbnail)
    clock.append((time.process_time(), time.perf_counter()))
    if white_box:
        result = render_filters(model, picture, mask, predicted)
    else:
        result = render_thumbnail(picture, mask, thumbnail, predicted)
    clock.append((time.process_time(), time.perf_counter()))
    del picture, mask, allowed, thumbnail, predicted  # as the command does
    result.save(composite.with_name("harmonized.jpg"), overwrite=True)
    clock.append((time.process_time(), time.perf_counter()))
    cpu, wall = np.diff(clock, axis=0).T.tolist()
    times = {f"{part}_cpu_s": seconds for part, seconds in zip(PARTS, cpu, strict=True)}
    return times | {f"{part}_s": seconds for part, seconds in zip(PARTS, wall, strict=True)}


def peak_memory() -> float:
    """Return the peak memory of this process, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():
        # `ru_maxrss` of a child process starts at the peak of its parent.
        return next(int(line.split()[1]) for line in status.open() if line.startswith("VmHWM")) / 1024
    return (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 / (1024 if sys.platform == "darwin" else 1)
    )


def measure_model(name: str, sizes: list[int], repeats: int, folder: Path) -> list[dict[str, Any]]:
    """Measure one model at every size, in increasing order, so that each memory peak belongs to its size."""
    torch.manual_seed(0)
    model = create_model(name).eval()
    weights = "random" if model.num_parameters() else "none"
    before, rows = peak_memory(), []
    for size in sorted(sizes):
        height, width = round(size * 2 / 3), size
        files = make_files(folder, height, width)
        measure_once(model, *files)
        runs = [measure_once(model, *files) for _ in range(repeats)]
        times = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        cpu = {part: times[f"{part}_cpu_s"] for part in PARTS}
        row: dict[str, Any] = {"model": name, "weights": weights, "height": height, "width": width, **times}
        row["to_decode_and_encode"] = sum(cpu.values()) / (cpu["decode"] + cpu["encode"])
        row["peak_mib"] = peak_memory() - before
        rows.append(row | {"peak_to_picture": row["peak_mib"] / (height * width * 3 / 2**20)})
    return rows


def render_plainly(picture: Picture, mask: np.ndarray, filters: torch.Tensor) -> Picture:
    """Apply the six filters one after another to the whole image tensor."""
    composite = picture.to_tensor()[None]
    frame = composite
    for name, argument in zip(FILTER_NAMES, filters.unbind(1), strict=True):
        frame = getattr(color, name)(frame, argument)
    frame = blend(frame, composite, torch.from_numpy(mask)[None, None])
    return picture.with_pixels(picture.write_srgb(frame[0].permute(1, 2, 0).numpy()))


@torch.no_grad()
def measure_rendering(repeats: int) -> dict[str, Any]:
    """Time Harmonizer's filters on a 4K picture, on packed pixels and on the whole image, in turn."""
    model = create_model("harmonizer").eval()
    filters = torch.tensor([[0.2, -0.1, 0.3, 0.25, -0.2, 0.15]])
    with tempfile.TemporaryDirectory() as folder:
        composite, mask_file = make_files(Path(folder), 2160, 3840)
        picture = load_picture(composite)
        mask = load_mask(mask_file, size=picture.size)

    def timed(render: Callable[[], Picture]) -> tuple[float, float, Picture]:
        results: list[Picture] = []
        spent = spend(lambda: results.append(render()))
        return spent.cpu, spent.wall, results[0]

    packed, plain = [], []
    for _ in range(repeats + 1):
        packed.append(timed(lambda: render_filters(model, picture, mask, filters)))
        plain.append(timed(lambda: render_plainly(picture, mask, filters)))
    first, second = packed[0][2].pixels.astype(np.int16), plain[0][2].pixels.astype(np.int16)
    (cpu, seconds), (plain_cpu, plain_seconds) = (
        [statistics.median(run[clock] for run in runs[1:]) for clock in (0, 1)] for runs in (packed, plain)
    )
    return {
        "height": 2160,
        "width": 3840,
        "foreground_ratio": float((mask > 0).mean()),
        "packed_seconds": seconds,
        "packed_cpu_seconds": cpu,
        "whole_frame_seconds": plain_seconds,
        "whole_frame_cpu_seconds": plain_cpu,
        "speedup": plain_cpu / cpu,
        "largest_difference_of_255": int(np.abs(first - second).max()),
        "within_bar": cpu <= MOST_SECONDS and plain_cpu / cpu >= LEAST_SPEEDUP,
    }


def print_row(row: dict[str, Any]) -> None:
    cpu = [row[f"{part}_cpu_s"] for part in PARTS]
    wall = sum(row[f"{part}_s"] for part in PARTS)
    cells = " | ".join(f"{seconds:.3f}" for seconds in (*cpu, sum(cpu), wall))
    print(
        f"| {row['model']} | {row['weights']} | {row['width']}x{row['height']} | {cells} | "
        f"{row['to_decode_and_encode']:.2f} | {row['peak_mib']:.0f} | {row['peak_to_picture']:.2f} |",
        flush=True,
    )


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory(32 << 20)  # as the command does
    if args.in_process:
        print(json.dumps(measure_model(args.models[0], args.sizes, args.repeats, args.in_process)))
        return

    report: dict[str, Any] = {"bench": "inference", "run": describe_run(args.threads), "models": []}
    heads = [f"{part}, CPU s" for part in PARTS]
    print(
        f"{report['run']}\n\n| model | weights | size | {' | '.join(heads)} | total CPU s | wall s |", end=""
    )
    print(" to decode and encode | peak MiB | to the picture |")
    print("|---|---|---|" + "---:|" * (len(PARTS) + 5))
    with tempfile.TemporaryDirectory() as folder:
        for size in args.sizes:  # here, as drawing them needs more memory than harmonizing them
            make_files(Path(folder), round(size * 2 / 3), size)
        for name in args.models:
            options = ["--models", name, "--repeats", str(args.repeats), "--threads", str(args.threads)]
            command = [sys.executable, __file__, "--in-process", folder, *options]
            command += ["--sizes", *map(str, args.sizes)]
            run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            for row in json.loads(run.stdout.splitlines()[-1]):
                report["models"].append(row)
                print_row(row)

    if not args.skip_rendering:
        report["rendering"] = rendering = measure_rendering(args.repeats)
        print("\n| six filters, 3840x2160, foreground 20 % | CPU s |\n|---|---:|")
        print(f"| foreground only, packed | {rendering['packed_cpu_seconds']:.3f} |")
        print(f"| whole frame, one filter after another | {rendering['whole_frame_cpu_seconds']:.3f} |")
        verdict = "met" if rendering["within_bar"] else "NOT met"
        bar = f"at most {MOST_SECONDS} s and at least {LEAST_SPEEDUP:.0f} times as fast"
        print(f"\n{rendering['speedup']:.1f} times as fast. Bar ({bar}): {verdict}.")

    if args.output:
        write_report(args.output, report)


if __name__ == "__main__":
    main()
