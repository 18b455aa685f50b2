"""Leases: which process works on which part of a plan.

A lease only saves work. Two processes that hold the same one compute the same bytes and write them whole, so
a wrong decision costs time and never a result. That is why plain files are enough, on network file systems
too: no locks, and no clocks that must agree.
"""

import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

TOUCH_SECONDS = 10.0
STALE_SECONDS = 60.0
# Temporary files of a machine that cannot be asked whether the process still runs.
_ABANDONED_SECONDS = 86_400.0


class Owner(NamedTuple):
    """A process, told apart from every other one on every machine.

    Attributes:
        host: Name of the machine, with a hash of its boot and of the container.
        pid: Number of the process.
        token: Random, for numbers that are used again.
    """

    host: str
    pid: int
    token: str

    @classmethod
    def this_process(cls) -> "Owner":
        """Return a new owner for the running process."""
        return cls(_host(), os.getpid(), uuid.uuid4().hex[:12])

    @property
    def name(self) -> str:
        """Return one word for names of files."""
        return f"{self.host}-{self.pid}-{self.token}"

    @property
    def has_ended(self) -> bool:
        """Return True if the process has certainly ended; False on another machine, where this is unknown."""
        if self.host != _host():
            return False
        try:
            # A killed process keeps its number until its parent asks for it.
            stat = Path(f"/proc/{self.pid}/stat").read_text(errors="replace")
            return stat.rpartition(")")[2].split()[0] in ("Z", "X")
        except (OSError, IndexError):
            pass
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:
            pass
        return False


@cache
def _host() -> str:
    """Return the machine, its boot and its process namespace as one word without hyphens."""
    parts = [socket.gethostname()]
    for read in (
        lambda: Path("/proc/sys/kernel/random/boot_id").read_text(),
        lambda: os.readlink("/proc/self/ns/pid"),
    ):
        try:
            parts.append(read())
        except OSError:  # not on Linux
            parts.append("")
    word = "".join(letter for letter in parts[0] if letter.isalnum())[:32] or "host"
    return f"{word}_{blake2b(chr(0).join(parts).encode(), digest_size=4).hexdigest()}"


class Leases:
    """The leases of one process on numbered parts of a plan.

    Args:
        folder: Where the lease files lie; made if absent.
        owner: The process that takes them.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     mine = Leases(Path(folder), Owner.this_process())
        ...     theirs = Leases(Path(folder), Owner.this_process())
        ...     mine.take(0), theirs.take(0)
        (True, False)
    """

    def __init__(self, folder: Path, owner: Owner) -> None:
        self.folder, self.owner = folder, owner
        self.held: set[int] = set()
        self._touched = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob("*-*"):  # what killed processes left beside the leases
            left_by = owner_of_name(path.name.removeprefix("clock-"))
            if left_by is not None and left_by.has_ended:
                path.unlink(missing_ok=True)

    def take(self, part: int) -> bool:
        """Take the lease of a part unless another process holds it and seems alive."""
        path = self._path(part)
        if not self._create(path):
            found = _read(path)
            if found is None and not path.exists():  # given back since
                return self._create_held(path, part)
            if not self._is_stale(path, found):
                return False
            if not self._remove_stale(path, found):
                return False
            return self._create_held(path, part)
        self.held.add(part)
        return True

    def refresh(self) -> set[int]:
        """Show every 10 seconds that this process is alive; return the parts that another one has taken."""
        if time.monotonic() - self._touched < TOUCH_SECONDS:
            return set()
        self._touched = time.monotonic()
        lost = {part for part in self.held if _read(self._path(part)) != self.owner}
        self.held -= lost
        for part in self.held:
            try:
                os.utime(self._path(part))
            except FileNotFoundError:
                lost.add(part)
        self.held -= lost
        return lost

    def give_back(self, part: int) -> None:
        """Remove the lease of a part if this process still holds it."""
        self.held.discard(part)
        path = self._path(part)
        if _read(path) == self.owner:
            path.unlink(missing_ok=True)

    def give_all_back(self) -> None:
        """Remove every lease of this process."""
        for part in list(self.held):
            self.give_back(part)
        self._clock.unlink(missing_ok=True)

    def others(self) -> Iterator[Owner]:
        """Yield the other processes that hold leases and seem alive."""
        for path in self.folder.iterdir():
            if path.name.isdigit():
                found = _read(path)
                if found is not None and found != self.owner and not self._is_stale(path, found):
                    yield found

    def _path(self, part: int) -> Path:
        return self.folder / f"{part:06d}"

    @property
    def _clock(self) -> Path:
        return self.folder / f"clock-{self.owner.name}"

    def _create(self, path: Path) -> bool:
        try:
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return False
        try:
            os.write(file, json.dumps(self.owner).encode())
        finally:
            os.close(file)
        return True

    def _create_held(self, path: Path, part: int) -> bool:
        created = self._create(path)
        if created:
            self.held.add(part)
        return created

    def _is_stale(self, path: Path, owner: Owner | None) -> bool:
        if owner is not None and owner.has_ended:
            return True
        # Compared with a file touched just now in the same folder: by one clock, that of the file system.
        self._clock.touch()
        try:
            return self._clock.stat().st_mtime - path.stat().st_mtime > STALE_SECONDS
        except FileNotFoundError:
            return False

    def _remove_stale(self, path: Path, judged: Owner | None) -> bool:
        """Move a stale lease away; put it back when it turns out to be another one."""
        own = path.with_name(f"{self.owner.name}-{path.name}")
        try:
            os.rename(path, own)
        except FileNotFoundError:
            return True
        same = _read(own) == judged
        if not same:
            try:
                os.link(own, path)
            except OSError:
                pass
        own.unlink(missing_ok=True)
        return same


def _read(path: Path) -> Owner | None:
    """Return whose lease a file is; None when it is absent or was not written to the end."""
    try:
        host, pid, token = json.loads(path.read_bytes())
        return Owner(str(host), int(pid), str(token))
    except (OSError, ValueError, TypeError):
        return None


def owner_of_name(name: str) -> Owner | None:
    """Read what `Owner.name` wrote; None for any other name."""
    host, _, rest = name.partition("-")
    pid, _, token = rest.partition("-")
    return Owner(host, int(pid), token) if pid.isdigit() and token else None


def remove_abandoned(folder: Path) -> None:
    """Remove the folders of temporary files, named by `Owner.name`, whose processes are gone."""
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        owner = owner_of_name(path.name)
        try:
            old = time.time() - path.stat().st_mtime > _ABANDONED_SECONDS
        except FileNotFoundError:
            continue
        if owner is not None and (owner.has_ended or old):
            shutil.rmtree(path, ignore_errors=True)
