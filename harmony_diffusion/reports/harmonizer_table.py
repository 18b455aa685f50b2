"""One table that compares methods of different kinds on several sets of composites.

The layout of the folder is that of `eval/harmonizer_tables.sh`: `SET/METHOD/rows.csv`, `SET/METHOD/fid.json`,
`untouched_SET/METHOD/rows.csv` and `seconds/METHOD.txt`. Where a file is missing, the table says "not run".
"""

import json
from collections.abc import Sequence
from pathlib import Path

from harmony_diffusion.metrics.score_rows import read_rows
from harmony_diffusion.reports.gains import gains, mean_psnr

COMPOSITE = "identity"  # method whose results are the composites
NOT_RUN = "not run"


def harmonizer_markdown(
    folder: Path, sets: Sequence[str], methods: Sequence[str], *, resamples: int = 2000
) -> str:
    """Format the scores of several methods as two Markdown tables: all composites, and by kind.

    Args:
        folder: Folder of the scores, see the module.
        sets: Names of the sets of composites, such as `in_place`.
        methods: Names of the methods; `identity` stands for the composites and must have rows in each set.
        resamples: Number of bootstrap draws.

    Raises:
        InputError: Rows are missing for `identity`, or a method has rows of other images.
    """
    columns = ["composites", "method", "images", "PSNR ↑", "fMSE ↓", "fMSE ratio ↓", "95 % interval"]
    columns += ["made worse", "FID ↓", "KID x 1000 ↓", "untouched PSNR ↑", "seconds"]
    lines = _head(columns, 2)
    kinds: list[str] = []
    for name in sets:
        composites = read_rows(folder / name / COMPOSITE / "rows.csv")
        for method in methods:
            path = folder / name / method / "rows.csv"
            if not path.is_file():
                lines.append(_line(name, method, *[NOT_RUN] * (len(columns) - 2)))
                continue
            rows = read_rows(path)
            everything, *parts = gains(rows, composites, resamples=resamples)
            scored = [row.scores["fmse"] for row in rows if "fmse" in row.scores]
            bounds = everything.ratio_interval
            lines.append(
                _line(
                    name,
                    method,
                    f"{everything.images:,}",
                    f"{mean_psnr(rows, resamples=resamples)[0]:.2f}",
                    f"{sum(scored) / len(scored):.1f}",
                    f"{everything.fmse_ratio:.3f}",
                    f"{bounds.low:.3f} to {bounds.high:.3f}",
                    f"{100 * everything.worse:.0f} %",
                    *_distance(folder / name / method / "fid.json"),
                    _untouched(folder / f"untouched_{name}" / method / "rows.csv", resamples),
                    _seconds(folder / "seconds" / f"{method}.txt"),
                )
            )
            kinds += [
                _line(
                    name,
                    method,
                    part.subset,
                    f"{part.images:,}",
                    f"{part.psnr:+.2f}",
                    f"{part.fmse_ratio:.3f}",
                    f"{part.ratio_interval.low:.3f} to {part.ratio_interval.high:.3f}",
                    f"{100 * part.worse:.0f} %",
                )
                for part in parts
                if method != COMPOSITE
            ]
    columns = ["composites", "method", "kind", "images", "PSNR gain (dB)", "fMSE ratio ↓", "95 % interval"]
    return "\n".join([*lines, "", *_head([*columns, "made worse"], 3), *kinds]) + "\n"


def _head(columns: Sequence[str], texts: int) -> list[str]:
    return [_line(*columns), "|" + "---|" * texts + "---:|" * (len(columns) - texts)]


def _line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _distance(path: Path) -> tuple[str, str]:
    if not path.is_file():
        return NOT_RUN, NOT_RUN
    distance = json.loads(path.read_text("utf-8"))
    return f"{distance['fid']:.2f}", f"{1000 * distance['kid']:.2f}"


def _untouched(path: Path, resamples: int) -> str:
    return f"{mean_psnr(read_rows(path), resamples=resamples)[0]:.1f}" if path.is_file() else NOT_RUN


def _seconds(path: Path) -> str:
    return f"{float(path.read_text('utf-8')):.2f}" if path.is_file() else NOT_RUN
