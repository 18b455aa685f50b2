"""Make tables from per-image scores: all images, by subset, by foreground ratio. No model is loaded.

    python eval/make_tables.py outputs/identity/rows.csv hdnet=outputs/run7/rows.csv --output outputs/tables
    python eval/make_tables.py outputs/*/rows.csv --compare hdnet,mkl --output outputs/tables
    python eval/make_tables.py outputs/sweep/{}/rows.csv --control-scale 0.1:1.0:0.1 --output outputs/sweep
    python eval/make_tables.py hdnet=outputs/run7/rows.csv --card FOLDER/README.md --dataset OWNER/iharmony4 \
        --output outputs/tables

The name of a method is the text before `=`, else the folder of `rows.csv`, else the file name. Means are
taken over images; "all" is the mean over all images, not over subset means. Intervals are 95 % bootstrap
intervals that resample photographs, because composites of the same photograph are correlated. `--compare A,B`
tests A against B on the same images with random sign flips by photograph. The script writes tables.md,
tables.tex, tables.csv and tables.json.

If the rows have the protocols `raw` and `pasted` (diffusion models), the script also makes the table of
variants. It reads FID and KID from `fid_raw.json`, `fid_pasted.json`, `fid_raw_foreground.json` and
`fid_pasted_foreground.json` in the folder of the rows, as written by eval_fid.py. `--control-scale` reads the
rows of a sweep, with {} for the scale in their path, and prints Table 2 of the paper. `--card` merges the
scores of the last method into a model card, and writes `.eval_results/` next to the card if `--dataset` is a
Hub id. Rows of clips (eval_video.py) give one table of means over clips.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from harmony_diffusion.errors import HarmonyError, InputError
from harmony_diffusion.images.output_files import write_atomically
from harmony_diffusion.metrics.score_rows import Row, read_rows
from harmony_diffusion.reports.diffusion_tables import (
    PASTED,
    RAW,
    parse_scales,
    read_distances,
    read_sweep,
    sweep_markdown,
    variants_markdown,
)
from harmony_diffusion.reports.hub_results import merge_into_card, model_index_results, write_eval_results
from harmony_diffusion.reports.table_formats import to_csv, to_json, to_latex, to_markdown
from harmony_diffusion.reports.tables import Tables, make_tables
from harmony_diffusion.reports.video_tables import (
    is_video_rows,
    mean_scores,
    read_video_rows,
    video_csv,
    video_markdown,
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="+", metavar="[METHOD=]rows.csv", help="per-image scores of a method")
    parser.add_argument("--protocol", help="use only these protocols, comma-separated")
    parser.add_argument(
        "--compare", action="append", default=[], metavar="A,B", help="test A against B; repeatable"
    )
    parser.add_argument("--resamples", type=int, default=2000, help="bootstrap draws; 0: no intervals")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--not-run",
        action="append",
        default=[],
        metavar="METHOD=COMMAND",
        help="list a method in the table of variants as not run, with the command that scores it; repeatable",
    )
    parser.add_argument("--control-scale", metavar="START:STOP:STEP", help="scales of a sweep")
    parser.add_argument(
        "--card", type=Path, help="README.md of a model; receives the scores of the last method"
    )
    parser.add_argument(
        "--dataset", default="iharmony4", help="data set in the card: OWNER/NAME on the Hub, or a name"
    )
    parser.add_argument("--dataset-name", default="iHarmony4", help="display name in the card")
    parser.add_argument("--output", type=Path, required=True, help="folder for the tables")
    return parser.parse_args()


def find_methods(arguments: list[str]) -> dict[str, Path]:
    paths: dict[str, Path] = {}
    for argument in arguments:
        name, _, path = argument.rpartition("=")
        stem = Path(path).name.removesuffix(".gz").removesuffix(".csv")
        name = name or (Path(path).resolve().parent.name if stem == "rows" else stem)
        if name in paths:
            raise InputError(name, "is the name of two methods", "Rename one with METHOD=rows.csv.")
        paths[name] = Path(path)
    return paths


def read_methods(paths: Mapping[str, Path], protocols: str | None) -> dict[str, list[Row]]:
    methods = {name: read_rows(path) for name, path in paths.items()}
    if protocols:
        wanted = protocols.split(",")
        for name, rows in methods.items():
            if absent := set(wanted) - {row.protocol for row in rows}:
                raise InputError(name, f"has no row of the protocol {', '.join(sorted(absent))}")
            methods[name] = [row for row in rows if row.protocol in wanted]
    return methods


def absent_methods(texts: list[str]) -> dict[str, str]:
    """Return the commands of `--not-run` by method."""
    pairs = [text.partition("=") for text in texts]
    if any(not (name and command) for name, _, command in pairs):
        raise InputError("--not-run", f"expected METHOD=COMMAND, got {texts}")
    return {name: command for name, _, command in pairs}


def sweep(args: argparse.Namespace) -> str:
    """Return Table 2 of the paper from the rows of a sweep."""
    if len(args.rows) != 1 or "{}" not in args.rows[0]:
        raise InputError("--control-scale", "requires one path of rows with {} in place of the scale")
    return sweep_markdown(read_sweep(args.rows[0], parse_scales(args.control_scale), args.protocol))


def tables_of(args: argparse.Namespace, paths: Mapping[str, Path]) -> tuple[Tables, str]:
    """Return the tables, and their Markdown with the variants of diffusion models if there are any."""
    pairs = [tuple(pair.split(",")) for pair in args.compare]
    if any(len(pair) != 2 for pair in pairs):
        raise InputError("--compare", f"expected two methods separated by a comma, got {args.compare}")
    methods = read_methods(paths, args.protocol)
    tables = make_tables(methods, comparisons=pairs, resamples=args.resamples, seed=args.seed)
    markdown = to_markdown(tables)
    if {RAW, PASTED} & set(tables.protocols):
        distances = {name: read_distances(path) for name, path in paths.items()}
        markdown += "\n## Variants\n\n" + variants_markdown(tables, distances, absent_methods(args.not_run))
    return tables, markdown


def main() -> None:
    args = parse_args()
    try:
        paths = {} if args.control_scale else find_methods(args.rows)
        if args.control_scale:
            texts = {"sweep.md": sweep(args)}
        elif all(is_video_rows(path) for path in paths.values()):
            means = mean_scores({name: read_video_rows(path) for name, path in paths.items()})
            texts = {"tables.md": video_markdown(means), "tables.csv": video_csv(means)}
        else:
            tables, markdown = tables_of(args, paths)
            texts = {"tables.md": markdown, "tables.tex": to_latex(tables)}
            texts |= {"tables.csv": to_csv(tables), "tables.json": to_json(tables)}
        args.output.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            write_atomically(args.output / name, text.encode(), overwrite=True)
        if args.card and "tables.json" in texts:
            method = list(paths)[-1]
            options = {"dataset": args.dataset, "dataset_name": args.dataset_name}
            merge_into_card(args.card, method, model_index_results(tables, method, **options))
            if "/" in args.dataset:
                write_eval_results(args.card.parent, tables, method, dataset=args.dataset)
    except (HarmonyError, OSError) as error:
        sys.exit(f"make_tables: {error}")
    print(next(iter(texts.values())), end="")


if __name__ == "__main__":
    main()
