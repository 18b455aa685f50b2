"""Compare the training scripts of the diffusion method with a bare loop of forward and backward passes.

    python eval/bench_training.py --output outputs/bench_training.json
    python eval/bench_training.py --batch_size 8 --size 64 --steps 40

The script trains the base and both ControlNets of `train/recipes/mini_dual_controlnet.sh` for some steps on
synthetic photographs. In each step, the networks of the training script first run forward and backward alone,
on the same inputs; this time is subtracted from the time of the script. Both are thus measured alternately,
in one process, on the same tensors. The columns are the CPU time of a step of the networks alone, of the same
with clipped gradients and an AdamW update, and of the script with loading, conditions, noise, moving average
and logging; the last column is the wall time of the script. Bar: the step of the script takes at most 1.05
times the step of the loop with updates. As in the scripts, freed memory is kept for the next tensor
(`HARMONY_KEEP_MEMORY=0` switches this off).
"""

import argparse
import csv
import importlib.util
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# As in the command `harmony`: waiting threads must not spin, because they would occupy the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("ACCELERATE_USE_CPU", "true")

import cv2
import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from harmony_diffusion.process import keep_freed_memory
from harmony_diffusion.reports.timing import Spent, describe_run, median_of, ratio, write_report

TRAIN = Path(__file__).resolve().parents[1] / "train"
WARM_UP_STEPS = 3


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--steps", type=int, default=20, help="measured steps of each stage")
    add("--batch_size", type=int, default=16)
    add("--size", type=int, default=128, help="side of the crops, a multiple of 64")
    add("--threads", type=int, default=1)
    add("--output", type=Path, help="JSON file for the figures")
    return parser.parse_args()


def now() -> Spent:
    return Spent(time.process_time(), time.perf_counter())


def since(start: Spent, end: Spent) -> Spent:
    return Spent(end.cpu - start.cpu, end.wall - start.wall)


class Stopwatch(Accelerator):
    """An accelerator that runs the networks alone before each step of the script, and times both.

    Attributes:
        networks: Time of forward and backward passes, one value per step.
        updates: Time to clip gradients and update the weights, one value per step.
        script: Time of the step of the script without the two, one value per step.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.networks: list[Spent] = []
        self.updates: list[Spent] = []
        self.script: list[Spent] = []
        self.entered: Spent | None = None
        self.running_alone = False

    def prepare(self, *args: Any) -> Any:
        """Prepare the arguments and time the first one, the objective."""
        objective, optimizer = args
        self.parameters = [value for group in optimizer.param_groups for value in group["params"]]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=0.0, fused=True)  # changes nothing
        objective.register_forward_pre_hook(self._run_alone)
        return super().prepare(*args)

    def _run_alone(self, objective: nn.Module, inputs: tuple[Any, ...]) -> None:
        if self.running_alone:
            return
        begin = now()
        if self.entered is not None:
            self.script.append(since(self.entered, begin))
        self.running_alone = True
        objective(*inputs)["loss"].backward()
        self.running_alone = False
        half = now()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.entered = now()
        self.networks.append(since(begin, half))
        self.updates.append(since(half, self.entered))


def save_photographs(root: Path, count: int, side: int) -> None:
    """Write synthetic photographs with masks and an index."""
    (root / "made").mkdir(parents=True)
    generator = np.random.default_rng(0)
    mask = np.zeros((side, side), np.uint8)
    mask[side // 4 : -side // 4, side // 4 : -side // 4] = 255
    with (root / "index.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["source", "id", "split", "label"])
        for number in range(count):
            coarse = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            cv2.imwrite(str(root / "made" / f"{number}.jpg"), cv2.resize(coarse, (side, side)))
            cv2.imwrite(str(root / "made" / f"{number}.png"), mask)
            writer.writerow(["made", number, "train", f"thing {number}"])


def train(script: str, arguments: list[str]) -> Stopwatch:
    """Run a training script and return its stopwatch."""
    path = TRAIN / f"{script}.py"
    spec = importlib.util.spec_from_file_location(script, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.argv = [str(path), *arguments]
    stopwatch = Stopwatch()
    module.train(module.parse_args(), stopwatch)
    return stopwatch


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    run = describe_run(args.threads)
    run["freed_memory_is_kept"] = keep_freed_memory()
    rows = []
    print(
        "| stage | networks, ms | with update, ms | script, ms | to networks | to both | wall: script, ms |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        save_photographs(root / "photographs", 2 * args.batch_size, 2 * args.size)
        shared = ["--data", str(root / "photographs"), "--caption_column", "label", "--use_ema"]
        shared += ["--resolution", str(args.size), "--train_batch_size", str(args.batch_size)]
        shared += ["--max_train_steps", str(args.steps + WARM_UP_STEPS + 1), "--precompute", "1"]
        control = ["--pretrained_model_name_or_path", str(root / "base" / "model"), "--sigma", "2"]
        control += ["--conditioning_embedding", "8", "16", "32", "64", "--control"]
        stages = {
            "base": ("train_inpainting", ["--random_base", "mini"]),
            "high": ("train_controlnet", [*control, "high"]),
            "low": ("train_controlnet", [*control, "low"]),
        }
        for stage, (script, own) in stages.items():
            watch = train(script, [*shared, *own, "--output", str(root / stage)])
            networks, updates, steps = (
                values[WARM_UP_STEPS : WARM_UP_STEPS + args.steps]
                for values in (watch.networks, watch.updates, watch.script)
            )
            row = figures_of(stage, networks, updates, steps)
            rows.append(row)
            cpu = [f"{1000 * row['cpu_seconds'][key]:.0f}" for key in ("networks", "loop", "script")]
            ratios = [f"{row[key]:.3f}" for key in ("to_networks", "to_loop")]
            wall = f"{1000 * row['wall_seconds']['script']:.0f}"
            print(f"| {stage} | {' | '.join((*cpu, *ratios, wall))} |", flush=True)
    if args.output:
        settings = {key: value for key, value in vars(args).items() if key != "output"}
        write_report(args.output, {"bench": "training", "run": run, "settings": settings, "rows": rows})


def figures_of(
    stage: str, networks: Sequence[Spent], updates: Sequence[Spent], steps: Sequence[Spent]
) -> dict[str, Any]:
    """Return medians and ratios of one stage; "loop" is the networks with updates."""
    loop = [Spent(*map(sum, zip(*pair, strict=True))) for pair in zip(networks, updates, strict=True)]
    times = {"networks": networks, "loop": loop, "script": steps}
    medians = {key: median_of(values) for key, values in times.items()}
    return {
        "stage": stage,
        "cpu_seconds": {key: value.cpu for key, value in medians.items()},
        "wall_seconds": {key: value.wall for key, value in medians.items()},
        "to_networks": ratio(times, "script", "networks"),
        "to_loop": ratio(times, "script", "loop"),
    }


if __name__ == "__main__":
    main()
