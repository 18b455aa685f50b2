"""`harmony image`: harmonize a composite."""

import argparse
from typing import Any

from harmony_diffusion.cli.harmonizing import (
    add_shared_options,
    harmonize_and_write,
    mask_options,
    prepare_outputs,
    reading_options,
)
from harmony_diffusion.cli.number_types import integer


def add_command(commands: Any) -> None:
    """Describe `harmony image`."""
    image = commands.add_parser("image", help="harmonize a composite", description="Harmonize a composite.")
    image.add_argument("composite", metavar="COMPOSITE", help="picture with the pasted foreground")
    image.add_argument("mask", metavar="MASK", help="picture of the same size, white on the foreground")
    image.add_argument("--invert-mask", action="store_true", help="the mask is white on the background")
    image.add_argument("--resize-mask", action="store_true", help="scale masks of another size")
    image.add_argument("--label", type=integer(), help="value of the foreground in a label map")
    image.add_argument(
        "--reference-mask", metavar="FILE", help="white on the part of the background to harmonize to"
    )
    add_shared_options(image)
    image.set_defaults(run=run_image)


def run_image(args: argparse.Namespace) -> None:
    """Harmonize one composite and write the result."""
    outputs = prepare_outputs(args, ["_before_after"] if args.side_by_side else [])
    from harmony_diffusion.images.picture import load_pairs, load_reference_masks

    inputs: list[Any] = [
        *load_pairs(args.composite, args.mask, **{**reading_options(args), **mask_options(args)})[0]
    ]
    inputs += load_reference_masks(
        args.reference_mask, [inputs[0]], resize=args.resize_mask, max_pixels=args.max_pixels
    )
    harmonize_and_write(args, inputs, outputs, {})
