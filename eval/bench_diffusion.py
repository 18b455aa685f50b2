"""Compare the diffusion pipeline with diffusers' own, and with the networks alone.

    python eval/bench_diffusion.py --components small --size 256 --output outputs/bench_diffusion.json
    python eval/bench_diffusion.py --components full --size 512 --dtype bf16 --steps 2 --repeats 1

All rows do the same work, guidance and two ControlNets at each step, with the same components. Their weights
are random, which take as long as trained ones:

- floor: the text encoder, autoencoder, ControlNets and U-Net called as often as needed, and nothing else. The
  control image is embedded once for all steps;
- floor_cond: the same with the ControlNets on the conditional half;
- ours, ours_cond: `StableDiffusionHarmonizationPipeline`, from picture to picture, control images included;
- diffusers: `StableDiffusionControlNetInpaintPipeline`, given control images that are drawn already.

The rows take turns; times are medians of the repeats, and ratios medians of the ratios within a turn. Both
clocks are reported. The bars use one of them: "cpu" counts the process's own work, so that what else the
machine does is left out; "wall" is the time passed. Memory is the peak of a process (on a GPU: of its
allocations) with one row, above what it held with the components loaded.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harmony_diffusion.process import wait_without_spinning
from harmony_diffusion.reports.timing import (
    Spent,
    describe_run,
    median_of,
    ratio,
    spend,
    take_turns,
    write_report,
)

wait_without_spinning()

ROWS = ("floor", "floor_cond", "ours", "ours_cond", "diffusers")
DTYPES = ("fp32", "bf16", "fp16")
PROMPT, NEGATIVE_PROMPT, GUIDANCE_SCALE = "a cup on a table", "blurry", 7.5
MOST_OVERHEAD, MOST_OF_DIFFUSERS, LEAST_SPEEDUP, LEAST_STEP_SECONDS = 1.05, 0.9, 1.2, 0.05


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--components", choices=("tiny", "small", "full"), default="small")
    parser.add_argument("--size", type=int, default=256, help="side of the picture, a multiple of 64")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=("cpu", "wall"), help="default: wall on a GPU, else cpu")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    parser.add_argument(
        "--no-memory", action="store_true", help="leave out the memory, a process for each row"
    )
    parser.add_argument("--peak-of", choices=ROWS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.clock = args.clock or ("cpu" if args.device == "cpu" else "wall")
    return args


class Bench:
    """One set of components, and every row as a function that makes one picture."""

    def __init__(self, args: argparse.Namespace) -> None:
        import numpy as np
        import torch

        from harmony_diffusion.diffusion.random_weights import random_components

        torch.set_num_threads(args.threads)
        self.args = args
        self.dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[args.dtype]
        self.components = random_components(args.components, dtype=self.dtype)
        for component in self.components.values():
            if isinstance(component, torch.nn.Module):
                component.to(args.device)
        size = args.size
        self.composite = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
        self.mask = np.zeros((size, size), np.uint8)
        self.mask[size // 4 : 3 * size // 4, size // 4 : 3 * size // 4] = 255

    def row(self, name: str) -> Callable[[], Any]:
        """Return what makes one picture in the way of a row."""
        if name.startswith("floor"):
            return self.floor(on_both=name == "floor")
        return (
            self.diffusers() if name == "diffusers" else self.ours("cond" if name == "ours_cond" else "both")
        )

    def pipeline(self) -> Any:
        """Build our pipeline."""
        from harmony_diffusion.pipelines.stable_diffusion import StableDiffusionHarmonizationPipeline

        pipe = StableDiffusionHarmonizationPipeline(**self.components, working_size=self.args.size)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def ours(self, control_cfg: str) -> Callable[[], Any]:
        """Return a call of our pipeline."""
        pipe = self.pipeline()
        return lambda: pipe(
            self.composite,
            self.mask,
            PROMPT,
            negative_prompt=NEGATIVE_PROMPT,
            num_inference_steps=self.args.steps,
            guidance_scale=GUIDANCE_SCALE,
            control_cfg=control_cfg,
            context=10.0,  # the whole picture, as diffusers works on
        )

    def diffusers(self) -> Callable[[], Any]:
        """Return a call of diffusers' pipeline."""
        from diffusers import StableDiffusionControlNetInpaintPipeline
        from PIL import Image

        parts = dict(self.components)
        nets = [parts.pop("controlnet_high"), parts.pop("controlnet_low")]
        parts["scheduler"] = type(parts["scheduler"]).from_config(parts["scheduler"].config)
        pipe = StableDiffusionControlNetInpaintPipeline(
            **parts,
            controlnet=nets,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipe.set_progress_bar_config(disable=True)
        composite, mask = Image.fromarray(self.composite), Image.fromarray(self.mask)
        return lambda: pipe(
            PROMPT,
            composite,
            mask,
            control_image=[composite, composite],
            negative_prompt=NEGATIVE_PROMPT,
            num_inference_steps=self.args.steps,
            guidance_scale=GUIDANCE_SCALE,
            controlnet_conditioning_scale=[1.0, 1.0],
        )

    def floor(self, on_both: bool) -> Callable[[], Any]:
        """Return the forward passes of one picture."""
        import torch

        from harmony_diffusion.diffusion.controlnets import embed_control_image, make_embedding_reusable

        args, parts = self.args, self.components
        unet, vae = parts["unet"], parts["vae"]
        side, width = (
            args.size // 2 ** (len(vae.config.block_out_channels) - 1),
            unet.config.cross_attention_dim,
        )
        settings = {"device": args.device, "dtype": self.dtype}
        ids = torch.zeros(1, 77, dtype=torch.long, device=args.device)
        image, text = (
            torch.rand(1, 3, args.size, args.size, **settings),
            torch.randn(2, 77, width, **settings),
        )
        sample, latents = torch.randn(2, 9, side, side, **settings), torch.randn(1, 4, side, side, **settings)
        halves = 2 if on_both else 1
        timestep = torch.tensor(500, device=args.device)
        controls = [parts["controlnet_high"], parts["controlnet_low"]]
        for controlnet in controls:
            make_embedding_reusable(controlnet)

        @torch.no_grad()
        def run() -> None:
            for _ in range(2):
                parts["text_encoder"](ids)
            vae.encode(image)
            embedded = [
                embed_control_image(controlnet, image).expand(halves, -1, -1, -1) for controlnet in controls
            ]
            for _ in range(args.steps):
                for controlnet, embedding in zip(controls, embedded, strict=True):
                    down, middle = controlnet(
                        sample[:halves, :4], timestep, text[:halves], embedding, return_dict=False
                    )
                if halves == 1:
                    down, middle = [torch.cat([d, d]) for d in down], torch.cat([middle, middle])
                unet(
                    sample,
                    timestep,
                    text,
                    down_block_additional_residuals=down,
                    mid_block_additional_residual=middle,
                )
            vae.decode(latents)

        return run

    def synchronize(self) -> None:
        """Wait for the GPU."""
        import torch

        if self.args.device.startswith("cuda"):
            torch.cuda.synchronize()


def measure_times(bench: Bench) -> dict[str, list[Spent]]:
    def timed(run: Callable[[], Any]) -> Callable[[], Spent]:
        def whole() -> None:
            run()
            bench.synchronize()

        return lambda: spend(whole)

    return take_turns({name: timed(bench.row(name)) for name in ROWS}, bench.args.repeats)


def measure_peak(bench: Bench, name: str) -> float:
    """Return what a row needs above the components, in MiB."""
    import torch

    run = bench.row(name)
    if bench.args.device.startswith("cuda"):
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return (torch.cuda.max_memory_allocated() - held) / 2**20
    held = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    run()
    return (resident("VmHWM") - held) / 1024


def resident(field: str) -> int:
    """Read a figure of this process's memory in KiB, on Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


def peak_apart(args: argparse.Namespace, name: str) -> float:
    command = [sys.executable, "-W", "ignore", __file__, "--peak-of", name]
    for option in ("components", "size", "dtype", "device", "threads"):
        command += [f"--{option}", str(getattr(args, option))]
    done = subprocess.run([*command, "--steps", "2"], capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def report(
    args: argparse.Namespace, times: dict[str, list[Spent]], peaks: dict[str, float]
) -> dict[str, Any]:
    print(
        "| row | CPU s | wall s | CPU ms a step | to its floor | to diffusers | memory MiB |\n"
        "|---|---:|---:|---:|---:|---:|---:|"
    )
    rows = []
    for name in ROWS:
        floor = "floor_cond" if name.endswith("cond") else "floor"
        spent = median_of(times[name])
        row = {
            "row": name,
            "seconds": getattr(spent, args.clock),
            "cpu_seconds": spent.cpu,
            "wall_seconds": spent.wall,
            "to_floor": ratio(times, name, floor, args.clock),
            "to_diffusers": ratio(times, name, "diffusers", args.clock),
            "memory_mib": peaks.get(name),
        }
        rows.append(row)
        memory = "" if row["memory_mib"] is None else f"{row['memory_mib']:.0f}"
        print(
            f"| {name} | {spent.cpu:.3f} | {spent.wall:.3f} | {1000 * spent.cpu / args.steps:.1f} | "
            f"{row['to_floor']:.3f} | {row['to_diffusers']:.3f} | {memory} |"
        )
    bars = {
        "overhead": max(
            ratio(times, "ours", "floor", args.clock), ratio(times, "ours_cond", "floor_cond", args.clock)
        ),
        "to_diffusers": ratio(times, "ours", "diffusers", args.clock),
        "speedup_cond": ratio(times, "diffusers", "ours_cond", args.clock),
        "step_seconds": getattr(median_of(times["floor"]), args.clock) / args.steps,
    }
    print(
        f"\n{args.clock} time, {1000 * bars['step_seconds']:.0f} ms a step (bars: at least "
        f"{1000 * LEAST_STEP_SECONDS:.0f})\n"
        f"overhead {bars['overhead']:.3f} of the floor (bar: at most {MOST_OVERHEAD})\n"
        f"at equal settings {bars['to_diffusers']:.3f} of diffusers' time "
        f"(bar: at most {MOST_OF_DIFFUSERS})\n"
        f'with control_cfg="cond" {bars["speedup_cond"]:.2f} times as fast (bar: at least {LEAST_SPEEDUP})'
    )
    settings = {key: value for key, value in vars(args).items() if key not in ("output", "peak_of")}
    return {"settings": settings, "rows": rows, "bars": bars}


def main() -> None:
    args = parse_args()
    run = describe_run(args.threads)
    bench = Bench(args)
    if args.peak_of:
        print(measure_peak(bench, args.peak_of))
        return
    times = measure_times(bench)
    del bench
    peaks = {} if args.no_memory else {name: peak_apart(args, name) for name in ROWS}
    figures = report(args, times, peaks)
    if args.output:
        write_report(args.output, {"bench": "diffusion", "run": run, **figures})


if __name__ == "__main__":
    main()
