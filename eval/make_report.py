"""Make an HTML report of a method: tables, a point for every image, and best, median and worst cases.

    python eval/make_report.py outputs/hdnet/rows.csv --composite outputs/identity/rows.csv \
        --data PATH/TO/IHARMONY4 --model outputs/run7 --output report.html --picture best_and_worst.jpg

The first rows file belongs to the reported method; further rows files add lines to the tables. `--composite`
takes the rows of the composites (`eval_dataset.py --model identity`); gains are relative to them. The
pictures come from `--harmonized`, a folder with `SUBSET/NAME.png` or `NAME.png` (or .jpg), or are computed
again with `--model`. `--picture` writes the best and worst cases as one picture, 1,600 pixels wide.
"""

import argparse
import io
import shlex
import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from harmony_diffusion.data.layouts import list_dataset
from harmony_diffusion.data.sample import HarmonySample
from harmony_diffusion.errors import HarmonyError, InputError
from harmony_diffusion.images.masks import load_mask
from harmony_diffusion.images.output_files import check_output, write_atomically
from harmony_diffusion.images.picture import load_picture
from harmony_diffusion.metrics.score_rows import Row, protocols_of, read_rows
from harmony_diffusion.models import load_model
from harmony_diffusion.pipelines.harmonization import HarmonizationPipeline
from harmony_diffusion.reports.report_cases import Case, CasePictures, choose_cases, pair_cases, picture_sheet
from harmony_diffusion.reports.report_page import report_page
from harmony_diffusion.reports.tables import make_tables

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "rows", nargs="+", metavar="[METHOD=]rows.csv", help="rows of the method, then of other methods"
    )
    parser.add_argument("--composite", type=Path, required=True, help="rows of the composites")
    parser.add_argument("--data", type=Path, required=True, help="the evaluated data set")
    parser.add_argument("--split", default="test")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--harmonized", type=Path, help="folder with the results of the method")
    source.add_argument("--model", help="registry name, or folder of a saved model")
    parser.add_argument("--protocol", help="default: the first protocol in the rows")
    parser.add_argument("--cases", type=int, default=4, help="cases per group")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True, help="HTML file")
    parser.add_argument("--picture", type=Path, help="JPEG or PNG of the best and the worst cases")
    parser.add_argument("--overwrite", action="store_true")
    return parser.parse_args()


def read_methods(args: argparse.Namespace) -> dict[str, list[Row]]:
    """Return the rows by method: first the composites, then the reported method, then the others."""
    methods = {"composite": read_rows(args.composite)}
    for argument in args.rows:
        name, _, path = argument.rpartition("=")
        name = name or Path(path).resolve().parent.name
        if name in methods:
            raise InputError(name, "is the name of two methods", "Rename one with METHOD=rows.csv.")
        methods[name] = read_rows(path)
    return methods


def of_protocol(methods: dict[str, list[Row]], protocol: str) -> dict[str, list[Row]]:
    chosen = {name: [row for row in rows if row.protocol == protocol] for name, rows in methods.items()}
    if empty := [name for name, rows in chosen.items() if not rows]:
        reason = f"has no row of the protocol {protocol!r}"
        raise InputError(", ".join(empty), reason, "Choose another with --protocol.")
    return chosen


class Results:
    """Source of the harmonized pictures: a folder, or a model that is run for the shown images."""

    def __init__(self, folder: Path | None, model: str | None) -> None:
        self.folder = folder
        self.pipe = HarmonizationPipeline(load_model(model)) if model else None
        if self.pipe:
            self.pipe.set_progress_bar_config(disable=True)

    def find(self, sample: HarmonySample) -> np.ndarray:
        """Return the result for a sample, `(H, W, 3)` uint8."""
        if self.pipe:
            composite = load_picture(sample.composite)
            mask = load_mask(sample.mask, size=composite.size)
            return np.asarray(self.pipe(composite, mask).images[0].convert("RGB"))
        places = [self.folder / sample.subset / sample.name, self.folder / sample.name]
        for place in places:
            for suffix in SUFFIXES:
                if (path := place.with_name(place.name + suffix)).is_file():
                    return pixels_of(path)
        raise InputError(self.folder, f"holds no picture {sample.subset}/{sample.name} or {sample.name}")


def pixels_of(source) -> np.ndarray:
    return np.asarray(load_picture(source).to_pil().convert("RGB"))


def load_pictures(case: Case, sample: HarmonySample, results: Results) -> CasePictures:
    real = pixels_of(sample.real)
    size = real.shape[1::-1]
    others = (pixels_of(sample.composite), results.find(sample))
    resized = (
        pixels
        if pixels.shape == real.shape
        else np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))
        for pixels in others
    )
    return CasePictures(case, *resized, real)


def collect(args: argparse.Namespace, cases: Sequence[Case]) -> dict[str, list[CasePictures]]:
    samples = {(s.subset, s.name): s for s in list_dataset(args.data, args.split).samples}
    results = Results(args.harmonized, args.model)
    pictures: dict[str, list[CasePictures]] = {}
    for group, chosen in choose_cases(cases, args.cases).items():
        for case in chosen:
            if case.after.image not in samples:
                raise InputError(args.data, f"lacks the image {'/'.join(case.after.image)} of the rows")
        pictures[group] = [load_pictures(case, samples[case.after.image], results) for case in chosen]
    return pictures


def main() -> None:
    args = parse_args()
    try:
        if args.picture and args.picture.suffix.lower() not in (".jpg", ".jpeg", ".png"):
            raise InputError(args.picture, "must end in .jpg or .png")
        for path in filter(None, (args.output, args.picture)):
            check_output(path, overwrite=args.overwrite)
        all_rows = read_methods(args)
        composite, method = list(all_rows)[:2]
        protocol = protocols_of(all_rows[method])[0] if args.protocol is None else args.protocol
        methods = of_protocol(all_rows, protocol)
        cases = pair_cases(methods[composite], methods[method])
        tables = make_tables(methods, comparisons=[(method, composite)], seed=args.seed)
        pictures = collect(args, cases)
        facts = [
            f"Protocol: {protocol or 'not named in the rows'}. Means are over images. Intervals are 95 % "
            "bootstrap intervals that resample photographs. The p-values are two-sided, from random sign "
            "flips by photograph, and not corrected for the number of metrics.",
            f"Command: <code>{escape(shlex.join(['eval/make_report.py', *sys.argv[1:]]))}</code>",
        ]
        by_protocol = make_tables({name: all_rows[name] for name in (composite, method)}, resamples=0)
        page = report_page(method, composite, tables, cases, pictures, facts, by_protocol)
        write_atomically(args.output, page.encode(), overwrite=args.overwrite)
        if args.picture:
            shown = {"Best": pictures["best"], "Worst": pictures["worst"]}
            buffer = io.BytesIO()
            sheet = picture_sheet(shown, method)
            sheet.save(buffer, "PNG" if args.picture.suffix.lower() == ".png" else "JPEG", quality=90)
            write_atomically(args.picture, buffer.getvalue(), overwrite=args.overwrite)
    except (HarmonyError, OSError) as error:
        sys.exit(f"make_report: {error}")
    print(args.output)


if __name__ == "__main__":
    main()
