"""`harmony data`: look at data sets."""

import argparse
from pathlib import Path
from typing import Any

from harmony_diffusion.cli.number_types import integer
from harmony_diffusion.cli.terminal import show
from harmony_diffusion.errors import InputError


def add_command(commands: Any) -> None:
    """Describe `harmony data check`, `harmony data select` and `harmony data to-datasets`."""
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
    check.add_argument("--shards", type=integer(0, 15), nargs="+", help="parts of Open Images, of 0 to 15")
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
    select.add_argument("--count", type=integer(1), default=2000, help="how many (default: 2000)")
    select.add_argument("--overwrite", action="store_true", help="replace the list if it exists")
    select.add_argument("--debug", action="store_true", help=argparse.SUPPRESS)
    select.set_defaults(run=run_data_select)
    export = actions.add_parser(
        "to-datasets",
        help="write parquet files for the library datasets",
        description="Write a data set as parquet files that `datasets.load_dataset` opens.",
    )
    export.add_argument("path", metavar="PATH", type=Path, help="data set of any layout that is not streamed")
    export.add_argument("output", metavar="OUT_DIR", help="folder of the new data set")
    export.add_argument("--split", default="train", help="part of the data set (default: train)")
    export.add_argument(
        "--filter", action="append", default=[], metavar="COLUMN=VALUE[,VALUE]", help="part of a manifest"
    )
    export.add_argument("--overwrite", action="store_true", help="replace files of this split")
    export.add_argument("--debug", action="store_true", help=argparse.SUPPRESS)
    export.set_defaults(run=run_data_to_datasets)


def run_data_check(args: argparse.Namespace) -> None:
    """Print what is wrong with a data set, file by file."""
    from harmony_diffusion.data.check import check_dataset
    from harmony_diffusion.data.photographs import parse_filters

    report = check_dataset(args.path, args.split, filters=parse_filters(args.filter), shards=args.shards)
    faults = report.faults
    for problem in report.problems:
        show(f"{'' if problem in faults else 'note: '}{problem.file}: {problem.reason}")
    show(f"{report.layout}: {report.count} samples looked at, {len(faults)} problems")
    if faults:
        raise InputError(args.path, f"has {len(faults)} problems", "They are listed above.")


def run_data_select(args: argparse.Namespace) -> None:
    """Write the list of test photographs of Open Images."""
    from harmony_diffusion.data.open_images import select_open_images
    from harmony_diffusion.images.output_files import write_atomically

    names = select_open_images(args.path, args.count, args.split)
    write_atomically(args.output, "".join(f"{name}\n" for name in names).encode(), overwrite=args.overwrite)
    show(args.output)


def run_data_to_datasets(args: argparse.Namespace) -> None:
    """Write the parquet files."""
    from harmony_diffusion.data.hub_export import write_hub_dataset
    from harmony_diffusion.data.layouts import list_dataset
    from harmony_diffusion.data.photographs import parse_filters

    listing = list_dataset(args.path, args.split, filters=parse_filters(args.filter) or None)
    samples = listing.samples or listing.photographs
    for path in write_hub_dataset(samples, args.output, args.split, overwrite=args.overwrite):
        show(str(path))
