"""Compare the time of scoring with the time of only decoding the images, with two processes each.

    python eval/bench_evaluation.py                       # a few hundred triples
    python eval/bench_evaluation.py --count 7404 --repeats 3 --output outputs/bench_evaluation.json

The script makes 256x256 triples of prediction, mask and real image: noise over gradients, so that file sizes
are similar to photographs. Two processes decode them with Pillow to arrays; two processes of
`eval/eval_dataset.py --predictions` score them. Both loops are timed from a common start after the imports to
the end of the slower process; evaluation ends when `rows.csv` is written. Rounds alternate. The table shows
medians of wall time, which other load on the machine affects, and of CPU time. The column `load` is decoding
without conversion to arrays. `peak` is the memory of the larger process, also measured with a quarter of the
images.
"""

import argparse
import multiprocessing
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from harmony_diffusion.reports.timing import describe_run, write_report

ROOT = Path(__file__).resolve().parents[1]
SIZE = 256


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--count", type=int, default=400, help="number of triples (default: 400; test set: 7404)"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--protocol", default="default")
    parser.add_argument("--metrics", default="mse,psnr,fmse,fpsnr,bmse", help="names, or all (with SSIM)")
    parser.add_argument("--format", choices=("jpg", "png"), default="jpg", help="format of the pictures")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    return parser.parse_args()


def make_triples(folder: Path, count: int, suffix: str) -> None:
    """Write new random data in the layout of iHarmony4, and predictions."""
    generator = np.random.default_rng(0)
    places = [folder / "data" / "HBench" / name for name in ("composite_images", "masks", "real_images")]
    for place in (*places, folder / "predictions"):
        place.mkdir(parents=True)
    ramp = np.linspace(0, 1, SIZE)
    y, x = np.mgrid[:SIZE, :SIZE]
    names = []
    for i in range(count):
        corners = generator.uniform(0, 255, (2, 2, 3))
        left, right = (corners[0, k] + np.outer(ramp, corners[1, k] - corners[0, k]) for k in (0, 1))
        real = left[:, None] * (1 - ramp)[None, :, None] + right[:, None] * ramp[None, :, None]
        real += generator.normal(0, 6, real.shape)
        cx, cy, radius = generator.integers((60, 60, 15), (200, 200, 90))
        mask = (x - cx) ** 2 + (y - cy) ** 2 < radius**2
        harmonized = real + mask[..., None] * generator.normal(0, 12, 3)
        images = [np.clip(image, 0, 255).astype(np.uint8) for image in (harmonized, real)]
        name = f"b{i}_1_1"
        options = {"quality": 90} if suffix == "jpg" else {}
        Image.fromarray(images[0]).save(folder / "predictions" / f"{name}.{suffix}", **options)
        Image.fromarray(images[1]).save(places[2] / f"b{i}.{suffix}", **options)
        Image.fromarray(mask.astype(np.uint8) * 255).save(places[1] / f"b{i}_1.png")
        os.link(places[2] / f"b{i}.{suffix}", places[0] / f"{name}.{suffix}")  # is not read
        names.append(f"{name}.{suffix}\n")
    for part, share in (("all", count), ("quarter", count // 4)):
        link = folder / part / "HBench"
        link.mkdir(parents=True)
        for place in places:
            (link / place.name).symlink_to(place)
        (link / "HBench_test.txt").write_text("".join(names[:share]))


def decode(paths: list[Path], to_arrays: bool, barrier: Any, times: Any) -> None:
    barrier.wait()
    start, busy = time.perf_counter(), time.process_time()
    for path in paths:
        with Image.open(path) as image:
            if to_arrays:
                np.asarray(image)
            else:
                image.load()
    times.put((time.perf_counter() - start, time.process_time() - busy))


def time_decoding(folder: Path, processes: int, *, to_arrays: bool) -> dict[str, float]:
    data = folder / "data" / "HBench"
    triples = zip(
        *(
            sorted(place.iterdir())
            for place in (folder / "predictions", data / "real_images", data / "masks")
        ),
        strict=True,
    )
    files = [path for triple in triples for path in triple]
    context = multiprocessing.get_context("spawn")
    barrier, times = context.Barrier(processes), context.Queue()
    share = -(-len(files) // processes)
    workers = [
        context.Process(target=decode, args=(files[i * share : (i + 1) * share], to_arrays, barrier, times))
        for i in range(processes)
    ]
    for worker in workers:
        worker.start()
    seconds, busy = zip(*(times.get() for _ in workers), strict=True)
    for worker in workers:
        worker.join()
    name = "decode" if to_arrays else "load"
    return {f"{name}_s": max(seconds), f"{name}_cpu_s": sum(busy)}


def time_evaluation(args: argparse.Namespace, folder: Path, part: str) -> dict[str, float]:
    """Run the script; return the seconds of its loop, its peak in MiB and the seconds from start to end."""
    shutil.rmtree(folder / "rows", ignore_errors=True)
    # `--standalone` chooses a free port.
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", str(args.processes), str(ROOT / "eval" / "eval_dataset.py")]
    command += ["--data", str(folder / part), "--timing"]
    command += ["--predictions", str(folder / "predictions"), "--output", str(folder / "rows")]
    command += ["--protocol", args.protocol, "--metrics", args.metrics]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    start = time.perf_counter()
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    whole = time.perf_counter() - start
    if run.returncode:
        sys.exit(run.stderr)
    # One line per process: "scored in 1.234 s, 1.230 s of CPU, peak 345.6 MiB".
    found = re.findall(r"scored in ([\d.]+) s, ([\d.]+) s of CPU, peak ([\d.]+) MiB", run.stderr)
    seconds, busy, peak = ([float(value) for value in column] for column in zip(*found, strict=True))
    return {
        "score_s": max(seconds),
        "score_cpu_s": sum(busy),
        "peak_mib": max(peak),
        "command_s": whole,
    }


def main() -> None:
    args = parse_args()
    run = describe_run()
    with tempfile.TemporaryDirectory(prefix="bench_evaluation_") as name:
        folder = Path(name)
        make_triples(folder, args.count, args.format)
        quarter = time_evaluation(args, folder, "quarter")
        rounds = []
        for _ in range(args.repeats):
            decoding = [time_decoding(folder, args.processes, to_arrays=kind) for kind in (True, False)]
            rounds.append(decoding[0] | decoding[1] | time_evaluation(args, folder, "all"))
    medians = {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
    print("| triples | format | metrics | time | load | decode | evaluate | ratio | peak | at a quarter |")
    print("|---:|---|---|---|---:|---:|---:|---:|---:|---:|")
    ratios = {}
    for kind, name in (("", "clock"), ("cpu_", "CPU")):
        loading, decoding, scoring = (medians[f"{part}_{kind}s"] for part in ("load", "decode", "score"))
        ratios[name] = scoring / decoding
        print(
            f"| {args.count} | {args.format} | {args.metrics} | {name} | {loading:.2f} s | {decoding:.2f} s "
            f"| {scoring:.2f} s | {scoring / decoding:.2f} | {medians['peak_mib']:.0f} MiB "
            f"| {quarter['peak_mib']:.0f} MiB |"
        )
    print(f"The whole command, with imports: {medians['command_s']:.1f} s")
    if args.output:
        settings = {key: str(value) for key, value in vars(args).items() if key != "output"}
        report = {"bench": "evaluation", "run": run, "settings": settings, "ratios": ratios}
        write_report(args.output, {**report, "medians": medians, "rounds": rounds, "quarter": quarter})


if __name__ == "__main__":
    main()
