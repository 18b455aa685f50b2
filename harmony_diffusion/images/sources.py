"""Where a file lies: on disk, inside an archive, or in memory."""

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


Source = Path | ArchiveMember | Content
