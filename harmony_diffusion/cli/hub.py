"""`harmony hub`: make a folder to publish on the Hub, and upload it."""

import argparse
from pathlib import Path
from typing import Any

from harmony_diffusion.cli.terminal import show


def add_command(commands: Any) -> None:
    """Describe `harmony hub`."""
    hub = commands.add_parser(
        "hub",
        help="make a folder for the Hub",
        description="Make a folder that opens by its id on the Hub, from a saved model or pipeline.",
    )
    add = hub.add_argument
    add("source", metavar="FOLDER_IN", help="saved model or pipeline, or a name of `harmony models`")
    add("output", metavar="FOLDER_OUT", help="folder to make")
    add("--id", metavar="OWNER/NAME", help="its id on the Hub, for the card and for --push")
    add("--license", help="identifier of the Hub (default: that of the card in FOLDER_IN)")
    add("--license-name", metavar="NAME", help="for --license other")
    add("--license-link", metavar="URL", help="for --license other")
    add("--base-model", metavar="ID", action="append", default=[], help="model it was trained from")
    add("--dataset", metavar="ID", action="append", default=[], help="data set it was trained on")
    add("--examples", metavar="FILE", help="JPEG for the card (default: examples.jpg of FOLDER_IN)")
    add("--onnx", metavar="FOLDER", help="exported model to add")
    add("--half", action="store_true", help="store weights as float16 (default: as they are stored)")
    add("--overwrite", action="store_true", help="replace FOLDER_OUT")
    push = hub.add_argument_group("upload")
    push.add_argument("--push", action="store_true", help="upload FOLDER_OUT to --id, in one commit")
    push.add_argument("--public", action="store_true", help="a new repository is public (default: private)")
    push.add_argument("--revision", metavar="BRANCH", help="branch to upload to (default: main)")
    push.add_argument("--create-pr", action="store_true", help="open a pull request")
    add("--debug", action="store_true", help="show the traceback of an error")
    hub.set_defaults(run=run_hub)


def run_hub(args: argparse.Namespace) -> None:
    """Write the folder, and upload it with `--push`."""
    from harmony_diffusion.errors import InputError
    from harmony_diffusion.training.publishing import check_push, push_to_hub

    if args.push:
        if not args.id:
            raise InputError("--push", "needs the id of the repository", "Give --id owner/name.")
        check_push()
    from harmony_diffusion.hub.card import EXAMPLES, read_card
    from harmony_diffusion.hub.checks import stored_in_half_precision
    from harmony_diffusion.hub.saving import save_for_hub
    from harmony_diffusion.models import DEFAULT_MODEL, WEIGHTS
    from harmony_diffusion.pipelines.loading import load_pipeline

    name = DEFAULT_MODEL if args.source == "default" else args.source
    folder = Path(args.source) if Path(args.source).is_dir() else WEIGHTS / name
    card = read_card(
        folder / "README.md",
        license=args.license,
        license_name=args.license_name,
        license_link=args.license_link,
        repository=args.id,
        base_model=tuple(args.base_model),
        datasets=tuple(args.dataset),
    )
    card.check()
    examples = args.examples or (folder / EXAMPLES if (folder / EXAMPLES).is_file() else None)
    onnx = args.onnx or (folder / "onnx" if (folder / "onnx").is_dir() else None)
    eval_results = folder / ".eval_results"
    written = save_for_hub(
        load_pipeline(args.source),
        args.output,
        card=card,
        half=args.half or stored_in_half_precision(folder),
        examples=examples,
        pictures=[path for name in card.pictures() if (path := folder / name).is_file()],
        eval_results=eval_results if eval_results.is_dir() else None,
        onnx=onnx,
        overwrite=args.overwrite,
    )
    show(str(written))
    if args.push:
        show(
            push_to_hub(
                written,
                args.id,
                private=not args.public,
                revision=args.revision,
                create_pr=args.create_pr,
            )
        )
