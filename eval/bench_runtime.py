"""Compare the speed of exported models with PyTorch on one thread, for the network and its application.

    taskset -c 0 python eval/bench_runtime.py -o runtime.json

Every round times all runtimes once, in turn, so that other load on the machine affects all of them equally. A
ratio is the median over the rounds of PyTorch's CPU time divided by the CPU time of the runtime (above 1:
faster than PyTorch); the same ratio of wall times stands beside it. The time of the complete command
`harmony image --runtime onnx` is CPU time.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from harmony_diffusion.errors import HarmonyError
from harmony_diffusion.export.onnx import export_onnx
from harmony_diffusion.export.parity import check_inputs
from harmony_diffusion.export.runtime import OnnxModel
from harmony_diffusion.models import load_model
from harmony_diffusion.reports.timing import (
    Spent,
    describe_run,
    median_of,
    ratio,
    spend,
    take_turns,
    write_report,
)

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="default", help="name or folder for `load_model`")
    parser.add_argument("--rounds", type=int, default=15, help="default: 15")
    parser.add_argument("--picture", type=int, nargs=2, default=(683, 1024), metavar=("H", "W"))
    parser.add_argument("-o", "--output", type=Path, help="JSON file to write")
    return parser.parse_args()


@torch.no_grad()
def main() -> None:
    args = parse_args()
    torch.set_num_threads(1)
    model: Any = load_model(args.model)
    report: dict[str, Any] = {
        "bench": "runtime",
        "run": describe_run(threads=1),
        "model": type(model).__name__,
        "threads": 1,
        "rounds": args.rounds,
        "ratios": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        for variant in ("mirrored", "plain") if model.average_mirrored else ("plain",):
            exported = export_onnx(model, Path(folder) / variant, mirror=variant == "mirrored")
            model.average_mirrored = variant == "mirrored"
            report["ratios"] |= time_variant(model, exported, variant, args)
        first = next(iter(Path(folder).iterdir()))
        report["harmony image --runtime onnx, CPU seconds"] = time_command(first, args.rounds)
    for name, ratios in report["ratios"].items():
        print(name, {other: round(ratio, 2) for other, ratio in ratios.items()}, flush=True)
    print(json.dumps({key: value for key, value in report.items() if key != "ratios"}))
    if args.output:
        write_report(args.output, report)


def time_variant(model: Any, exported: Path, variant: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return the ratios of network and application for every installed runtime."""
    runtimes = {"onnxruntime": OnnxModel(exported, threads=1)}
    try:
        runtimes["openvino"] = OnnxModel(exported, runtime="openvino", threads=1)
    except HarmonyError as error:
        print(error)
    composite, mask = check_inputs(runtimes["onnxruntime"].size)["scene"]
    seen = torch.from_numpy(composite), torch.from_numpy(mask)
    network: dict[str, Callable[[], Any]] = {"torch": lambda: model.predict_filters(*seen)}
    for name, one in runtimes.items():
        network[name] = lambda one=one: one.predict_filters(composite, mask)
    filters = model.predict_filters(*seen)
    image, share = check_inputs(tuple(args.picture))["scene"]
    whole = torch.from_numpy(image), filters, torch.from_numpy(share)
    apply: dict[str, Callable[[], Any]] = {"torch": lambda: model.apply_filters(*whole)}
    for name, one in runtimes.items():
        apply[name] = lambda one=one: one.apply_filters(image, filters.numpy(), share)
    size = "x".join(map(str, reversed(args.picture)))
    return {
        f"network, {variant}": ratios(network, args.rounds),
        f"apply at {size}, {variant}": ratios(apply, args.rounds),
    }


def ratios(contestants: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Return the median time of the first function divided by that of each function, on both clocks."""

    def timed(run: Callable[[], Any]) -> Callable[[], Spent]:
        return lambda: spend(run)

    times = take_turns({name: timed(run) for name, run in contestants.items()}, rounds, warm_up=2)
    first, *others = times
    found = {name: ratio(times, first, name) for name in others}
    found |= {f"{name}, wall": ratio(times, first, name, "wall") for name in others}
    return found | {"milliseconds of torch": 1000 * median_of(times[first]).cpu}


def time_command(folder: Path, rounds: int) -> float:
    """Return the median CPU time of the complete command on the demo picture."""
    times = []
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "harmony_diffusion.cli", "image", EXAMPLES / "composite.jpg"]
        command += [EXAMPLES / "mask.png", "-o", Path(out) / "out.png", "--overwrite", "--runtime", "onnx"]
        for _ in range(min(rounds, 5)):
            before = os.times()
            subprocess.run([*command, "--model", folder], check=True, stdout=subprocess.DEVNULL)
            after = os.times()
            times.append(
                after.children_user + after.children_system - before.children_user - before.children_system
            )
    return statistics.median(times)


if __name__ == "__main__":
    main()
