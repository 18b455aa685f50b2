"""What `harmony image` and `harmony compose` share: options, outputs, the call of the pipeline."""

import argparse
import re
import warnings
from pathlib import Path
from typing import Any

from harmony_diffusion.cli.number_types import integer, number
from harmony_diffusion.cli.terminal import say, show
from harmony_diffusion.errors import InputError, InputNote
from harmony_diffusion.paths import exists

_SAMPLING = ("high_scale", "low_scale", "steps", "seed")


def add_shared_options(parser: argparse.ArgumentParser) -> None:
    """Describe the options of both commands."""
    parser.add_argument(
        "-o", "--output", metavar="OUT", required=True, help="file to write (.jpg .png .tif …)"
    )
    parser.add_argument(
        "--model",
        help="a name of `harmony models` with weights, a saved folder, owner/name on the Hub, or sd2-dual",
    )
    parser.add_argument(
        "--strength", type=number(0, 1), default=1.0, help="0 keeps the input, 1 is full (default: 1)"
    )
    parser.add_argument("--side-by-side", action="store_true", help="also write OUT_before_after")
    parser.add_argument(
        "--filters",
        metavar="FILE.json",
        help="arguments of white-box filters: applied if the file exists, else predicted and written to it",
    )
    parser.add_argument(
        "--runtime",
        choices=("torch", "onnx", "openvino"),
        default="torch",
        help="what computes; onnx and openvino take a folder of `harmony export`, or make it once",
    )
    diffusion = parser.add_argument_group("sd2-dual (Stable Diffusion 2 with two ControlNets)")
    diffusion.add_argument("--prompt", metavar="TEXT", help="what the whole picture shows")
    diffusion.add_argument(
        "--high-scale", type=number(), metavar="X", help="strength of the edges (default: 1)"
    )
    diffusion.add_argument(
        "--low-scale", type=number(), metavar="X", help="strength of the colours (default: 1)"
    )
    diffusion.add_argument(
        "--steps", type=integer(1, 10_000), metavar="N", help="steps from noise to picture (default: 20)"
    )
    diffusion.add_argument("--seed", type=integer(0, 2**64 - 1), metavar="N", help="same number, same result")
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")
    parser.add_argument("--max-pixels", type=integer(1), default=100_000_000, help="refuse larger pictures")
    parser.add_argument(
        "--frame", type=integer(0), default=0, help="frame of an animated file or page of a TIFF"
    )
    parser.add_argument("--allow-truncated", action="store_true", help="read what is left of a damaged file")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def prepare_outputs(args: argparse.Namespace, extras: list[str]) -> dict[str, Path]:
    """Name every file to be written, and refuse before any work what could not be written at the end."""
    from harmony_diffusion.images.output_files import check_output

    target = check_suffix(args.output)
    paths = {"": target}
    for extra in extras:
        # A mask or a layer must not be changed by a lossy format.
        suffix = ".png" if extra in ("_mask", "_shadow") else target.suffix
        paths[extra] = target.with_name(f"{target.stem}{extra}{suffix}")
    if args.filters and not exists(args.filters):
        paths["_filters"] = Path(args.filters)
    keys = ("composite", "foreground", "background", "mask", "reference_mask")
    inputs = [source for key in keys if (source := getattr(args, key, None))]
    if args.filters and "_filters" not in paths:
        inputs.append(args.filters)
    for key, path in paths.items():
        # Only the name of OUT itself was chosen: no other file may cost an input.
        check_output(path, overwrite=args.overwrite, inputs=inputs, keep_inputs=bool(key))
    return paths


def check_suffix(path: str) -> Path:
    """Return the path of a picture to be written.

    Raises:
        OutputError: No picture format is written under its suffix.
    """
    from harmony_diffusion.images.encoding import format_of

    format_of(path)
    return Path(path)


def reading_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of `load_picture` that were given."""
    return {"max_pixels": args.max_pixels, "frame": args.frame, "allow_truncated": args.allow_truncated}


def mask_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of `load_mask` that were given."""
    return {
        "invert": args.invert_mask,
        "label": args.label,
        "resize": args.resize_mask,
        "max_pixels": args.max_pixels,
    }


def harmonize_and_write(
    args: argparse.Namespace,
    inputs: list[Any],
    outputs: dict[str, Path],
    files: dict[str, Any],
) -> None:
    """Harmonize, then write all result files or none.

    Args:
        args: The command line.
        inputs: Picture, its mask, and the mask of the part of the background to harmonize to or None. The
            list is emptied: the memory of the inputs is free before the result is encoded.
        outputs: Path of each file by the end of its name.
        files: What writes those that are known already, by the same keys.
    """
    from harmony_diffusion.images.compose import side_by_side
    from harmony_diffusion.images.output_files import write_together

    composite, mask, reference = inputs
    inputs.clear()
    composite.encoder(outputs[""])  # refuses what the format cannot hold before any work is done
    harmonize = _harmonize if args.runtime == "torch" else _harmonize_without_torch
    result, filters = harmonize(args, composite, mask, reference)
    if filters is not None:
        files["_filters"] = filters
    files[""] = result.encoder(outputs[""])
    if args.side_by_side:
        key = "_before_after"
        files[key] = side_by_side(composite, result).encoder(outputs[key])
    del composite, mask, reference
    write_together([(outputs[key], files[key]) for key in files], overwrite=args.overwrite)
    for key in files:
        label = {"_before_after": "before/after: ", "_filters": "filters: "}.get(key, "")
        show(f"{label}{outputs[key]}")


