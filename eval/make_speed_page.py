"""Make docs/speed.md from the JSON files that the benches wrote.

    python eval/make_speed_page.py
    python eval/make_speed_page.py --folder docs/speed --output docs/speed.md

Each section is made from one file, and is omitted if that file is missing. Nothing on the page is written by
hand. To change a text, edit this script; to change a figure, measure again.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from harmony_diffusion.images.output_files import write_atomically

DOCS = Path(__file__).resolve().parents[1] / "docs"
STEPS_OF_TRAINING = 6  # of `bench_programs.py`
HEAD = """# Speed

This page is made by `python eval/make_speed_page.py` from the files in `docs/speed/`, which the benchmarks
write. Ratios and CPU times are valid on a machine with other load. Wall times are shown together with the
load average before the run.

The programs of this project (`harmony`, `train/`, `eval/`) keep freed memory for the next image, which
avoids page faults. `HARMONY_KEEP_MEMORY=0` switches this off. Importing the library does not change the
allocator. In your own program, set `OMP_WAIT_POLICY=PASSIVE`, as these programs do. Otherwise PyTorch's
threads spin while they wait and occupy cores that other threads need.
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=DOCS / "speed", help="JSON files of the benches")
    parser.add_argument("--output", type=Path, default=DOCS / "speed.md")
    return parser.parse_args()


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1) -> str:
    """Return a Markdown table; the first `texts` columns are aligned left, the others right."""
    rule = ["---"] * texts + ["---:"] * (len(heads) - texts)
    return "\n".join(
        f"| {' | '.join(row)} |" if row is not rule else f"|{'|'.join(row)}|" for row in (heads, rule, *rows)
    )


def number(value: float | None, form: str = ".2f") -> str:
    return "-" if value is None else format(value, form)


def machine(report: dict[str, Any]) -> str:
    """Return a line about the machine and its load."""
    run = report["run"]
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items() if name != "python")
    threads = f", {run['threads']} thread" if run["threads"] == 1 else f", {run['threads']} threads"
    load = f"load {run['load_before']} before the run"
    if run["loaded"]:
        load += " (other programs ran: wall times are not reliable)"
    return f"{run['cores']} cores of {run['cpu']}{threads if run['threads'] else ''}; {load}; {versions}."


def start_section(report: dict[str, Any]) -> str:
    heads = ["what", "CPU s", "before", "ratio", "wall s", "peak MiB", "before", "ratio"]
    rows = []
    for row in report["rows"]:
        cpu, peak = row["cpu_seconds"], row["peak_mib"]
        rows.append(
            [
                f"`{row['row']}`",
                number(cpu["ours"]),
                number(cpu.get("before")),
                number(row["to_before"]),
                number(row["wall_seconds"]["ours"]),
                number(peak["ours"], ".0f"),
                number(peak.get("before"), ".0f"),
                number(row.get("memory_to_before")),
            ]
        )
    return f"""## Start

Complete commands on a picture of {report["settings"]["size"]} pixels, and the imports that they need.
"Before" is the commit at which `harmony image` still imported the pipelines. Most of the remaining time is
the import of PyTorch and of the model base classes of diffusers. `--runtime onnx` needs neither.

{table(heads, rows)}

Command: `taskset -c 0 python eval/bench_start.py --before CHECKOUT`. {machine(report)}
"""


def programs_section(report: dict[str, Any]) -> str:
    heads = ["program", "CPU s", "before", "ratio", "wall s", "before", "ratio", "pixels that differ"]
    rows = []
    for row in report["rows"]:
        cpu, wall, different = row["cpu_seconds"], row["wall_seconds"], row.get("different_pixels")
        times = [number(cpu["ours"]), number(cpu["before"]), number(row["to_before"])]
        times += [number(wall["ours"]), number(wall["before"]), number(row["wall_to_before"])]
        rows.append([f"`{row['row']}`", *times, "-" if different is None else f"{different:.2%}"])
    settings = report["settings"]
    return f"""## Programs

`eval_fid` on two folders of {settings["pictures"]} pictures; {STEPS_OF_TRAINING} steps of training iDIH with
8 pictures of 256 pixels; {settings["calls"]} calls of the pipeline on a picture of 1024x768 pixels. "Before"
is the older commit. Pixels that differ from its result do so by at most 1 of 255.

{table(heads, rows)}

Command: `taskset -c 0 python eval/bench_programs.py --before CHECKOUT`. {machine(report)}
"""


def classical_section(report: dict[str, Any]) -> str:
    heads = [
        "method",
        "library",
        "CPU ms",
        "library, ms",
        "to library",
        "before",
        "to before",
        "difference of 255",
    ]
    rows = []
    for row in report["rows"]:
        cpu, difference = row["cpu_ms"], row.get("difference_to_before_of_255")
        rows.append(
            [
                f"`{row['method']}`",
                row["peer"] or "-",
                number(cpu["ours"], ".0f"),
                number(cpu.get("peer"), ".0f"),
                number(row["to_peer"]),
                number(cpu.get("before"), ".0f"),
                number(row["to_before"]),
                number(difference and difference["mean"], ".4f"),
            ]
        )
    width, height = report["settings"]["size"]
    return f"""## Methods without weights

One picture of {width}x{height} pixels, foreground ratio 20 %, from array to array, compared with libraries
that implement the same method. "Difference" is the mean absolute difference between the results of this and
the older commit. IDT is sensitive to rounding: after each rotation, pixels of equal colour differ by
rounding errors, and the older code ranked them by these errors.

{table(heads, rows, 2)}

Command: `taskset -c 0 python eval/bench_classical.py --before CHECKOUT`. {machine(report)}
"""


