"""Compare whole programs and calls of the pipeline with those of an older checkout.

    taskset -c 0 python eval/bench_programs.py --before CHECKOUT --output docs/speed/programs.json

The two checkouts take turns, each program in its own process on one thread. The rows are `eval_fid.py` on two
folders of pictures; a training step of iDIH (the time of a longer run minus that of a shorter run); and
`HarmonizationPipeline` on a picture of 1024x768 pixels from memory to memory, after a first call. A ratio is
the median over the rounds of our CPU time divided by that of the older checkout. Networks have random
weights, which does not change the time. Pictures are synthetic. With `--rows`, the file keeps its
other rows if they have the same settings.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from PIL import Image

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
# At most this share of the older CPU time.
BARS = {"eval_fid": 0.55, "train idih": 1 / 1.4, "pipeline color_grid": 0.65, "pipeline idih": 0.70}
STEPS = 2, 8
CALLS = """
import sys, time
import numpy as np, torch
from harmony_diffusion import HarmonizationPipeline
from harmony_diffusion.models import create_model, load_model
try:
    from harmony_diffusion.process import keep_freed_memory
    keep_freed_memory()
except ImportError:  # an older checkout
    pass
name, folder, calls = sys.argv[1:]
torch.manual_seed(0)
model = load_model("default") if name == "color_grid" else create_model(name).eval()
pipe = HarmonizationPipeline(model)
pipe.set_progress_bar_config(disable=True)
composite, mask = np.load(folder + "/composite.npy"), np.load(folder + "/mask.npy")
for _ in range(int(calls)):
    result = pipe(composite, mask).images[0]
result.save(folder + "/result_" + name + ".png")
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", type=Path, required=True, metavar="FOLDER", help="older checkout")
    parser.add_argument("--rows", nargs="+", choices=tuple(BARS), default=list(BARS))
    parser.add_argument("--pictures", type=int, default=96, help="pictures in each folder of eval_fid.py")
    parser.add_argument("--calls", type=int, default=20, help="calls of the pipeline")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    return parser.parse_args()


def draw(seed: int, height: int, width: int) -> np.ndarray:
    """Return a picture with structure at several scales, `(height, width, 3)` uint8."""
    rng = np.random.default_rng(seed)
    picture = np.zeros((height, width, 3))
    for cells, amount in ((4, 0.5), (32, 0.3), (128, 0.2)):
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        picture += amount * np.asarray(noise.resize((width, height), Image.Resampling.BILINEAR))
    return picture.round().astype(np.uint8)


def ellipse(height: int, width: int) -> np.ndarray:
    y, x = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    return ((y * y + x * x < 0.25) * 255).astype(np.uint8)


def fid_commands(folder: Path, args: argparse.Namespace) -> list[list[str]]:
    """Write two folders of pictures and a feature network; return the command."""
    from safetensors.torch import save_file

    from harmony_diffusion.metrics.inception import FIDInception

    for number, name in enumerate(("generated", "real")):
        (folder / name).mkdir()
        for index in range(args.pictures):
            Image.fromarray(draw(2 * index + number, 256, 256)).save(folder / name / f"{index}.png")
    torch.manual_seed(0)
    save_file(FIDInception().state_dict(), folder / "inception.safetensors")
    files = [str(folder / name) for name in ("generated", "real")]
    options = ["--extractor", str(folder / "inception.safetensors"), "--force"]
    return [["eval/eval_fid.py", *files, *options, "--output", str(folder / "fid.json")]]


