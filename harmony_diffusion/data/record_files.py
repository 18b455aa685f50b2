"""Files of JSON lines that long jobs append to, and go on from after they were killed."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from harmony_diffusion.errors import InputError


def append_records(path: Path, records: Iterable[Mapping[str, object]]) -> None:
    """Append one line a record, and have them on the disk before returning.

    A line that an earlier process left unfinished at the end of the file is removed first.
    """
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    with path.open("a+b") as file:
        file.truncate(_end_of_last_line(path))
        file.write(lines.encode())
        file.flush()
        os.fsync(file.fileno())


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a file, without a last one that was left unfinished.

    Raises:
        InputError: A line is no JSON object.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                record = json.loads(line)
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise InputError(f"{path}:{number}", f"is no JSON: {error}") from None
            if not isinstance(record, dict):
                raise InputError(f"{path}:{number}", "is no JSON object")
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