def inference_section(report: dict[str, Any]) -> str:
    parts = ("decode", "model", "apply", "encode")
    heads = ["model", *parts, "total CPU s", "wall s", "to decode and encode", "peak MiB"]
    rows = []
    for row in report["models"]:
        cpu = [row[f"{part}_cpu_s"] for part in parts]
        wall = sum(row[f"{part}_s"] for part in parts)
        times = [number(seconds, ".3f") for seconds in (*cpu, sum(cpu), wall)]
        last = [number(row["to_decode_and_encode"]), number(row["peak_mib"], ".0f")]
        rows.append([f"`{row['model']}`", *times, *last])
    first = report["models"][0]
    text = f"""## From file to file

One picture of {first["width"]}x{first["height"]} pixels, 8-bit JPEG, foreground ratio 20 %, random weights.
The parts are CPU seconds. Peak memory excludes the loaded model.

{table(heads, rows)}

Command: `python eval/bench_inference.py --sizes {first["width"]} --models …`. {machine(report)}
"""
    if "rendering" in report:
        packed, whole = (report["rendering"][f"{key}_cpu_seconds"] for key in ("packed", "whole_frame"))
        text += f"""
Harmonizer's six filters on a 3840x2160 picture take {packed:.3f} CPU seconds on the packed foreground pixels.
Applied one after another to the whole image, they take {whole:.3f} s ({whole / packed:.1f} times as long).
"""
    return text


def large_section(report: dict[str, Any]) -> str:
    (row,) = report["models"]
    pixels = row["width"] * row["height"]
    return f"""## Memory of large pictures

`{row["model"]}` on {row["width"]}x{row["height"]} ({pixels / 1e6:.0f} megapixels, {pixels * 3 / 2**20:.0f}
MiB of pixels), from file to file: the peak is {row["peak_mib"]:.0f} MiB above the loaded model,
{row["peak_to_picture"]:.2f} times the picture.

Command: `python eval/bench_inference.py --models {row["model"]} --sizes {row["width"]} --repeats 1
--skip-rendering`.
"""


def diffusion_section(report: dict[str, Any]) -> str:
    heads = ["row", "CPU s", "wall s", "to its floor", "to diffusers", "memory MiB"]
    rows = []
    for row in report["rows"]:
        ratios = [number(row["to_floor"], ".3f"), number(row["to_diffusers"], ".3f")]
        times = [number(row[key], ".2f") for key in ("cpu_seconds", "wall_seconds")]
        rows.append([f"`{row['row']}`", *times, *ratios, number(row["memory_mib"], ".0f")])
    settings = report["settings"]
    options = " ".join(f"--{key} {settings[key]}" for key in ("components", "size", "steps", "repeats"))
    return f"""## Diffusion

The pipeline with guidance and two ControlNets (`ours`), the pipeline of diffusers, and the forward passes
alone (`floor`, which embeds the control images once, as our pipeline does). The rows `_cond` run the
ControlNets only on the conditional half of the batch.

{table(heads, rows)}

Command: `python eval/bench_diffusion.py {options}`. {machine(report)}
"""


def runtime_section(report: dict[str, Any]) -> str:
    others = sorted({key for row in report["ratios"].values() for key in row if not key.startswith("mill")})
    rows = [
        [name, number(row["milliseconds of torch"], ".0f"), *(number(row.get(key)) for key in others)]
        for name, row in report["ratios"].items()
    ]
    return f"""## Exported models

CPU time of PyTorch divided by CPU time of the runtime (above 1: faster than PyTorch).

{table(["what", "PyTorch, ms", *others], rows)}

Command: `taskset -c 0 python eval/bench_runtime.py`. {machine(report)}
"""


def networks_section(report: dict[str, Any]) -> str:
    """Return a table with a column for each key of the rows."""
    size = 256 if report["bench"].endswith("256") else 1024
    keys = [key for key in report["rows"][0] if key != "model"]
    rows = []
    for row in report["rows"]:
        values = [row[key] for key in keys]
        whole = [
            isinstance(value, int) or key.endswith(("ms", "mib"))
            for key, value in zip(keys, values, strict=True)
        ]
        cells = [number(v, ",.0f" if w else ".2f") for v, w in zip(values, whole, strict=True)]
        rows.append([f"`{row['model']}`", *cells])
    heads = ["network", *(key.replace("_", " ") for key in keys)]
    return f"""## Networks at {size}x{size}

{table(heads, rows)}

Command: `{report["command"]}`. {report["note"]} "-": not run. Networks that predict filters read a
thumbnail of a picture of any size. HDNet omits the parameters that the official code stores and never uses.
"""


SECTIONS: dict[str, Callable[[dict[str, Any]], str]] = {
    "start": start_section,
    "programs": programs_section,
    "inference": inference_section,
    "large": large_section,
    "classical": classical_section,
    "diffusion": diffusion_section,
    "runtime": runtime_section,
    "networks_256": networks_section,
    "networks_1024": networks_section,
}


def main() -> None:
    args = parse_args()
    parts = [HEAD]
    for name, section in SECTIONS.items():
        file = args.folder / f"{name}.json"
        if file.exists():
            parts.append(section(json.loads(file.read_text("utf-8"))))
        else:
            print(f"{file} is missing, and its section is left out")
    write_atomically(args.output, "\n".join(parts).encode(), overwrite=True)
    print(args.output)


if __name__ == "__main__":
    main()
