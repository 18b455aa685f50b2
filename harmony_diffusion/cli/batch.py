"""`harmony batch`: harmonize thousands of pictures."""

import argparse
import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harmony_diffusion.cli.number_types import integer
from harmony_diffusion.cli.terminal import draw, is_watched, say, show
from harmony_diffusion.errors import InputError, OutputError
from harmony_diffusion.paths import is_folder, resolved

if TYPE_CHECKING:
    from harmony_diffusion.batch.job import Progress, Summary
    from harmony_diffusion.batch.local import Engine
    from harmony_diffusion.batch.worker import Settings

_BYTES_A_WORKER = 1_000_000_000
_LINE_SECONDS = 10.0


def add_command(commands: Any) -> None:
    """Describe `harmony batch`."""
    batch = commands.add_parser(
        "batch",
        help="harmonize a folder, manifest or tar shards of composites",
        description="Harmonize many composites. A run that was stopped or killed goes on where it was "
        "when the same command is given again. Exit status: 0 all done, 2 nothing could be done, "
        "3 finished with failures (listed in OUT/errors.jsonl), 130 after Ctrl-C, 143 after SIGTERM.",
    )
    batch.add_argument(
        "input",
        metavar="IN",
        type=Path,
        help="folder of pictures (masks beside them as NAME_mask.png, or --masks), folder of tar shards, "
        "or a .csv, .jsonl or .tar file",
    )
    batch.add_argument("out", metavar="OUT", type=Path, help="folder of the results, and of the job's state")
    _add_input_options(batch.add_argument_group("input"))
    _add_result_options(batch.add_argument_group("results"))
    _add_running_options(batch.add_argument_group("running"))
    batch.set_defaults(run=run_batch_command)


def _add_input_options(group: Any) -> None:
    group.add_argument("--masks", metavar="DIR", type=Path, help="folder of masks, named as the pictures")
    group.add_argument("--root", metavar="DIR", type=Path, help="folder that the names in a manifest are in")
    group.add_argument("--invert-mask", action="store_true", help="the masks are white on the background")
    group.add_argument("--resize-mask", action="store_true", help="scale masks of another size")
    group.add_argument("--allow-truncated", action="store_true", help="read what is left of damaged files")
    group.add_argument("--max-pixels", type=integer(1), default=100_000_000, help="refuse larger pictures")
    group.add_argument(
        "--max-memory", type=_size, metavar="BYTES", help="refuse pictures that need more, such as 800M or 2G"
    )


def _add_result_options(group: Any) -> None:
    group.add_argument("--model", default="default", help="a name of `harmony models`, or a saved folder")
    group.add_argument(
        "--strength", type=float, default=1.0, help="0 keeps the input, 1 is full (default: 1)"
    )
    group.add_argument("--suffix", metavar=".EXT", help="format of the results (default: that of the input)")
    group.add_argument("--quality", type=int, default=95, help="of JPEG, WebP and AVIF (default: 95)")
    group.add_argument(
        "--png-level", type=int, default=1, help="compression of PNG, 0 to 9 (default: 1, the fastest)"
    )
    group.add_argument("--prompt", metavar="TEXT", help="for diffusion: what the pictures show")
    group.add_argument("--steps", type=integer(1), metavar="N", help="for diffusion: steps to the picture")
    group.add_argument(
        "--seed", type=int, default=0, metavar="N", help="for diffusion: same number, same result"
    )
    group.add_argument("--overwrite", action="store_true", help="write to a folder that holds other files")


def _add_running_options(group: Any) -> None:
    group.add_argument("--workers", type=integer(1), metavar="N", help="processes (default: one a core)")
    group.add_argument("--engine", choices=("local", "ray"), default="local", help="who runs them")
    group.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    group.add_argument(
        "--on-error", choices=("skip", "stop"), default="skip", help="after a picture that cannot be used"
    )
    group.add_argument("--max-errors", type=integer(1), metavar="N", help="stop after so many of them")
    group.add_argument("--retry-failed", action="store_true", help="try again what failed in an earlier run")
    group.add_argument("--restart", action="store_true", help="compute all again, with other settings too")
    group.add_argument(
        "--verify", action="store_true", help="compare results that are there with their hashes"
    )
    group.add_argument("--json", action="store_true", help="print the summary as JSON")
    group.add_argument("--debug", action="store_true", help="show the traceback of an error")


