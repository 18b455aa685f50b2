"""`harmony export`: write a model as ONNX, to run without PyTorch."""

import argparse
from pathlib import Path
from typing import Any

from harmony_diffusion.cli.number_types import integer
from harmony_diffusion.cli.terminal import show


def add_command(commands: Any) -> None:
    """Describe `harmony export`."""
    export = commands.add_parser(
        "export",
        help="write a model as ONNX",
        description="Write a model as ONNX, for --runtime and other programs, if it computes the same there.",
    )
    export.add_argument("model", metavar="MODEL", help="default, a name with weights, or a saved folder")
    export.add_argument("output", metavar="OUT_DIR", help="folder to make")
    export.add_argument(
        "--no-mirror",
        dest="mirror",
        action="store_false",
        help="leave out the pass on the mirrored picture: half the time, slightly less quality",
    )
    export.add_argument(
        "--fp32-storage", action="store_true", help="store weights as float32: files of twice the size"
    )
    export.add_argument(
        "--opset", type=integer(18, 23), default=20, help="version of the operators, 18 to 23 (default: 20)"
    )
    export.add_argument("--overwrite", action="store_true", help="replace a folder that was exported before")
    export.add_argument("--debug", action="store_true", help="show the traceback of an error")
    export.set_defaults(run=run_export)


def run_export(args: argparse.Namespace) -> None:
    """Export a model and print how closely the export agrees with it."""
    from harmony_diffusion.export.folder import read_description
    from harmony_diffusion.export.onnx import check_target, export_onnx
    from harmony_diffusion.models import load_model

    check_target(Path(args.output), overwrite=args.overwrite)
    folder = export_onnx(
        load_model(args.model),
        args.output,
        mirror=args.mirror,
        half_storage=not args.fp32_storage,
        opset=args.opset,
        overwrite=args.overwrite,
    )
    parity = read_description(folder).fields["parity"]
    show(str(folder))
    show(f"largest difference from PyTorch: {parity['largest_difference']:.1e} of 1; background: equal")