def training_commands(folder: Path, args: argparse.Namespace) -> list[list[str]]:
    """Write a small data set; return the command of a short and of a longer run."""
    data = folder / "data"
    for name in ("composite", "mask", "real"):
        (data / name).mkdir(parents=True)
    for index in range(16):
        real = draw(index, 256, 256)
        Image.fromarray(real).save(data / "real" / f"{index}.png")
        Image.fromarray(ellipse(256, 256)).save(data / "mask" / f"{index}.png")
        Image.fromarray(real // 2).save(data / "composite" / f"{index}.png")
    command = ["train/train_discriminative.py", "--model", "idih", "--data", str(data)]
    command += ["--train_batch_size", "8", "--checkpointing_steps", "1000", "--output"]
    return [[*command, str(folder / f"steps_{n}"), "--max_train_steps", str(n)] for n in STEPS]


def pipeline_commands(folder: Path, args: argparse.Namespace, model: str) -> list[list[str]]:
    """Write a picture; return the commands of one call and of several."""
    np.save(folder / "composite.npy", draw(0, 768, 1024))
    np.save(folder / "mask.npy", ellipse(768, 1024))
    return [["-c", CALLS, model, str(folder), str(calls)] for calls in (1, 1 + args.calls)]


def measure(row: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return the figures of one row."""
    makers: dict[str, Callable[..., list[list[str]]]] = {
        "eval_fid": fid_commands,
        "train idih": training_commands,
        "pipeline color_grid": partial(pipeline_commands, model="color_grid"),
        "pipeline idih": partial(pipeline_commands, model="idih"),
    }
    checkouts = {"ours": ROOT, "before": args.before.resolve()}
    commands = {}
    for key in checkouts:
        (folder / key).mkdir()
        commands[key] = makers[row](folder / key, args)

    def timed(key: str) -> Spent:
        spent = []
        for command in commands[key]:
            for left in (folder / key).glob("steps_*"):
                shutil.rmtree(left)  # a finished run would resume and do nothing
            spent.append(run_command([sys.executable, "-W", "ignore", *command], checkouts[key])[0])
        first, last = spent[0], spent[-1]
        # A longer run minus a shorter one: what is done once, such as imports, is not counted.
        return last if len(spent) == 1 else Spent(last.cpu - first.cpu, last.wall - first.wall)

    times = take_turns({key: partial(timed, key) for key in checkouts}, args.rounds, warm_up=0)
    medians = {key: median_of(values) for key, values in times.items()}
    result: dict[str, Any] = {
        "row": row,
        "cpu_seconds": {key: value.cpu for key, value in medians.items()},
        "wall_seconds": {key: value.wall for key, value in medians.items()},
        "to_before": ratio(times, "ours", "before"),
        "wall_to_before": ratio(times, "ours", "before", "wall"),
        "bar": BARS[row],
    }
    if row.startswith("pipeline"):
        name = f"result_{row.split()[1]}.png"
        ours, before = (np.asarray(Image.open(folder / key / name)).astype(int) for key in checkouts)
        difference = np.abs(ours - before)
        result |= {"different_pixels": float(difference.any(-1).mean()), "largest": int(difference.max())}
    return result


def main() -> None:
    args = parse_args()
    run = describe_run(threads=1)
    print("| program | CPU s | before | ratio | wall s | before | ratio | bar |\n|---|" + "---:|" * 7)
    settings = {"pictures": args.pictures, "calls": args.calls, "rounds": args.rounds}
    rows: dict[str, Any] = {}
    if args.output and args.output.is_file():
        earlier = json.loads(args.output.read_text())
        if earlier["settings"] == settings:
            rows = {row["row"]: row for row in earlier["rows"]}
    for name in args.rows:
        with tempfile.TemporaryDirectory() as folder:
            row = rows[name] = measure(name, args, Path(folder))
        cpu, wall = row["cpu_seconds"], row["wall_seconds"]
        cells = [f"{cpu['ours']:.2f}", f"{cpu['before']:.2f}", f"{row['to_before']:.2f}"]
        cells += [f"{wall['ours']:.2f}", f"{wall['before']:.2f}", f"{row['wall_to_before']:.2f}"]
        print(f"| {name} | {' | '.join(cells)} | {row['bar']:.2f} |", flush=True)
        if "largest" in row:
            print(f"  {row['different_pixels']:.2%} of pixels differ, by at most {row['largest']} of 255")
    if args.output:
        write_report(
            args.output, {"bench": "programs", "run": run, "settings": settings, "rows": list(rows.values())}
        )


if __name__ == "__main__":
    main()
