"""`harmony compose`: paste a foreground on a background, then harmonize."""

import argparse
from typing import Any

from harmony_diffusion.cli.harmonizing import (
    add_shared_options,
    harmonize_and_write,
    prepare_outputs,
    reading_options,
)


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
    compose.add_argument("--at", type=_position, metavar="X,Y", help="left and top (default: centred)")
    compose.add_argument("--scale", type=float, default=1.0, help="size of the foreground (default: 1)")
    add_shared_options(compose)
    compose.set_defaults(run=run_compose)


def run_compose(args: argparse.Namespace) -> None:
    """Paste, harmonize, and write the composite, its mask and the result."""
    outputs = prepare_outputs(
        args, ["_composite", "_mask", *(["_before_after"] if args.side_by_side else [])]
    )
    from harmony_diffusion.images.compose import paste_foreground, save_mask
    from harmony_diffusion.images.masks import load_mask
    from harmony_diffusion.images.picture import load_picture

    foreground = load_picture(args.foreground, **{**reading_options(args), "name": "foreground"})
    background = load_picture(args.background, **{**reading_options(args), "name": "background"})
    mask = args.mask and load_mask(
        args.mask, size=foreground.size, invert=args.invert_mask, max_pixels=args.max_pixels
    )
    composite, mask = paste_foreground(foreground, background, mask, at=args.at, scale=args.scale)
    composite.save(outputs["_composite"], overwrite=args.overwrite)
    save_mask(mask, outputs["_mask"], overwrite=args.overwrite)
    print(f"{outputs['_composite']}\n{outputs['_mask']}")
    harmonize_and_write(args, composite, mask, None, outputs)


def _position(text: str) -> tuple[int, int]:
    try:
        x, y = (int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected X,Y in pixels, got {text!r}") from None
    return x, y