def _harmonize_without_torch(
    args: argparse.Namespace, composite: Any, mask: Any, reference: Any
) -> tuple[Any, None]:
    """Return the picture harmonized by an exported model."""
    given = [
        f"--{key.replace('_', '-')}"
        for key in ("prompt", *_SAMPLING, "filters")
        if getattr(args, key) is not None
    ]
    if given:
        raise InputError(", ".join(given), "cannot be used with this `--runtime`", "Leave out `--runtime`.")
    from harmony_diffusion.export.full_size import harmonize_picture
    from harmony_diffusion.export.runtime import OnnxModel
    from harmony_diffusion.export.shipped import exported_folder
    from harmony_diffusion.images.masks import check_background

    check_background(mask, reference)
    folder = exported_folder(args.model or "default", announce=lambda text: say(f"harmony: note: {text}"))
    model = OnnxModel(folder, runtime=args.runtime)
    return harmonize_picture(model, composite, mask, reference=reference, strength=args.strength), None


def _harmonize(
    args: argparse.Namespace, composite: Any, mask: Any, reference: Any
) -> tuple[Any, bytes | None]:
    """Return the picture harmonized by a model or a saved pipeline, and the content of a file of filters."""
    from harmony_diffusion.models import is_model, load_model

    source = args.model or "default"
    if not is_model(source):
        return _harmonize_by_pipeline(args, composite, mask, reference), None
    # A single model needs no pipeline, whose imports take as long as all the rest.
    from harmony_diffusion.highres.harmonize import harmonize_picture
    from harmony_diffusion.images.masks import check_background

    _refuse_diffusion_options(args)
    model = load_model(source)
    if args.prompt is not None:
        say(f"harmony: note: --prompt is ignored: {type(model).__name__} reads no text")
    check_background(mask, reference)
    options = {"reference": reference, "strength": args.strength}
    if args.filters is None:
        return harmonize_picture(model, composite, mask, **options)[0], None
    from harmony_diffusion.cli.filter_files import check_named_filters, filters_from_json, filters_to_json
    from harmony_diffusion.highres.harmonize import render_filters
    from harmony_diffusion.highres.windows import shown_mask

    check_named_filters(model)
    path = Path(args.filters)
    if exists(path):
        filters, shown = filters_from_json(path, model), shown_mask(composite, mask)
        return render_filters(model, composite, shown, filters, strength=args.strength), None
    picture, predicted = harmonize_picture(model, composite, mask, **options)
    assert predicted is not None  # models of named filters predict them
    return picture, filters_to_json(model, predicted)


def _harmonize_by_pipeline(args: argparse.Namespace, composite: Any, mask: Any, reference: Any) -> Any:
    """Return the picture harmonized by a pipeline."""
    from harmony_diffusion.pipelines.loading import load_pipeline

    controls = args.high_scale != 0 or args.low_scale != 0
    if args.filters:
        raise InputError("--filters", "needs a single model, and this is a pipeline", "Leave it out.")
    pipe = load_pipeline(args.model, controls=controls)
    pipe.set_progress_bar_config(disable=True)
    with warnings.catch_warnings():
        # These notes were shown when the picture and its mask were loaded from their files.
        warnings.filterwarnings("ignore", f"(mask|{re.escape(composite.name)}): ", InputNote)
        images, _ = pipe(
            composite,
            mask,
            args.prompt,
            **_settings(args, pipe, reference),
            output_type="picture",
            return_dict=False,
        )
    return images[0]


def _refuse_diffusion_options(args: argparse.Namespace) -> None:
    if any(getattr(args, name) is not None for name in _SAMPLING):
        raise InputError(
            "--high-scale, --low-scale, --steps and --seed", "are for `--model sd2-dual`", "Leave them out."
        )


def _settings(args: argparse.Namespace, pipe: Any, reference: Any) -> dict[str, Any]:
    """Return the arguments that this pipeline takes, and refuse those that are for the other kind."""
    from harmony_diffusion.pipelines.harmonization import HarmonizationPipeline

    names = {"high_scale": "high_scale", "low_scale": "low_scale", "steps": "num_inference_steps"}
    given = {names[key]: value for key in names if (value := getattr(args, key)) is not None}
    if isinstance(pipe, HarmonizationPipeline):
        _refuse_diffusion_options(args)
        return {"strength": args.strength, "reference_mask": reference}
    if reference is not None:
        raise InputError(
            "--reference-mask", "is for the other models: this one looks at all surroundings", "Leave it out."
        )
    import torch
    from diffusers.utils.torch_utils import get_device

    pipe.to(get_device())
    if args.seed is not None:
        given["generator"] = torch.Generator().manual_seed(args.seed)
    if args.strength != 1:
        given |= {"init": "composite", "strength": args.strength}
    return given
