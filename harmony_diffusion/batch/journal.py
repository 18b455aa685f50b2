"""Journals: what was done with each entry of a plan, by every process that ever worked on it."""

import hashlib
import json
import os
import time
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harmony_diffusion.batch.plan import Plan, digest
from harmony_diffusion.json_text import parse_json

PENDING, DONE, FAILED = 0, 1, 2
_SYNC_LINES, _SYNC_SECONDS = 16, 1.0


class Journal:
    """The file one worker appends to.

    Each line is written by one call, so that it outlives the process; it is on the disk after 16 lines or a
    second, which matters only when the power fails.

    Args:
        path: File to make. Nobody else may write to it.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o666)
        self._lines, self._synced = 0, time.monotonic()

    def append(self, record: dict[str, Any]) -> None:
        """Append one line."""
        line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
        while line:
            line = line[os.write(self._file, line) :]
        self._lines += 1
        if self._lines >= _SYNC_LINES or time.monotonic() - self._synced >= _SYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        """Have all lines on the disk."""
        if self._lines:
            os.fsync(self._file)
        self._lines, self._synced = 0, time.monotonic()

    def close(self) -> None:
        """Have all lines on the disk, and close the file."""
        self.sync()
        os.close(self._file)


class Ledger:
    """What all journals together say about a plan.

    Needs about 170 bytes an entry.

    Args:
        plan: The plan.
        folder: Folder of the journals.
        retry_failed: Take entries that failed before as not done.

    Attributes:
        state: `PENDING`, `DONE` or `FAILED`, one byte an entry.
    """

    def __init__(self, plan: Plan, folder: Path, *, retry_failed: bool = False) -> None:
        self.plan, self.folder = plan, folder
        self.state = bytearray(len(plan))
        self._sizes = array("q", bytes(8 * len(plan)))
        self._hashes = bytearray(32 * len(plan))
        self._failures: dict[int, dict[str, Any]] = {}
        self._disputed: set[int] = set()
        self._places: dict[str, int] = {}
        self._index = {digest(line): i for i, line in enumerate(plan.lines())}
        self.read()
        if retry_failed:
            for i in self._failures:
                if self.state[i] == FAILED:
                    self.state[i] = PENDING
            self._failures.clear()

    def read(self) -> int:
        """Read the lines that were added since the last time; return how many entries became done."""
        found = 0
        for path in sorted(self.folder.glob("*.jsonl")) if self.folder.is_dir() else ():
            if not path.is_file():  # no worker made it
                continue
            start = self._places.get(path.name, 0)
            with path.open("rb") as file:
                if os.fstat(file.fileno()).st_size == start:
                    continue
                file.seek(start)
                for line in file:
                    if not line.endswith(b"\n"):  # being written, or torn by a crash
                        break
                    start += len(line)
                    found += self._take(line)
            self._places[path.name] = start
        return found

    def _take(self, line: bytes) -> int:
        """Take a line; one that is damaged counts as absent, so that its entry is done again."""
        try:
            record = parse_json(line)
            if not is_whole(record):
                return 0
            i = self._index.get(int(record["input"], 16), -1)
        except (ValueError, KeyError, TypeError):
            return 0
        return self.note(i, record) if i >= 0 else 0

    def note(self, i: int, record: dict[str, Any]) -> int:
        """Take a record of entry `i`; return 1 when it was pending. "Done" outweighs "failed"."""
        before = self.state[i]
        if record["status"] == "done":
            checksum = bytes.fromhex(record["sha256"])
            if before == DONE and checksum != self._hashes[32 * i : 32 * i + 32]:
                self._disputed.add(i)
            self.state[i], self._sizes[i] = DONE, record["bytes"]
            self._hashes[32 * i : 32 * i + 32] = checksum
            if record.get("errors"):
                self._failures[i] = record
            else:
                self._failures.pop(i, None)
        elif before != DONE:
            self.state[i] = FAILED
            self._failures[i] = record
        return int(before == PENDING)

    def forget_lost_outputs(self, out: Path, *, verify: bool = False) -> int:
        """Take entries as pending whose output is absent or has another size (`verify`: another hash)."""
        lost = 0
        for i, entry in enumerate(self.plan.outputs()):
            if self.state[i] != DONE:
                continue
            path = f"{out}/{entry}"
            try:
                kept = os.stat(path).st_size == self._sizes[i]
                if kept and verify:
                    kept = hash_of(path) == self._hashes[32 * i : 32 * i + 32]
            except OSError:
                kept = False
            if not kept:
                self.state[i] = PENDING
                lost += 1
        return lost

    def pending(self, first: int, last: int) -> list[int]:
        """Return the entries from `first` up to `last` that are not done."""
        return [i for i in range(first, min(last, len(self.plan))) if self.state[i] == PENDING]

    def count(self, state: int) -> int:
        """Return how many entries are in a state."""
        return self.state.count(state)

    @property
    def failures(self) -> int:
        """Return how many pictures failed, those inside of tar shards included."""
        return sum(len(record.get("errors") or (1,)) for record in self._failures.values())

    def manifest(self, out: Path) -> Iterator[bytes]:
        """Yield one line for each entry that is done, in the order of the plan."""
        for i, line in enumerate(self.plan.lines()):
            if self.state[i] != DONE:
                continue
            checksum = bytes(self._hashes[32 * i : 32 * i + 32])
            size = self._sizes[i]
            entry = parse_json(line)
            if i in self._disputed:  # two machines computed other bytes: what lies there counts
                checksum, size = hash_of(out / entry["output"]), os.stat(out / entry["output"]).st_size
            record = {"id": entry["id"], "output": entry["output"], "sha256": checksum.hex(), "bytes": size}
            yield json.dumps(record).encode() + b"\n"

    def errors(self) -> Iterator[bytes]:
        """Yield one line for each picture that failed, in the order of the plan."""
        for i in sorted(self._failures):
            record, name = self._failures[i], self.plan.entry(i)["id"]
            if record["status"] == "failed":
                yield json.dumps({"id": name, "reason": record["reason"]}).encode() + b"\n"
            for sample, reason in record.get("errors", ()):
                yield json.dumps({"id": f"{name}/{sample}", "reason": reason}).encode() + b"\n"


def is_whole(record: Any) -> bool:
    """Return True if a record has all that `Ledger.note` and the lists need."""
    if record["status"] == "failed":
        return isinstance(record["reason"], str)
    errors = record.get("errors", [])
    return (
        record["status"] == "done"
        and len(record["sha256"]) == 64
        and len(bytes.fromhex(record["sha256"])) == 32
        and type(record["bytes"]) is int
        and 0 <= record["bytes"] < 2**63
        and isinstance(errors, list)
        and all(len(pair) == 2 and all(isinstance(text, str) for text in pair) for pair in errors)
    )


def hash_of(path: str | os.PathLike[str]) -> bytes:
    """Return the SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
