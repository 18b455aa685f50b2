"""Compare a diffusion pipeline that harmonizes with other methods and with the composites.

    python eval/make_harmonizer_table.py OUT --sets in_place relocated \
        --methods identity color_grid mini_dual_controlnet mini_harmonizer --output OUT/table.md

OUT is the folder of `eval/harmonizer_tables.sh`, which calls this script. The ratio is the mean fMSE of the
results divided by that of the composites. The script prints the tables and writes them to `--output`.
"""

import argparse
import sys
from pathlib import Path

from harmony_diffusion.errors import HarmonyError
from harmony_diffusion.images.output_files import write_atomically
from harmony_diffusion.reports.harmonizer_table import harmonizer_markdown


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="folder with SET/METHOD/rows.csv")
    parser.add_argument("--sets", nargs="+", required=True, help="names of the sets")
    parser.add_argument("--methods", nargs="+", required=True, help="names of the methods, in order")
    parser.add_argument("--resamples", type=int, default=2000, help="bootstrap draws (default: 2000)")
    parser.add_argument("--output", type=Path, required=True, help="Markdown file to write")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    try:
        text = harmonizer_markdown(args.folder, args.sets, args.methods, resamples=args.resamples)
        args.output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(args.output, text.encode(), overwrite=True)
    except (HarmonyError, OSError) as error:
        sys.exit(f"make_harmonizer_table: {error}")
    print(text, end="")


if __name__ == "__main__":
    main()
