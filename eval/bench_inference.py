"""Time inference from file to file, and measure its memory.

    python eval/bench_inference.py --models reinhard harmonizer --sizes 512 2048 --output outputs/bench.json

Times are wall seconds, the median of several runs, in four parts that add up to the total: decode (read the
JPEG composite and the PNG mask), model (thumbnail and network), apply (change the full-size foreground) and
encode (write a JPEG). Memory is the peak of the process minus its memory after loading the model. Each model
runs in its own process. Networks have random weights, which does not change the time. Pictures are synthetic,
3:2, with a foreground ratio of 20 %.

The second table shows the benefit of rendering only the foreground: Harmonizer's six filters on a 3840x2160
picture, from pixels to pixels, without the network.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

# As in the command `harmony`: waiting threads must not spin, because they would occupy the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import cv2
import diffusers
import numpy as np
import torch
from PIL import __version__ as pillow_version

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

PARTS = ("decode_s", "model_s", "apply_s", "encode_s")
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
    parser.add_argument(
        "--in-process", action="store_true", help="measure one model in this process and print JSON"
    )
    return parser.parse_args()


def make_files(folder: Path, height: int, width: int) -> tuple[Path, Path]:
    """Write a composite with structure at all scales, and the mask of an ellipse at its centre."""
    rng = np.random.default_rng(0)
    image = np.zeros((height, width, 3), np.float32)
    for cells, amount in ((4, 0.5), (32, 0.3), (256, 0.2)):
        noise = rng.random((cells, cells, 3), dtype=np.float32)
        image += amount * cv2.resize(noise, (width, height), interpolation=cv2.INTER_LINEAR)
    y, x = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    mask = (y * y + x * x < FOREGROUND_RATIO * 4 / np.pi).astype(np.uint8) * 255
    paths = folder / "composite.jpg", folder / "mask.png"
    Picture(np.rint(255 * image).astype(np.uint8)).save(paths[0], overwrite=True)
    cv2.imwrite(str(paths[1]), mask)
    return paths


def measure_once(model: HarmonyModel, composite: Path, mask_file: Path) -> dict[str, float]:
    """Harmonize from file to file like the pipeline, and time the parts."""
    clock = [time.perf_counter()]
    picture = load_picture(composite)
    mask = load_mask(mask_file, size=picture.size)
    clock.append(time.perf_counter())
    mask, allowed = shown_mask(picture, mask), allowed_background(picture, None)
    thumbnail = make_thumbnail(model, picture, mask, allowed)
    white_box = model.predicts_filters
    predicted = predict_filters(model, thumbnail) if white_box else harmonize_thumbnail(model, thumbnail)
    clock.append(time.perf_counter())
    if white_box:
        result = render_filters(model, picture, mask, predicted)
    else:
        result = render_thumbnail(picture, mask, thumbnail, predicted)
    clock.append(time.perf_counter())
    result.save(composite.with_name("harmonized.jpg"), overwrite=True)
    clock.append(time.perf_counter())
    return dict(zip(PARTS, np.diff(clock).tolist(), strict=True))


def peak_memory() -> float:
    """Return the peak memory of this process, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():
        # `ru_maxrss` of a child process starts at the peak of its parent.
        return next(int(line.split()[1]) for line in status.open() if line.startswith("VmHWM")) / 1024
    return (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 / (1024 if sys.platform == "darwin" else 1)
    )


