"""Tables of clips: means over clips of what `eval_video.py` writes, a line a method and way to smooth."""

import csv
import io
import math
from collections.abc import Mapping
from pathlib import Path

from harmony_diffusion.errors import InputError

METRICS = {"fmse": 2, "psnr": 2, "fab": 2, "flicker": 2, "fr_rtc": 3, "tl_dis": 1}
TITLES = {
    "fmse": "fMSE ↓",
    "psnr": "PSNR ↑",
    "fab": "fΔab ↓",
    "flicker": "flicker ↓",
    "fr_rtc": "fR-RTC ↓",
    "tl_dis": "TL (DIS) ↓",
}
COLUMNS = ("name", "way", "frames", *METRICS)


def is_video_rows(path: Path) -> bool:
    """Return whether a file holds scores of clips."""
    try:
        with open(path, newline="") as file:
            return next(csv.reader(file), [])[:3] == list(COLUMNS[:3])
    except (OSError, UnicodeDecodeError):
        return False


def read_video_rows(path: Path) -> list[dict[str, str]]:
    """Read the rows of `eval_video.py`.

    Raises:
        InputError: There is none.
    """
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise InputError(path, "has no row", "Evaluate some clips first.")
    return rows


def mean_scores(methods: Mapping[str, list[dict[str, str]]]) -> list[dict[str, str]]:
    """Average over clips.

    Args:
        methods: Rows by method.

    Returns:
        One row a method and way: its name, clips, and the mean of every metric, empty where no clip has it.
    """
    table = []
    for method, rows in methods.items():
        for way in dict.fromkeys(row["way"] for row in rows):
            chosen = [row for row in rows if row["way"] == way]
            line = {"method": method, "way": way, "clips": str(len(chosen))}
            for metric, digits in METRICS.items():
                values = [float(row[metric]) for row in chosen if row.get(metric)]
                line[metric] = f"{math.fsum(values) / len(values):.{digits}f}" if values else ""
            table.append(line)
    return table


def video_markdown(table: list[dict[str, str]]) -> str:
    """Return the table as Markdown; "composite" and "real" are the clips themselves."""
    head = ["method", "way", "clips", *TITLES.values()]
    lines = [f"| {' | '.join(head)} |", f"|---|---|{'---:|' * (len(head) - 2)}"]
    keys = ("method", "way", "clips", *METRICS)
    lines += [f"| {' | '.join(line[key] for key in keys)} |" for line in table]
    note = (
        "TL (DIS) is mostly the error of the optical flow: compare it with that of the real clip, never with "
        "published TL."
    )
    return "\n".join(lines) + f"\n\n{note}\n"


def video_csv(table: list[dict[str, str]]) -> str:
    """Return the table as CSV."""
    file = io.StringIO()
    writer = csv.DictWriter(file, ("method", "way", "clips", *METRICS), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return file.getvalue()
