"""The command `harmony`. Heavy imports happen inside the commands, so that `--help` answers at once."""

import argparse
import json
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harmony_diffusion import __version__
from harmony_diffusion.errors import HarmonyError, InputError, InputNote

EXIT_DONE, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 0, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return 0 when done, 2 on bad input, 130 when interrupted."""
    args = build_parser().parse_args(arguments)
    # Threads of PyTorch that spin while waiting take the cores from those that work (eval/bench_inference.py
    # shows it). Read when PyTorch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", InputNote)
            warnings.showwarning = _show_warning
            args.run(args)
    except HarmonyError as error:
        if args.debug:
            raise
        print(f"harmony: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("harmony: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    return EXIT_DONE


def build_parser() -> argparse.ArgumentParser:
    """Describe every command and option."""
    parser = argparse.ArgumentParser(
        prog="harmony", description="Make a pasted foreground look photographed where it stands."
    )
    parser.add_argument("--version", action="version", version=f"harmony {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    image = commands.add_parser("image", help="harmonize a composite", description="Harmonize a composite.")
    image.add_argument("composite", metavar="COMPOSITE", help="picture with the pasted foreground")
    image.add_argument("mask", metavar="MASK", help="picture of the same size, white on the foreground")
    image.add_argument("--invert-mask", action="store_true", help="the mask is white on the background")
    image.add_argument("--resize-mask", action="store_true", help="scale a mask of another size")
    image.add_argument("--label", type=int, help="value of the foreground in a label map")
    image.add_argument(
        "--reference-mask", metavar="FILE", help="white on the part of the background to harmonize to"
    )
    _add_shared_options(image)
    image.set_defaults(run=run_image)

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
    _add_shared_options(compose)
    compose.set_defaults(run=run_compose)

    convert = commands.add_parser(
        "convert",
        help="convert official weights",
        description="Convert official weights to a folder for --model.",
    )
    convert.add_argument("checkpoint", metavar="CHECKPOINT", help="official .pth, .pt, .ckpt or .safetensors")
    convert.add_argument("output", metavar="OUT_DIR", help="folder to make")
    convert.add_argument("--model", required=True, help="a name of `harmony models`")
    convert.add_argument("--overwrite", action="store_true", help="replace the folder if it exists")
    convert.add_argument("--debug", action="store_true", help="show the traceback of an error")
    convert.set_defaults(run=run_convert)

    models = commands.add_parser("models", help="list the methods", description="List the methods.")
    models.add_argument("--json", action="store_true", help="print JSON")
    models.add_argument("--debug", action="store_true", help=argparse.SUPPRESS)
    models.set_defaults(run=run_models)
    _add_data_commands(commands)
    return parser


def _add_shared_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o", "--output", metavar="OUT", required=True, help="file to write (.jpg .png .tif …)"
    )
    parser.add_argument(
        "--model", help="a name of `harmony models` with weights, a saved folder, or sd2-dual"
    )
    parser.add_argument(
        "--strength", type=float, default=1.0, help="0 keeps the input, 1 is full (default: 1)"
    )
    parser.add_argument("--side-by-side", action="store_true", help="also write OUT_before_after")
    diffusion = parser.add_argument_group("sd2-dual (Stable Diffusion 2 with two ControlNets)")
    diffusion.add_argument("--prompt", metavar="TEXT", help="what the whole picture shows")
    diffusion.add_argument("--high-scale", type=float, metavar="X", help="strength of the edges (default: 1)")
    diffusion.add_argument(
        "--low-scale", type=float, metavar="X", help="strength of the colours (default: 1)"
    )
    diffusion.add_argument("--steps", type=int, metavar="N", help="steps from noise to picture (default: 20)")
    diffusion.add_argument("--seed", type=int, metavar="N", help="same number, same result")
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")
    parser.add_argument("--max-pixels", type=int, default=100_000_000, help="refuse larger pictures")
    parser.add_argument("--frame", type=int, default=0, help="frame of an animated file or page of a TIFF")
    parser.add_argument("--allow-truncated", action="store_true", help="read what is left of a damaged file")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def run_image(args: argparse.Namespace) -> None:
    """Harmonize one composite and write the result."""
    outputs = _prepare_outputs(args, ["_before_after"] if args.side_by_side else [])
    from harmony_diffusion.images.masks import load_mask
    from harmony_diffusion.images.picture import load_picture

    composite = load_picture(args.composite, **_reading(args))
    mask = load_mask(
        args.mask,
        size=composite.size,
        invert=args.invert_mask,
        resize=args.resize_mask,
        label=args.label,
        max_pixels=args.max_pixels,
    )
    reference = args.reference_mask and load_mask(
        args.reference_mask, size=composite.size, name="reference_mask", max_pixels=args.max_pixels
    )
    _harmonize_and_write(args, composite, mask, reference, outputs)


def run_compose(args: argparse.Namespace) -> None:
    """Paste, harmonize, and write the composite, its mask and the result."""
    outputs = _prepare_outputs(
        args, ["_composite", "_mask", *(["_before_after"] if args.side_by_side else [])]
    )
    from harmony_diffusion.images.compose import paste_foreground, save_mask
    from harmony_diffusion.images.masks import load_mask
    from harmony_diffusion.images.picture import load_picture

    foreground = load_picture(args.foreground, **{**_reading(args), "name": "foreground"})
    background = load_picture(args.background, **{**_reading(args), "name": "background"})
    mask = args.mask and load_mask(
        args.mask, size=foreground.size, invert=args.invert_mask, max_pixels=args.max_pixels
    )
    composite, mask = paste_foreground(foreground, background, mask, at=args.at, scale=args.scale)
    composite.save(outputs["_composite"], overwrite=args.overwrite)
    save_mask(mask, outputs["_mask"], overwrite=args.overwrite)
    print(f"{outputs['_composite']}\n{outputs['_mask']}")
    _harmonize_and_write(args, composite, mask, None, outputs)


def _add_data_commands(commands: Any) -> None:
    data = commands.add_parser("data", help="look at data sets", description="Look at data sets.")
    actions = data.add_subparsers(metavar="ACTION", required=True)
    check = actions.add_parser(
        "check",
        help="find what is wrong with a data set",
        description="Open every file of a data set; print each that cannot be used, with the reason.",
    )
    check.add_argument("path", metavar="PATH", type=Path, help="folder, .jsonl or .tar file of any layout")
    check.add_argument(
        "--split", default="train", help="part of the data set; all for both of iHarmony4 (default: train)"
    )
    check.add_argument(
        "--filter", action="append", default=[], metavar="COLUMN=VALUE[,VALUE]", help="part of a manifest"
    )
    check.add_argument("--shards", type=int, nargs="+", help="parts of Open Images, of 0 to 15")
    check.add_argument("--debug", action="store_true", help=argparse.SUPPRESS)
    check.set_defaults(run=run_data_check)
    select = actions.add_parser(
        "select",
        help="choose test photographs of Open Images",
        description="Write the names of photographs with exactly one instance, the same on every machine.",
    )
    select.add_argument("path", metavar="PATH", type=Path, help="folder of Open Images")
    select.add_argument("-o", "--output", metavar="OUT", required=True, help="list to write, one name a line")
    select.add_argument("--split", default="test", help="part of the data set (default: test)")
    select.add_argument("--count", type=int, default=2000, help="how many (default: 2000)")
    select.add_argument("--overwrite", action="store_true", help="replace the list if it exists")
    select.add_argument("--debug", action="store_true", help=argparse.SUPPRESS)
    select.set_defaults(run=run_data_select)


def run_data_check(args: argparse.Namespace) -> None:
    """Print what is wrong with a data set, file by file."""
    from harmony_diffusion.data.check import check_dataset
    from harmony_diffusion.data.photographs import parse_filters

    report = check_dataset(args.path, args.split, filters=parse_filters(args.filter), shards=args.shards)
    for problem in report.problems:
        print(f"{problem.file}: {problem.reason}")
    print(f"{report.layout}: {report.count} samples looked at, {len(report.problems)} problems")
    if report.problems:
        raise InputError(args.path, f"has {len(report.problems)} problems")


def run_data_select(args: argparse.Namespace) -> None:
    """Write the list of test photographs of Open Images."""
    from harmony_diffusion.data.open_images import select_open_images
    from harmony_diffusion.images.output_files import write_atomically

    names = select_open_images(args.path, args.count, args.split)
    write_atomically(args.output, "".join(f"{name}\n" for name in names).encode(), overwrite=args.overwrite)
    print(args.output)


def run_convert(args: argparse.Namespace) -> None:
    """Convert official weights to a folder that `--model` takes."""
    from harmony_diffusion.models.convert import convert_checkpoint

    print(convert_checkpoint(args.model, args.checkpoint, args.output, overwrite=args.overwrite))


def run_models(args: argparse.Namespace) -> None:
    """Print one line a registry model: name, kind, parameters, licence, weights."""
    import torch

    from harmony_diffusion.models import DEFAULT_MODEL, MODELS, create_model, has_weights

    rows = []
    for name in MODELS:
        with torch.device("meta"):
            model: Any = create_model(name)
        parameters = model.num_parameters()
        rows.append(
            {
                "name": name,
                "kind": "classical" if not parameters else "white-box" if _is_white_box(model) else "dense",
                "parameters": parameters,
                "license": model.origin.weights_license or model.origin.code_license or "-",
                "weights": _weights_of(parameters, has_weights(name)),
                "default": name == DEFAULT_MODEL,
            }
        )
    if args.json:
        print(json.dumps(rows, indent=2))
        return
    print(
        f"{'name':20} {'kind':10} {'parameters':>11}  {'weights':15} licence of the official code or weights"
    )
    for row in rows:
        name = f"{row['name']}{' *' if row['default'] else ''}"
        print(f"{name:20} {row['kind']:10} {row['parameters']:11,}  {row['weights']:15} {row['license']}")
    print("* default")


def _weights_of(parameters: int, shipped: bool) -> str:
    if not parameters:
        return "none needed"
    return "included" if shipped else "bring your own"


def _is_white_box(model: Any) -> bool:
    return hasattr(model, "apply_filters")


def _harmonize_and_write(
    args: argparse.Namespace, composite: Any, mask: Any, reference: Any, outputs: dict[str, Path]
) -> None:
    from harmony_diffusion.images.compose import side_by_side
    from harmony_diffusion.pipelines.loading import load_pipeline

    controls = args.high_scale != 0 or args.low_scale != 0
    pipe = load_pipeline(args.model or "default", controls=controls)
    pipe.set_progress_bar_config(disable=True)
    images, _ = pipe(
        composite,
        mask,
        args.prompt,
        **_settings(args, pipe, reference),
        output_type="picture",
        return_dict=False,
    )
    result = images[0]
    result.save(outputs[""], overwrite=args.overwrite)
    print(outputs[""])
    if args.side_by_side:
        side_by_side(composite, result).save(outputs["_before_after"], overwrite=args.overwrite)
        print(f"before/after: {outputs['_before_after']}")


def _settings(args: argparse.Namespace, pipe: Any, reference: Any) -> dict[str, Any]:
    """Return the arguments that this pipeline takes, and refuse those that are for the other kind."""
    from harmony_diffusion.pipelines.harmonization import HarmonizationPipeline

    names = {"high_scale": "high_scale", "low_scale": "low_scale", "steps": "num_inference_steps"}
    given = {names[key]: value for key in names if (value := getattr(args, key)) is not None}
    if isinstance(pipe, HarmonizationPipeline):
        if given or args.seed is not None:
            raise InputError("--high-scale, --low-scale, --steps and --seed", "are for `--model sd2-dual`")
        return {"strength": args.strength, "reference_mask": reference}
    if reference is not None:
        raise InputError("--reference-mask", "is for the other models: this one looks at all surroundings")
    import torch
    from diffusers.utils.torch_utils import get_device

    pipe.to(get_device())
    if args.seed is not None:
        given["generator"] = torch.Generator().manual_seed(args.seed)
    if args.strength != 1:
        given |= {"init": "composite", "strength": args.strength}
    return given


def _prepare_outputs(args: argparse.Namespace, extras: list[str]) -> dict[str, Path]:
    """Name every file to be written, and refuse before any work what could not be written at the end."""
    from harmony_diffusion.images.output_files import check_output

    target = Path(args.output)
    paths = {"": target}
    for extra in extras:
        # A mask must not be changed by a lossy format.
        suffix = ".png" if extra == "_mask" else target.suffix
        paths[extra] = target.with_name(f"{target.stem}{extra}{suffix}")
    keys = ("composite", "foreground", "background", "mask", "reference_mask")
    inputs = [source for key in keys if (source := getattr(args, key, None))]
    for path in paths.values():
        check_output(path, overwrite=args.overwrite, inputs=inputs)
    return paths


def _reading(args: argparse.Namespace) -> dict[str, Any]:
    return {"max_pixels": args.max_pixels, "frame": args.frame, "allow_truncated": args.allow_truncated}


def _position(text: str) -> tuple[int, int]:
    try:
        x, y = (int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected X,Y in pixels, got {text!r}") from None
    return x, y


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    kind = "note" if issubclass(category, InputNote) else "warning"
    print(f"harmony: {kind}: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