def measure_model(name: str, sizes: list[int], repeats: int) -> list[dict[str, object]]:
    """Measure one model at every size, in increasing order, so that each memory peak belongs to its size."""
    torch.manual_seed(0)
    model = create_model(name).eval()
    weights = "random" if model.num_parameters() else "none"
    before, rows = peak_memory(), []
    with tempfile.TemporaryDirectory() as folder:
        for size in sorted(sizes):
            height, width = round(size * 2 / 3), size
            files = make_files(Path(folder), height, width)
            measure_once(model, *files)
            runs = [measure_once(model, *files) for _ in range(repeats)]
            times = {part: statistics.median(run[part] for run in runs) for part in PARTS}
            row = {"model": name, "weights": weights, "height": height, "width": width, **times}
            rows.append(row | {"peak_mib": peak_memory() - before})
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
def measure_rendering(repeats: int) -> dict[str, object]:
    """Time Harmonizer's filters on a 4K picture, on packed foreground pixels and on the whole image."""
    model = create_model("harmonizer").eval()
    filters = torch.tensor([[0.2, -0.1, 0.3, 0.25, -0.2, 0.15]])
    with tempfile.TemporaryDirectory() as folder:
        composite, mask_file = make_files(Path(folder), 2160, 3840)
        picture = load_picture(composite)
        mask = load_mask(mask_file, size=picture.size)

    def timed(render: Callable[[], Picture]) -> tuple[float, Picture]:
        start = time.perf_counter()
        result = render()
        return time.perf_counter() - start, result

    packed, plain = [], []
    for _ in range(repeats + 1):
        packed.append(timed(lambda: render_filters(model, picture, mask, filters)))
        plain.append(timed(lambda: render_plainly(picture, mask, filters)))
    first, second = packed[0][1].pixels.astype(np.int16), plain[0][1].pixels.astype(np.int16)
    seconds, plain_seconds = (statistics.median(t for t, _ in runs[1:]) for runs in (packed, plain))
    return {
        "height": 2160,
        "width": 3840,
        "foreground_ratio": float((mask > 0).mean()),
        "packed_seconds": seconds,
        "whole_frame_seconds": plain_seconds,
        "speedup": plain_seconds / seconds,
        "largest_difference_of_255": int(np.abs(first - second).max()),
        "within_bar": seconds <= MOST_SECONDS and plain_seconds / seconds >= LEAST_SPEEDUP,
    }


def describe_machine(threads: int) -> dict[str, object]:
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        names = (line for line in Path("/proc/cpuinfo").open() if line.startswith("model name"))
        cpu = next(names, cpu).split(":")[-1].strip()
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": threads,
        "omp_wait_policy": os.environ["OMP_WAIT_POLICY"],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "numpy": np.__version__,
        "pillow": pillow_version,
        "opencv": cv2.__version__,
    }


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    if args.in_process:
        print(json.dumps(measure_model(args.models[0], args.sizes, args.repeats)))
        return

    report: dict[str, object] = {"machine": describe_machine(args.threads), "models": []}
    print(f"{report['machine']}\n\n| model | weights | size | {' | '.join(PARTS)} | total_s | peak_mib |")
    print("|---|---|---|" + "---:|" * (len(PARTS) + 2))
    for name in args.models:
        options = ["--models", name, "--repeats", str(args.repeats), "--threads", str(args.threads)]
        command = [sys.executable, __file__, "--in-process", *options, "--sizes", *map(str, args.sizes)]
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        for row in json.loads(run.stdout.splitlines()[-1]):
            times = [row[part] for part in PARTS]
            cells = " | ".join(f"{t:.3f}" for t in (*times, sum(times)))
            size = f"{row['width']}x{row['height']}"
            print(f"| {name} | {row['weights']} | {size} | {cells} | {row['peak_mib']:.0f} |", flush=True)
            report["models"].append(row)

    if not args.skip_rendering:
        report["rendering"] = rendering = measure_rendering(args.repeats)
        print("\n| six filters, 3840x2160, foreground 20 % | s |\n|---|---:|")
        print(f"| foreground only, packed | {rendering['packed_seconds']:.3f} |")
        print(f"| whole frame, one filter after another | {rendering['whole_frame_seconds']:.3f} |")
        verdict = "met" if rendering["within_bar"] else "NOT met"
        bar = f"at most {MOST_SECONDS} s and at least {LEAST_SPEEDUP:.0f} times as fast"
        print(f"\n{rendering['speedup']:.1f} times as fast. Bar ({bar}): {verdict}.")

    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        unfinished = args.output.with_name(args.output.name + ".tmp")
        unfinished.write_text(json.dumps(report, indent=2) + "\n")
        os.replace(unfinished, args.output)


if __name__ == "__main__":
    main()
