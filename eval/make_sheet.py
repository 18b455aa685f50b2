"""Show results of several methods side by side: one row per image and one column per folder.

    python eval/make_sheet.py photograph=outputs/both/real text=outputs/text/pasted both=outputs/both/pasted \
        --names coco/1 coco/7 --output sheet.png

The folders contain NAME.png, as written by `eval_controlnets.py`. Without `--names`, the sheet shows the
first `--count` images, in order of name, that exist in all folders.
"""

import argparse
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from harmony_diffusion.errors import HarmonyError, InputError
from harmony_diffusion.images.output_files import check_output, write_atomically

GAP, HEAD = 6, 26
PAPER, INK = (255, 255, 255), (40, 40, 40)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("columns", nargs="+", metavar="[TITLE=]FOLDER")
    add("--names", nargs="+", help="images to show: file names without .png")
    add("--count", type=int, default=6)
    add("--side", type=int, default=160, help="longer side of each image in pixels")
    add("--overwrite", action="store_true")
    add("--output", type=Path, required=True, help="PNG file")
    return parser.parse_args()


def find_names(folders: list[Path], count: int) -> list[str]:
    """Return the first names that exist in all folders.

    Raises:
        InputError: No name exists in all folders.
    """
    found = [
        {path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.png")}
        for folder in folders
    ]
    names = sorted(set.intersection(*found))[:count]
    if not names:
        raise InputError(folders[0], "has no NAME.png in common with the other folders")
    return names


def read_image(path: Path, side: int) -> Image.Image:
    """Read an image and scale its longer side to `side` pixels.

    Raises:
        InputError: The file does not exist.
    """
    if not path.is_file():
        raise InputError(path, "does not exist")
    image = Image.open(path).convert("RGB")
    scale = side / max(image.size)
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)


def draw_sheet(columns: dict[str, Path], names: list[str], side: int) -> Image.Image:
    """Draw the sheet, one row per name and one column per folder."""
    lines = [[read_image(folder / f"{name}.png", side) for folder in columns.values()] for name in names]
    heights = [max(image.height for image in line) for line in lines]
    width = GAP + len(columns) * (side + GAP)
    sheet = Image.new("RGB", (width, HEAD + sum(heights) + len(lines) * GAP), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for column, title in enumerate(columns):
        draw.text((GAP + column * (side + GAP), 4), title, INK, font)
    top = HEAD
    for line, height in zip(lines, heights, strict=True):
        for column, image in enumerate(line):
            sheet.paste(image, (GAP + column * (side + GAP), top))
        top += height + GAP
    return sheet


def main() -> None:
    args = parse_args()
    columns = {}
    for argument in args.columns:
        title, _, folder = argument.rpartition("=")
        columns[title or folder] = Path(folder)
    try:
        check_output(args.output, overwrite=args.overwrite)
        names = args.names or find_names(list(columns.values()), args.count)
        sheet = draw_sheet(columns, names, args.side)
        write_atomically(args.output, lambda file: sheet.save(file, "PNG"), overwrite=args.overwrite)
    except (HarmonyError, OSError) as error:
        sys.exit(f"make_sheet: {error}")


if __name__ == "__main__":
    main()
