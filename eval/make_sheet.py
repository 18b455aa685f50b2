"""Results of several methods side by side: a picture with a line an image and a column a folder.

    python eval/make_sheet.py photograph=outputs/both/real text=outputs/text/pasted both=outputs/both/pasted \
        --names coco/1 coco/7 --output sheet.png

Folders hold NAME.png, as `eval_controlnets.py` writes them. Without `--names` the first `--count` images
that all folders have are taken, by name.
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
    add("--names", nargs="+", help="images to show, as they are named in the folders, without .png")
    add("--count", type=int, default=6)
    add("--side", type=int, default=160, help="pixels of the longer side of each image")
    add("--overwrite", action="store_true")
    add("--output", type=Path, required=True, help="PNG file")
    return parser.parse_args()


def find_names(folders: list[Path], count: int) -> list[str]:
    """Return the first names that all folders have.

    Raises:
        InputError: There are none.
    """
    found = [
        {path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.png")}
        for folder in folders
    ]
    names = sorted(set.intersection(*found))[:count]
    if not names:
        raise InputError(folders[0], "shares no NAME.png with the other folders")
    return names


def read_image(path: Path, side: int) -> Image.Image:
    """Read an image, scaled.

    Raises:
        InputError: It is not there.
    """
    if not path.is_file():
        raise InputError(path, "is not there")
    image = Image.open(path).convert("RGB")
    scale = side / max(image.size)
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)


def draw_sheet(columns: dict[str, Path], names: list[str], side: int) -> Image.Image:
    """Draw the sheet."""
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
