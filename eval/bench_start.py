"""Measure what starting costs: imports and whole commands, processor time and peak memory of each process.

    taskset -c 0 python eval/bench_start.py --output docs/speed/start.json
    taskset -c 0 python eval/bench_start.py --before ../checkout-of-an-older-commit --rounds 5

The commands harmonize the demo picture at 512 pixels with the default model. `--runtime onnx` uses a model
that `harmony export` wrote before. With `--before`, the same command of an older checkout takes turns with
ours (A B A B) and the outputs are compared; what an older checkout does not have is left out. Ratios are
medians over the pairs. The first round warms up, unless it is the only one.
"""

import argparse
import os
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from PIL import Image, ImageChops

from harmony_diffusion.reports.timing import (
    Spent,
    describe_run,
    median_of,
    ratio,
    run_command,
    take_turns,
    write_report,
)

ROOT = Path(__file__).resolve().parents[1]
ROWS = ("import torch", "import models", "harmony image", "harmony image --runtime onnx")
MOST_OF_BEFORE, MOST_ONNX_SECONDS, MOST_MEMORY = 0.70, 1.5, 0.85


class Case(NamedTuple):
    """A command, the file it writes, and whether an older checkout can run it."""

    command: list[str]
    output: Path | None
    in_older: bool


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--model", default="default")
    parser.add_argument("--size", type=int, default=512, help="long side of the picture")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--before", type=Path, metavar="FOLDER", help="checkout of an older commit")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    return parser.parse_args()


def make_cases(args: argparse.Namespace, folder: Path) -> dict[str, Case]:
    """Write the picture, its mask and the exported model; return what each row runs."""
    for name, suffix in (("composite.jpg", "png"), ("mask.png", "png")):
        with Image.open(ROOT / "examples" / name) as file:
            width, height = args.size, round(args.size * file.height / file.width)
            file.resize((width, height)).save(folder / f"{Path(name).stem}.{suffix}")
    python = [sys.executable, "-W", "ignore"]
    output = folder / "result.png"
    harmonize = [*python, "-m", "harmony_diffusion.cli", "image", str(folder / "composite.png")]
    harmonize += [str(folder / "mask.png"), "-o", str(output), "--overwrite", "--model"]
    exported = folder / "exported"
    cases = {
        "import torch": Case([*python, "-c", "import torch"], None, True),
        "import models": Case([*python, "-c", "import harmony_diffusion.models"], None, True),
        "harmony image": Case([*harmonize, args.model], output, True),
        "harmony image --runtime onnx": Case([*harmonize, str(exported), "--runtime", "onnx"], output, False),
    }
    if "harmony image --runtime onnx" in args.rows:
        run_command([*python, "-m", "harmony_diffusion.cli", "export", args.model, str(exported)], ROOT)
    return {name: cases[name] for name in args.rows}


def measure(name: str, case: Case, rounds: int, before: Path | None) -> dict[str, Any]:
    """Return the figures of one row."""
    checkouts = {"ours": ROOT} | ({"before": before} if before and case.in_older else {})
    peaks: dict[str, list[float]] = {key: [] for key in checkouts}
    pictures: dict[str, Image.Image] = {}

    def timed(key: str) -> Spent:
        spent, peak = run_command(case.command, checkouts[key])
        peaks[key].append(peak)
        if case.output:
            with Image.open(case.output) as file:
                pictures[key] = file.convert("RGB")
        return spent

    turns = {key: partial(timed, key) for key in checkouts}
    times = take_turns(turns, rounds, warm_up=int(rounds > 1))
    medians = {key: median_of(values) for key, values in times.items()}
    memory = {key: sorted(values)[len(values) // 2] for key, values in peaks.items()}
    row: dict[str, Any] = {
        "row": name,
        "cpu_seconds": {key: value.cpu for key, value in medians.items()},
        "wall_seconds": {key: value.wall for key, value in medians.items()},
        "peak_mib": memory,
        "to_before": None,
    }
    if "before" in checkouts:
        row["to_before"] = ratio(times, "ours", "before")
        row["memory_to_before"] = memory["ours"] / memory["before"]
        if pictures:
            different = ImageChops.difference(pictures["ours"], pictures["before"])
            row["largest_difference_of_255"] = max(high for _, high in different.getextrema())
    return row


def cells(row: dict[str, Any]) -> list[str]:
    """Return a row of the table."""

    def both(key: str, form: str) -> list[str]:
        return [format(row[key][side], form) if side in row[key] else "-" for side in ("ours", "before")]

    ratios = [f"{row[key]:.2f}" if row.get(key) else "-" for key in ("to_before", "memory_to_before")]
    return [
        row["row"],
        *both("cpu_seconds", ".2f"),
        *both("wall_seconds", ".2f"),
        *both("peak_mib", ".0f"),
        *ratios,
    ]


def main() -> None:
    args = parse_args()
    run = describe_run(threads=1)
    print(
        "| what | CPU s | before | wall s | before | peak MiB | before | CPU to before | memory to before |\n"
        "|---|" + "---:|" * 8
    )
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, case in make_cases(args, Path(folder)).items():
            rows.append(measure(name, case, args.rounds, args.before))
            print("| " + " | ".join(cells(rows[-1])) + " |", flush=True)
    for row in rows:
        if row["row"] == "harmony image" and row["to_before"]:
            print(f"CPU {row['to_before']:.2f} of before (bar: at most {MOST_OF_BEFORE})")
            print(f"memory {row['memory_to_before']:.2f} of before (bar: at most {MOST_MEMORY})")
        if row["row"].endswith("onnx"):
            print(f"onnx {row['cpu_seconds']['ours']:.2f} s (bar: at most {MOST_ONNX_SECONDS} s)")
    if args.output:
        settings = {"model": args.model, "size": args.size, "rounds": args.rounds}
        write_report(args.output, {"bench": "start", "run": run, "settings": settings, "rows": rows})


if __name__ == "__main__":
    main()
