"""The plan: every result a batch is to make, sorted, in a file that is never held in memory."""

import heapq
import json
import os
import tempfile
from array import array
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

from harmony_diffusion.batch.inputs import FILE_FIELDS, WRITTEN_SUFFIXES, Inputs, Row
from harmony_diffusion.errors import InputError
from harmony_diffusion.images.output_files import comparison_key

SHARD = 64  # entries a lease
_SORTED_AT_ONCE = 50_000
_OWN_NAMES = (".harmony", "manifest.jsonl", "errors.jsonl")
_LONGEST_NAME = 255  # bytes, on all common file systems


def digest(line: bytes) -> int:
    """Return 64 bits that tell one line of a plan from all others: its names, options, sizes and times."""
    return int.from_bytes(blake2b(line, digest_size=8).digest(), "big")


class Plan:
    """A plan on the disk, one JSON object a line, sorted by id.

    Args:
        path: The file. It stays open, so that replacing it does not disturb this object.
        shard: Entries of which the place in the file is kept, and that one lease covers.
    """

    def __init__(self, path: Path, shard: int = SHARD) -> None:
        self.shard = shard
        self._file = path.open("rb")
        self._starts, self._count = array("Q"), 0
        self._checksum = blake2b(digest_size=8)
        position = 0
        for line in self._file:
            if self._count % shard == 0:
                self._starts.append(position)
            position += len(line)
            self._count += 1
            self._checksum.update(line)

    def __len__(self) -> int:
        """Return the number of entries."""
        return self._count

    @property
    def checksum(self) -> str:
        """Return 16 digits that tell this plan from others."""
        return self._checksum.hexdigest()

    @property
    def shards(self) -> int:
        """Return the number of parts of `shard` entries."""
        return len(self._starts)

    def lines(self) -> Iterator[bytes]:
        """Yield all lines; nothing else may be read from the plan meanwhile."""
        self._file.seek(0)
        yield from self._file

    def outputs(self) -> Iterator[str]:
        """Yield the name of each output."""
        for line in self.lines():
            yield json.loads(line)["output"]

    def read(self, shard: int) -> list[bytes]:
        """Return the lines of a shard."""
        self._file.seek(self._starts[shard])
        count = min(self.shard, self._count - shard * self.shard)
        return [self._file.readline() for _ in range(count)]

    def entry(self, i: int) -> dict[str, Any]:
        """Return one entry."""
        return json.loads(self.read(i // self.shard)[i % self.shard])

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def place_of(found: os.stat_result) -> int:
    """Return 64 bits that tell one file from all others, by whatever name."""
    return hash((found.st_dev, found.st_ino)) & (2**64 - 1)


def write_plan(inputs: Inputs, path: Path, places: "array[int] | None" = None) -> None:
    """Write the plan of a batch.

    Args:
        inputs: Where the rows come from.
        path: File to be written, in a folder that also takes temporary files.
        places: Gets `place_of` each file of each row.

    Raises:
        InputError: A name or value that cannot be used, a file that is missing, or two results of the same
            name up to suffix and upper or lower case.
    """
    folders: set[str] = set()
    with path.open("wb") as file, tempfile.TemporaryFile(dir=path.parent) as runs:
        previous_key, previous = None, b""
        for line in _sorted(_keyed_lines(inputs, places), runs):
            key, _, text = line.partition(b"\0")
            if key == previous_key:
                first, second = (_picture_of(json.loads(one)) for one in (previous, text))
                raise InputError(
                    inputs.source,
                    f"{first} and {second} have the same name, so their results would replace each other",
                    "Rename one of them, or give them an output column.",
                )
            previous_key, previous = key, text
            _add_folders(json.loads(text)["output"], folders)
            file.write(text)
    _check_folders(path, folders)


def _add_folders(output: str, folders: set[str]) -> None:
    """Add the folders of an output; refuse those whose names the job itself needs.

    Raises:
        InputError: The output would lie in such a folder, or its name is too long.
    """
    if max(len(os.fsencode(part)) for part in output.split("/")) > _LONGEST_NAME:
        raise InputError(f"{output[:60]}…", "the file name is too long", "Give it a shorter output.")
    folder = comparison_key(output).rpartition("/")[0]
    if folder.split("/")[0] in _OWN_NAMES:
        raise InputError(
            output, f"lies in {folder.split('/')[0]}, a name the job itself needs", "Give another output."
        )
    while folder and folder not in folders:
        folders.add(folder)
        folder = folder.rpartition("/")[0]


def _check_folders(path: Path, folders: set[str]) -> None:
    """Refuse outputs that would be a file and a folder at once."""
    suspicious = {folder for folder in folders if os.path.splitext(folder)[1] in {*WRITTEN_SUFFIXES, ".tar"}}
    if not suspicious:
        return
    with path.open("rb") as file:
        for line in file:
            output = json.loads(line)["output"]
            if comparison_key(output) in suspicious:
                raise InputError(
                    output, "is the name of an output and of the folder of another one", "Rename one of them."
                )


def _picture_of(entry: Row) -> str:
    return str(entry.get("composite") or entry.get("foreground"))


def _keyed_lines(inputs: Inputs, places: "array[int] | None") -> Iterator[bytes]:
    """Yield each entry as JSON, after the key it is sorted by and a NUL."""
    for row in inputs.rows():
        row = row | _stamps(inputs, row, places)
        # Sorted runs are read line by line.
        name = comparison_key(row["id"]).replace("\\", "\\\\").replace("\n", "\\n")
        key = name.encode("utf-8", "surrogatepass")
        yield key + b"\0" + json.dumps(row).encode() + b"\n"


def _stamps(inputs: Inputs, row: Row, places: "array[int] | None") -> dict[str, list[int]]:
    """Return size and time of each file of a row, so that a changed one is noticed."""
    sizes, times = [], []
    for field in FILE_FIELDS:
        if field in row:
            root = inputs.mask_root if field in ("mask", "reference_mask") else inputs.root
            try:
                found = os.stat(f"{root}/{row[field]}")
            except OSError as error:
                raise InputError(row[field], f"cannot be read: {error.strerror}", "Check the path.") from None
            sizes.append(found.st_size)
            times.append(found.st_mtime_ns)
            if places is not None:
                places.append(place_of(found))
    return {"size": sizes, "mtime_ns": times}


def _sorted(lines: Iterable[bytes], runs: BinaryIO) -> Iterator[bytes]:
    """Sort lines with a bounded number of them in memory: sorted runs in a file, then merged."""
    held: list[bytes] = []
    spans: list[tuple[int, int]] = []

    def flush() -> None:
        held.sort()
        start = runs.tell()
        runs.writelines(held)
        spans.append((start, runs.tell()))
        held.clear()

    for line in lines:
        held.append(line)
        if len(held) >= _SORTED_AT_ONCE:
            flush()
    if not spans:
        held.sort()
        yield from held
        return
    flush()
    yield from heapq.merge(*(_read_span(runs, *span) for span in spans))


def _read_span(file: BinaryIO, start: int, stop: int) -> Iterator[bytes]:
    """Yield the lines between two places of a file that others read too."""
    rest = b""
    while start < stop:
        file.seek(start)
        block = file.read(min(1 << 18, stop - start))
        start += len(block)
        *whole, rest = (rest + block).split(b"\n")
        for line in whole:
            yield line + b"\n"
