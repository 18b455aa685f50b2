"""Selection of the composites that a report shows as pictures: best, median and worst gain in PSNR."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from harmony_diffusion.errors import InputError
from harmony_diffusion.metrics.score_rows import Row

ERROR_LEVELS = 40  # error in 8-bit levels at which the map is darkest, the same for every case
# Anchor colours of the error map: off-white to red to near black, with evenly decreasing lightness. Most of a
# map is background without error and must not be black on a light page.
ERROR_COLORS = ((249, 247, 243), (247, 190, 130), (221, 96, 66), (142, 25, 75), (40, 8, 48))

# Sizes in the picture sheet, in pixels. Two blocks with margins are 1,600 pixels wide.
_CELL, _TALLEST, _GAP, _BETWEEN, _MARGIN, _TOP, _CAPTION = 250, 210, 6, 36, 20, 74, 36
_PAPER, _INK, _FAINT = (255, 255, 255), (28, 27, 25), (120, 117, 112)


@dataclass(frozen=True)
class Case:
    """Scores of one image before and after harmonization.

    Attributes:
        before: Row of the composite.
        after: Row of the harmonized image.
    """

    before: Row
    after: Row

    @property
    def gain(self) -> float:
        """Gain in PSNR, in dB."""
        return self.after.scores["psnr"] - self.before.scores["psnr"]


@dataclass(frozen=True)
class CasePictures:
    """The pictures of a case, each `(H, W, 3)` uint8 and of the same size."""

    case: Case
    composite: np.ndarray
    harmonized: np.ndarray
    real: np.ndarray


def pair_cases(composites: Sequence[Row], harmonized: Sequence[Row]) -> list[Case]:
    """Match the rows of the composites with the rows of a method. Images missing in either are left out.

    Raises:
        InputError: No image has a PSNR in both.
    """
    before = {(row.protocol, row.image): row for row in composites if "psnr" in row.scores}
    cases = [
        Case(before[row.protocol, row.image], row)
        for row in harmonized
        if "psnr" in row.scores and (row.protocol, row.image) in before
    ]
    if not cases:
        raise InputError("rows", "have no image and protocol in common with those of the composites")
    return cases


def choose_cases(cases: Sequence[Case], count: int) -> dict[str, list[Case]]:
    """Select the best, median and worst cases by gain.

    A photograph occurs at most once in a group, and a case in at most one group.

    Args:
        cases: All cases.
        count: Number of cases per group. A group has fewer if there are too few photographs.

    Returns:
        `"best"` in decreasing order of gain, `"median"` around the median gain, `"worst"` in increasing
        order.

    Raises:
        InputError: `count` is below 1.
    """
    if count < 1:
        raise InputError("cases", f"must be at least 1 per group, got {count}")
    ranked = sorted(cases, key=lambda case: (-case.gain, case.after.image))
    middle = float(np.median([case.gain for case in cases]))
    by_distance = sorted(ranked, key=lambda case: (abs(case.gain - middle), case.after.image))
    chosen: dict[str, list[Case]] = {}
    taken: set[tuple[str, str]] = set()
    for group, order in (("best", ranked), ("worst", ranked[::-1]), ("median", by_distance)):
        photographs: set[str] = set()
        chosen[group] = []
        for case in order:
            if len(chosen[group]) == count:
                break
            if case.after.photograph not in photographs and case.after.image not in taken:
                photographs.add(case.after.photograph)
                taken.add(case.after.image)
                chosen[group].append(case)
    return {group: chosen[group] for group in ("best", "median", "worst")}


def error_map(harmonized: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Colour the absolute difference, averaged over the channels, on a scale from 0 to `ERROR_LEVELS`.

    Args:
        harmonized: `(H, W, 3)` uint8.
        real: `(H, W, 3)` uint8.

    Returns:
        `(H, W, 3)` uint8.
    """
    error = np.abs(harmonized.astype(np.float32) - real.astype(np.float32)).mean(2) / ERROR_LEVELS
    places = np.linspace(0, 1, len(ERROR_COLORS))
    channels = [np.interp(error, places, channel) for channel in zip(*ERROR_COLORS, strict=True)]
    return np.stack(channels, 2).round().astype(np.uint8)


def picture_sheet(groups: Mapping[str, Sequence[CasePictures]], method: str) -> Image.Image:
    """Draw cases as one picture with a block per group and a line per case: composite | harmonized | real.

    Args:
        groups: Cases by the title of their block. Two blocks are 1,600 pixels wide.
        method: Name of the method, for the heading.

    Returns:
        An RGB picture.
    """
    block = 3 * _CELL + 2 * _GAP
    lines = max(len(members) for members in groups.values())
    sizes = {group: [_fit(pictures.real) for pictures in members] for group, members in groups.items()}
    heights = [max(s[line][1] for s in sizes.values() if line < len(s)) for line in range(lines)]
    width = 2 * _MARGIN + len(groups) * (block + _BETWEEN) - _BETWEEN
    sheet = Image.new("RGB", (width, _TOP + sum(heights) + lines * _CAPTION + _MARGIN // 2), _PAPER)
    draw = ImageDraw.Draw(sheet)
    title, text = ImageFont.load_default(24), ImageFont.load_default(15)
    for left, (group, members) in zip(range(_MARGIN, width, block + _BETWEEN), groups.items(), strict=False):
        draw.text((left, _MARGIN - 6), group, _INK, title)
        for column, label in enumerate(("composite", method, "real")):
            draw.text((left + column * (_CELL + _GAP), _TOP - 26), label, _FAINT, text)
        y = _TOP
        for pictures, size, height in zip(members, sizes[group], heights, strict=False):
            for column, pixels in enumerate((pictures.composite, pictures.harmonized, pictures.real)):
                small = Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS)
                sheet.paste(small, (left + column * (_CELL + _GAP), y))
            draw.text((left, y + size[1] + 5), case_caption(pictures.case), _INK, text)
            y += height + _CAPTION
    return sheet


def case_caption(case: Case) -> str:
    """Return PSNR before and after, the gain and the image name, in ASCII characters.

    Example:
        >>> before, after = (Row("c1_1_1", "HCOCO", 0.1, "", {"psnr": value}) for value in (24.0, 35.5))
        >>> case_caption(Case(before, after))
        '24.0 to 35.5 dB (+11.5)   HCOCO c1_1_1'
    """
    before, after = case.before.scores["psnr"], case.after.scores["psnr"]
    name = " ".join(part for part in case.after.image if part)
    return f"{before:.1f} to {after:.1f} dB ({case.gain:+.1f})   {name}"


def _fit(pixels: np.ndarray) -> tuple[int, int]:
    """Return width and height of a picture scaled to fit a cell of the sheet."""
    height, width = pixels.shape[:2]
    scale = min(_CELL / width, _TALLEST / height)
    return max(1, round(width * scale)), max(1, round(height * scale))
