"""`harmony convert`: convert official weights."""

import argparse
from typing import Any

from harmony_diffusion.cli.terminal import show


def add_command(commands: Any) -> None:
    """Describe `harmony convert`."""
    convert = commands.add_parser(
        "convert",
        help="convert official weights",
        description="Convert official weights to a folder for --model.",
    )
    convert.add_argument("checkpoint", metavar="CHECKPOINT", help="official .pth, .pt, .ckpt or .safetensors")
    convert.add_argument("output", metavar="OUT_DIR", help="folder to make")
    convert.add_argument("--model", required=True, help="a name of `harmony models`")
    convert.add_argument("--overwrite", action="store_true", help="replace a folder of a saved model alone")
    convert.add_argument("--debug", action="store_true", help="show the traceback of an error")
    convert.set_defaults(run=run_convert)


def run_convert(args: argparse.Namespace) -> None:
    """Convert official weights to a folder that `--model` takes."""
    from harmony_diffusion.models.convert import convert_checkpoint

    show(str(convert_checkpoint(args.model, args.checkpoint, args.output, overwrite=args.overwrite)))
