"""Tables from per-image scores: all images, by subset, by foreground ratio; no model is loaded.

    python eval/make_tables.py outputs/identity/rows.csv hdnet=outputs/run7/rows.csv --output outputs/tables
    python eval/make_tables.py outputs/*/rows.csv --compare hdnet,mkl --output outputs/tables

A method is named before `=`, or after the folder of `rows.csv`, or after the file. Means are taken over
images, "all" over all of them and never over subsets' means. Intervals are 95 % bootstrap intervals that draw
photographs, since composites of one photograph are alike; `--compare A,B` tests A against B on the same
images by flipping signs photograph by photograph. Writes tables.md, tables.tex, tables.csv and tables.json.
"""

import argparse
import sys
from pathlib import Path

from harmony_diffusion.errors import HarmonyError, InputError
from harmony_diffusion.metrics.rows import Row, read_rows
from harmony_diffusion.metrics.table_formats import to_csv, to_json, to_latex, to_markdown
from harmony_diffusion.metrics.tables import make_tables
from harmony_diffusion.output_files import write_atomically

FORMATS = {"md": to_markdown, "tex": to_latex, "csv": to_csv, "json": to_json}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="+", metavar="[METHOD=]rows.csv", help="per-image scores of a method")
    parser.add_argument("--protocol", help="only these protocols, separated by commas")
    parser.add_argument("--compare", action="append", default=[], metavar="A,B", help="may be repeated")
    parser.add_argument("--resamples", type=int, default=2000, help="bootstrap draws; 0 for no intervals")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True, help="folder for the tables")
    return parser.parse_args()


def read_methods(arguments: list[str], protocols: str | None) -> dict[str, list[Row]]:
    methods: dict[str, list[Row]] = {}
    for argument in arguments:
        name, _, path = argument.rpartition("=")
        name = name or method_name(Path(path))
        if name in methods:
            raise InputError(name, "is the name of two methods", "Name one of them with METHOD=rows.csv.")
        methods[name] = read_rows(path)
    if protocols:
        wanted = protocols.split(",")
        for name, rows in methods.items():
            if absent := set(wanted) - {row.protocol for row in rows}:
                raise InputError(name, f"has no row of the protocol {', '.join(sorted(absent))}")
            methods[name] = [row for row in rows if row.protocol in wanted]
    return methods


def method_name(path: Path) -> str:
    stem = path.name.removesuffix(".gz").removesuffix(".csv")
    return path.resolve().parent.name if stem == "rows" else stem


def main() -> None:
    args = parse_args()
    try:
        methods = read_methods(args.rows, args.protocol)
        pairs = [tuple(pair.split(",")) for pair in args.compare]
        if any(len(pair) != 2 for pair in pairs):
            raise InputError("--compare", "takes two methods separated by a comma")
        tables = make_tables(methods, comparisons=pairs, resamples=args.resamples, seed=args.seed)
        args.output.mkdir(parents=True, exist_ok=True)
        for suffix, render in FORMATS.items():
            path = args.output / f"tables.{suffix}"
            write_atomically(path, render(tables).encode(), overwrite=True)
    except HarmonyError as error:
        sys.exit(f"make_tables: {error}")
    print(to_markdown(tables), end="")


if __name__ == "__main__":
    main()
