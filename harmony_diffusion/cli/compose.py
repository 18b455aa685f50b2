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
        description="Paste a foreground on a background and harmonize; writes OUT, OUT_composite, OUT_mask, "
        "and with --shadow OUT_shadow, the layer that multiplies the background.",
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
    compose.add_argument(
        "--shadow",
        type=_shadow,
        metavar="S",
        help="auto, OFF (default), or ANGLE,LENGTH,SOFTNESS,DENSITY: direction in degrees (0 right, 90 down, "
        "180 left), length as a share of the object's height, softness and density from 0 to 1",
    )
    compose.add_argument(
        "--decontaminate",
        action="store_true",
        help="remove the colour of the old background from soft edges",
    )
    add_shared_options(compose)
    compose.set_defaults(run=run_compose)


def run_compose(args: argparse.Namespace) -> None:
    """Paste, harmonize, and write the composite, its mask and the result."""
    extras = ["_composite", "_mask"]
    extras += ["_shadow"] if args.shadow is not None else []
    extras += ["_before_after"] if args.side_by_side else []
    outputs = prepare_outputs(args, extras)
    from harmony_diffusion.images.compose import compose, mask_encoder
    from harmony_diffusion.images.masks import load_mask
    from harmony_diffusion.images.picture import load_picture
    from harmony_diffusion.images.shadow import Shadow

    shadow = Shadow(*args.shadow) if isinstance(args.shadow, tuple) else args.shadow
    foreground = load_picture(args.foreground, **reading_options(args))
    background = load_picture(args.background, **reading_options(args))
    mask = args.mask and load_mask(
        args.mask, size=foreground.size, size_of=foreground.name, **mask_options(args)
    )
    composed = compose(
        foreground,
        background,
        mask,
        at=args.at,
        scale=args.scale,
        shadow=shadow,
        decontaminate=args.decontaminate,
    )
    files = {
        "_composite": composed.composite.encoder(outputs["_composite"]),
        "_mask": mask_encoder(composed.mask),
    }
    if composed.shadow is not None:
        files["_shadow"] = mask_encoder(composed.shadow)
    harmonize_and_write(args, [composed.composite, composed.mask, None], outputs, files)


def _shadow(text: str) -> tuple[float, ...] | str | None:
    """Read the option `--shadow`."""
    if text.lower() in ("off", "0"):
        return None
    if text.lower() == "auto":
        return "auto"
    try:
        angle, length, softness, density = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected auto, OFF or ANGLE,LENGTH,SOFTNESS,DENSITY, got {text[:40]!r}"
        ) from None
    return angle, length, softness, density
