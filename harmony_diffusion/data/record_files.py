"""JSON-lines files that a long job appends to, so that it can resume after it was killed."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from harmony_diffusion.errors import InputError


def append_records(path: Path, records: Iterable[Mapping[str, object]]) -> None:
    """Append one line per record and flush the file to disk.

    An unfinished last line of an earlier process is removed first.
    """
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    with path.open("a+b") as file:
        file.truncate(_end_of_last_line(path))
        file.write(lines.encode())
        file.flush()
        os.fsync(file.fileno())


def read_ids(path: Path) -> list[str]:
    """Return the names in a list of samples, separated by white space."""
    return path.read_text(encoding="utf-8-sig").split()


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a file. An unfinished last line is ignored.

    Raises:
        InputError: A line is not a JSON object.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                record = json.loads(line)
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise InputError(f"{path}:{number}", f"is not JSON: {error}") from None
            if not isinstance(record, dict):
                raise InputError(f"{path}:{number}", "is not a JSON object")
            yield record


def _end_of_last_line(path: Path) -> int:
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - 4096)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            end = start
    return 0
