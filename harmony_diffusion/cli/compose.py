"""`harmony compose`: paste a foreground on a background, then harmonize."""

import argparse
from typing import Any

from harmony_diffusion.cli.harmonizing import (
    add_shared_options,
    harmonize_and_write,
    mask_options,
    prepare_outputs,
    reading_options,
)
from harmony_diffusion.cli.number_types import integer, number, position


def add_command(commands: Any) -> None:
    """Describe `harmony compose`."""
    compose = commands.add_parser(
        "compose",
        help="paste a foreground on a background, then harmonize",
        description="Paste a foreground on a background and harmonize; writes OUT, OUT_composite, OUT_mask.",
    )
    compose.add_argument("foreground", metavar="FOREGROUND", help="cut-out with an alpha channel")
    compose.add_argument("background", metavar="BACKGROUND", help="picture to paste it on")
    compose.add_argument("--mask", metavar="FILE", help="what to paste of a foreground without alpha")
    compose.add_argument(
        "--invert-mask", action="store_true", help="the mask is white where nothing is pasted"
    )
    compose.add_argument("--resize-mask", action="store_true", help="scale a mask of another size")
    compose.add_argument("--label", type=integer(), help="value of what to paste in a label map")
    compose.add_argument("--at", type=position, metavar="X,Y", help="left and top (default: centred)")
    compose.add_argument("--scale", type=number(), default=1.0, help="size of the foreground (default: 1)")
    add_shared_options(compose)
    compose.set_defaults(run=run_compose)


def run_compose(args: argparse.Namespace) -> None:
    """Paste, harmonize, and write the composite, its mask and the result."""
    outputs = prepare_outputs(
        args, ["_composite", "_mask", *(["_before_after"] if args.side_by_side else [])]
    )
    from harmony_diffusion.images.compose import mask_encoder, paste_foreground
    from harmony_diffusion.images.masks import load_mask
    from harmony_diffusion.images.picture import load_picture

    foreground = load_picture(args.foreground, **reading_options(args))
    background = load_picture(args.background, **reading_options(args))
    mask = args.mask and load_mask(
        args.mask, size=foreground.size, size_of=foreground.name, **mask_options(args)
    )
    composite, mask = paste_foreground(foreground, background, mask, at=args.at, scale=args.scale)
    files = {
        "_composite": composite.encoder(outputs["_composite"]),
        "_mask": mask_encoder(mask),
    }
    harmonize_and_write(args, [composite, mask, None], outputs, files)
