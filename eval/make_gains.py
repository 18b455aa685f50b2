"""Make tables of the gains of a method over the composites and of its changes to real photographs.

    python eval/make_gains.py --set "in place" OUT/method/rows.csv OUT/identity/rows.csv \
        --set relocated OUT/moved/rows.csv OUT/moved_identity/rows.csv \
        --untouched "in place" OUT/untouched/rows.csv --output OUT/gains.md

Each `--set` takes a name, the rows of the method, and the rows of `identity` on the same images. Each
`--untouched` takes a name and the rows of the method on real images (`eval_dataset.py --untouched`).
"""

import argparse
import sys
from pathlib import Path

from harmony_diffusion.errors import HarmonyError
from harmony_diffusion.images.output_files import write_atomically
from harmony_diffusion.metrics.score_rows import read_rows
from harmony_diffusion.reports.gains import gains, gains_markdown, untouched_markdown


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--set", nargs=3, action="append", default=[], metavar=("NAME", "ROWS", "IDENTITY_ROWS")
    )
    parser.add_argument("--untouched", nargs=2, action="append", default=[], metavar=("NAME", "ROWS"))
    parser.add_argument("--resamples", type=int, default=2000, help="bootstrap draws (default: 2000)")
    parser.add_argument("--output", type=Path, required=True, help="Markdown file to write")
    args = parser.parse_args()
    if not args.set and not args.untouched:
        parser.error("give at least one --set or --untouched")
    return args


def main() -> None:
    args = parse_args()
    try:
        parts = []
        if args.set:
            found = {
                name: gains(read_rows(rows), read_rows(composites), resamples=args.resamples)
                for name, rows, composites in args.set
            }
            parts.append(gains_markdown(found))
        if args.untouched:
            parts.append(untouched_markdown({name: read_rows(rows) for name, rows in args.untouched}))
        text = "\n".join(parts)
        args.output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(args.output, text.encode(), overwrite=True)
    except (HarmonyError, OSError) as error:
        sys.exit(f"make_gains: {error}")
    print(text, end="")


if __name__ == "__main__":
    main()