def run_batch_command(args: argparse.Namespace) -> int:
    """Run a batch, draw its progress, print how it ended; return the exit status."""
    from harmony_diffusion.batch.inputs import find_inputs
    from harmony_diffusion.batch.job import Options, run_batch
    from harmony_diffusion.batch.worker import Settings

    _check_values(args)
    inputs = find_inputs(args.input, masks=args.masks, root=args.root, suffix=args.suffix, out=args.out)
    settings = Settings(
        out=str(resolved(args.out, OutputError)),
        root=str(resolved(inputs.root)),
        mask_root=str(resolved(inputs.mask_root)),
        kind=inputs.kind,
        suffix=args.suffix,
        model=_model_path(args.model),
        device=args.device,
        strength=args.strength,
        quality=args.quality,
        png_level=args.png_level,
        invert_mask=args.invert_mask,
        resize_mask=args.resize_mask,
        allow_truncated=args.allow_truncated,
        max_pixels=args.max_pixels,
        max_memory=args.max_memory,
        prompt=args.prompt,
        steps=args.steps,
        seed=args.seed,
    )
    options = Options(
        max_errors=1 if args.on_error == "stop" else args.max_errors,
        retry_failed=args.retry_failed,
        restart=args.restart,
        verify=args.verify,
        overwrite=args.overwrite,
    )
    bar = _Bar()
    try:
        summary = run_batch(inputs, settings, _engine(args, settings), options, bar.show)
    finally:
        bar.end()
    try:
        show(json.dumps(asdict(summary)) if args.json else _sentence(summary, args.out))
    except OutputError as error:  # the results are there all the same
        say(f"harmony: note: {error}")
    return summary.exit_code


def _check_values(args: argparse.Namespace) -> None:
    for name, low, high in (("strength", 0, 1), ("quality", 1, 100), ("png_level", 0, 9)):
        value = getattr(args, name)
        if not low <= value <= high:
            raise InputError(f"--{name.replace('_', '-')}", f"is {value}, expected {low} to {high}")


def _model_path(model: str) -> str:
    """Return a folder as an absolute path, as workers may run elsewhere; names as they are."""
    return str(resolved(model)) if is_folder(model) else model


def _engine(args: argparse.Namespace, settings: "Settings") -> "Engine":
    from harmony_diffusion.batch.local import InProcessEngine, LocalEngine

    if args.engine == "ray":
        from harmony_diffusion.batch.ray_engine import RayEngine

        say(
            "harmony: note: Ray listens on all network interfaces without a password. Use it on a closed "
            "network only."
        )
        return RayEngine(settings, args.workers)
    workers = args.workers or _default_workers(args.device)
    return InProcessEngine(settings) if workers == 1 else LocalEngine(settings, workers)


def _default_workers(device: str) -> int:
    """Return one process a core, as many as fit in memory; one for a GPU."""
    from harmony_diffusion.batch.local import cores

    if device not in ("auto", "cpu") or (device == "auto" and Path("/dev/nvidiactl").exists()):
        return 1
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        with open("/proc/meminfo") as file:
            free = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except (ValueError, OSError, AttributeError, StopIteration):
        free = cores() * _BYTES_A_WORKER
    return max(1, min(cores(), free // _BYTES_A_WORKER))


def _sentence(summary: "Summary", out: Path) -> str:
    rate = summary.new / summary.seconds if summary.seconds else 0.0
    text = (
        f"{summary.done} of {summary.total} done, {summary.failed} failed; "
        f"{summary.new} in this run ({rate:.2f}/s): {out}"
    )
    if summary.deaths:
        text += f"; {summary.deaths} workers died and were replaced"
    if summary.failed and summary.errors:
        text += f"; reasons in {summary.errors}"
    if summary.exit_code in (130, 143):
        text += "; stopped, the same command goes on from here"
    return text


class _Bar:
    """Progress on standard error: one line drawn again and again, or a line every ten seconds."""

    def __init__(self) -> None:
        self.live = is_watched()
        self.drawn, self.last = False, time.monotonic()

    def show(self, progress: "Progress") -> None:
        """Draw how far the batch is."""
        finished = progress.done + progress.failed
        text = f"{finished}/{progress.total}, {progress.failed} failed, {progress.rate:.2f}/s"
        if progress.seconds_left is not None:
            seconds = round(progress.seconds_left)
            text += f", {seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d} left"
        if progress.deaths:
            text += f", {progress.deaths} workers died"
        if self.live:
            width = 20 * finished // max(progress.total, 1)
            draw(f"\r[{'#' * width}{' ' * (20 - width)}] {text}\x1b[K")
            self.drawn = True
        elif time.monotonic() - self.last >= _LINE_SECONDS:
            self.last = time.monotonic()
            say(text)

    def end(self) -> None:
        """Leave the line."""
        if self.drawn:
            draw("\n")


def _size(text: str) -> int:
    units = {"K": 10**3, "M": 10**6, "G": 10**9}
    amount, unit = (text[:-1], units[text[-1].upper()]) if text[-1:].upper() in units else (text, 1)
    try:
        value = int(float(amount) * unit)
    except (ValueError, OverflowError):
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected bytes such as 800M or 2G, got {text[:40]!r}")
    return value
