"""Compare the registry's networks: parameters, multiply-accumulates, latency and peak memory.

    python eval/bench_models.py --models hdnet gknet --sizes 256 1024 --output outputs/bench_models.json

A row is one network at one size in one mode: eager, channels_last, bf16 (autocast) or compile. Latency is the
median of several forward passes of one picture, in CPU time and wall time; "to eager" is the CPU time divided
by that of the row in eager mode, if it is among the modes. Memory is the peak of the process minus its memory
after loading the model. Each row runs in its own process. The weights are random, which does not change the
time. PyTorch counts the multiply-accumulates of convolutions, linear layers and matrix products, for pictures
of up to 512 pixels. White-box networks read a 256-pixel thumbnail at any picture size.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

# As in the command `harmony`: waiting threads must not spin, because they would occupy the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from harmony_diffusion.reports.timing import describe_run, median_of, spend, write_report

LARGEST_COUNTED = 512  # side in pixels; unfused attention of larger pictures does not fit into memory
MODES = ("eager", "channels_last", "bf16", "compile")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", metavar="NAME", help="default: every network")
    parser.add_argument("--sizes", nargs="+", type=int, default=[256, 1024], help="sides in pixels")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES[:3]))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    parser.add_argument("--in-process", nargs=3, metavar=("NAME", "SIZE", "MODE"), help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(name: str, size: int, mode: str, repeats: int, threads: int) -> dict[str, Any]:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from harmony_diffusion.models import create_model

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    # The counter reads gradients of parameters passed to a module, so parameters must not require them.
    model: Any = create_model(name).eval().requires_grad_(False)
    composite, mask = torch.rand(1, 3, size, size), torch.zeros(1, 1, size, size)
    mask[..., size // 4 : 3 * size // 4, size // 4 : 3 * size // 4] = 1
    if mode == "channels_last":
        model, composite = (x.to(memory_format=torch.channels_last) for x in (model, composite))
    call = torch.compile(model) if mode == "compile" else model
    times = []
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=mode == "bf16"):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(repeats + 1):  # the first pass warms up
            times.append(spend(lambda: call(composite, mask)))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        gmac = None
        if size <= LARGEST_COUNTED:
            # The counter supports fused attention on GPUs only; unfused attention is two matrix products.
            with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
                model(composite, mask)
            gmac = counter.get_total_flops() / 2e9
    spent = median_of(times[1:])
    return {
        "model": name,
        "size": size,
        "mode": mode,
        "parameters": model.num_parameters(),
        "gmac": gmac,
        "seconds": spent.wall,
        "cpu_seconds": spent.cpu,
        "memory_mib": peak / 1024,
    }


def run_apart(name: str, size: int, mode: str, args: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", __file__, "--in-process", name, str(size), mode]
    command += ["--repeats", str(args.repeats), "--threads", str(args.threads)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["killed"])[-1]
        return {"model": name, "size": size, "mode": mode, "error": reason}
    return json.loads(done.stdout.splitlines()[-1])


def figures_of(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"failed: {row['error']} | | | | |"
    gmac = "-" if row["gmac"] is None else f"{row['gmac']:.2f}"
    to_eager = "-" if row["to_eager"] is None else f"{row['to_eager']:.2f}"
    times = f"{row['cpu_seconds'] * 1000:.0f} | {row['seconds'] * 1000:.0f}"
    return f"{row['parameters']:,} | {gmac} | {times} | {to_eager} | {row['memory_mib']:.0f}"


def main() -> None:
    args = parse_args()
    if args.in_process:
        name, size, mode = args.in_process
        print(json.dumps(measure(name, int(size), mode, args.repeats, args.threads)))
        return
    from harmony_diffusion.models import MODELS, model_class

    networks = args.models or [name for name in MODELS if not model_class(name).takes_reference]
    run = describe_run(args.threads)
    print("| model | size | mode | parameters | GMAC | CPU ms | wall ms | to eager | memory MiB |")
    print("|---|---:|---|---:|---:|---:|---:|---:|---:|")
    rows = []
    for name in networks:
        for size in args.sizes:
            eager: dict[str, Any] = {}
            for mode in args.modes:
                row = run_apart(name, size, mode, args)
                eager = row if mode == "eager" else eager
                known = "cpu_seconds" in row and "cpu_seconds" in eager
                row["to_eager"] = row["cpu_seconds"] / eager["cpu_seconds"] if known else None
                rows.append(row)
                print(f"| {name} | {size} | {mode} | {figures_of(row)} |", flush=True)
    if args.output:
        write_report(args.output, {"bench": "models", "run": run, "rows": rows})


if __name__ == "__main__":
    main()
