"""`rows.csv`, the result of an evaluation: one row per image and protocol, in the order of the data set.

A unit of work is a batch of images. Each process appends its units to its own file, one line per unit. When
all units are done, `rows.csv` is written from these files. A run that was killed resumes after the last
complete line and produces the same bytes, if a unit always gives the same rows.
"""

import csv
import io
import json
import math
import os
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from harmony_diffusion.errors import InputError, OutputError
from harmony_diffusion.images.output_files import write_atomically
from harmony_diffusion.metrics.protocols import COLOR_METRICS, METRICS

COLUMNS = ("name", "subset", "foreground_ratio", "protocol", *METRICS)
# Columns that a file may have after these.
EXTRA_COLUMNS = (*COLOR_METRICS, "edges")
_UNIT = re.compile(rb"\[(\d+),.*\]\n", re.DOTALL)


def format_row(
    name: str, subset: str, protocol: str, values: Mapping[str, float], extra: Sequence[str] = ()
) -> list[str]:
    """Return the cells of a row with 10 significant digits. NaN and missing values give empty cells.

    Args:
        name: Name of the image.
        subset: Part of the data set.
        protocol: Protocol of the scores.
        values: `foreground_ratio` and the scores.
        extra: Metrics of `EXTRA_COLUMNS` that the file has too.
    """
    numbers = (values.get(column, math.nan) for column in ("foreground_ratio", *METRICS, *extra))
    ratio, *metrics = ("" if math.isnan(number) else f"{number:.10g}" for number in numbers)
    return [name, subset, ratio, protocol, *metrics]


class ResumableRows:
    """Rows of an evaluation, written by one or more processes that may be killed.

    Call `prepare` in the main process, then `pending` in all processes. When all calls have returned, call
    `append` for each unit, and finally `finish` in the main process.

    Args:
        folder: Folder of `rows.csv` and `run.json`, and of `rows-*.partial` until the evaluation is finished.
        count: Number of units of work.
        extra: Metrics of `EXTRA_COLUMNS` that the rows have, as in `format_row`.

    Attributes:
        target: The finished file.
    """

    def __init__(self, folder: Path, count: int, extra: Sequence[str] = ()) -> None:
        self.folder, self.count = folder, count
        self.columns = (*COLUMNS, *extra)
        self.target, self.record = folder / "rows.csv", folder / "run.json"
        self.file: int | None = None

    def prepare(self, settings: Mapping[str, Any], *, restart: bool = False) -> None:
        """Create the folder, or check that its rows have the same settings.

        Args:
            settings: All settings that the rows depend on, as JSON values.
            restart: Delete existing rows.

        Raises:
            OutputError: The folder has rows of other settings, or is not writable.
        """
        wanted = json.loads(json.dumps(settings))
        if restart:
            for path in (self.target, self.record, *self._partial_files()):
                path.unlink(missing_ok=True)
        if self.record.is_file():
            found = json.loads(self.record.read_text())
            changed = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
            if changed:
                reason = f"has rows of other settings: {', '.join(changed)}"
                raise OutputError(
                    self.folder, reason, "Give another folder, or delete the rows with --restart"
                )
        elif self.target.exists() or self._partial_files():
            raise OutputError(self.folder, "has rows of unknown settings", "Give another folder or --restart")
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self.record, json.dumps(wanted, indent=1).encode(), overwrite=True)

    def pending(self) -> list[int]:
        """Return the numbers of the unfinished units, in order."""
        done = set(range(self.count)) if self.target.is_file() else {unit for unit, *_ in self._units()}
        return [unit for unit in range(self.count) if unit not in done]

    def append(self, unit: int, rows: Sequence[Sequence[str]]) -> None:
        """Append the rows of a unit and flush them to disk."""
        if self.file is None:
            # The name is unique, because a process of a killed run may still be writing.
            path = self.folder / f"rows-{uuid.uuid4().hex}.partial"
            self.file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o666)
        line = json.dumps([unit, rows], separators=(",", ":")).encode() + b"\n"
        while line:
            line = line[os.write(self.file, line) :]

    def finish(self) -> Path:
        """Write `rows.csv` from all units and return its path.

        Raises:
            InputError: Units are missing.
        """
        places = {unit: place for unit, *place in self._units()}
        if len(places) == self.count:
            write_atomically(self.target, lambda file: self._write(places, file), overwrite=True)
        elif not self.target.is_file():
            raise InputError(
                self.folder, f"holds {len(places)} of {self.count} batches", "Run the same command again"
            )
        for path in self._partial_files():
            path.unlink(missing_ok=True)
        return self.target

    def _write(self, places: Mapping[int, Sequence[Any]], file: Any) -> None:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.columns)
        sources = {path: path.open("rb") for path in self._partial_files()}
        for unit in range(self.count):
            path, start = places[unit]
            sources[path].seek(start)
            writer.writerows(json.loads(sources[path].readline())[1])
        for source in sources.values():
            source.close()
        text.flush()
        text.detach()

    def _units(self) -> Iterator[tuple[int, Path, int]]:
        """Yield number, file and position of each complete unit. The last line of a file may be truncated."""
        for path in self._partial_files():
            start = 0
            with path.open("rb") as file:
                for line in file:
                    if match := _UNIT.fullmatch(line):
                        yield int(match[1]), path, start
                    start += len(line)

    def _partial_files(self) -> list[Path]:
        return sorted(self.folder.glob("rows-*.partial"))


def read_rows(path: Path) -> Iterator[dict[str, str]]:
    """Yield the rows of a file, one at a time.

    Raises:
        InputError: The file is missing or has other columns.
    """
    if not path.is_file():
        raise InputError(path, "is missing")
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        found = tuple(reader.fieldnames or ())
        if found[: len(COLUMNS)] != COLUMNS or set(found[len(COLUMNS) :]) - set(EXTRA_COLUMNS):
            raise InputError(path, f"has other columns than {', '.join(COLUMNS)}")
        yield from reader


def mean_rows(path: Path) -> dict[tuple[str, str], dict[str, float]]:
    """Average `rows.csv` without loading it into memory.

    Returns:
        One dictionary for each protocol and subset, and for `"all"` subsets: `images`, the number of images;
        `empty`, the number of images without foreground; and the mean of each metric over the images that
        have it.
    """
    sums: dict[tuple[str, str], dict[str, float]] = {}
    counts: dict[tuple[str, str], dict[str, int]] = {}
    for row in read_rows(path):
        for key in ((row["protocol"], row["subset"]), (row["protocol"], "all")):
            total = sums.setdefault(key, {"images": 0, "empty": 0})
            count = counts.setdefault(key, {})
            total["images"] += 1
            total["empty"] += float(row["foreground_ratio"]) == 0
            for metric in (*METRICS, *EXTRA_COLUMNS):
                if row.get(metric):
                    total[metric] = total.get(metric, 0.0) + float(row[metric])
                    count[metric] = count.get(metric, 0) + 1
    for key, count in counts.items():
        for metric, images in count.items():
            sums[key][metric] /= images
    return sums
