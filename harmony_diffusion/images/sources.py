"""Where a file lies: on disk, inside an archive, in memory, or in a table."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class ArchiveMember(NamedTuple):
    """A file inside a zip archive."""

    archive: Path
    member: str

    def __str__(self) -> str:
        """Return the archive and the name in it, for messages."""
        return f"{self.archive}/{self.member}"


class Content(NamedTuple):
    """A file that was read already, as from a tar shard."""

    name: str
    data: bytes

    def __str__(self) -> str:
        """Return the name, for messages."""
        return self.name


class Lazy(NamedTuple):
    """A file that is read when it is used, as from a row of a table."""

    name: str
    read: Callable[[], bytes]

    def __str__(self) -> str:
        """Return the name, for messages."""
        return self.name


Source = Path | ArchiveMember | Content | Lazy
