"""Questions about paths, answered for any string: what the system refuses becomes a typed error."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

from harmony_diffusion.errors import InputError

StrPath = str | os.PathLike[str]
# Makes an error of the path, the reason and the remedy.
PathError = Callable[[StrPath, str, str], Exception]


def find(path: StrPath, error: PathError = InputError) -> os.stat_result | None:
    """Return what lies at a path, links followed; None if nothing does.

    Args:
        path: Any path.
        error: Makes the error that is raised.

    Raises:
        InputError: This cannot be known: the name is too long, no text or a loop of links, or its folder may
            not be read. With `error` that one instead.

    Example:
        >>> find("no/such/file") is None
        True
    """
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as problem:
        raise error(_shown(path), f"cannot be read: {problem.strerror}", "Check the path.") from None
    except ValueError as problem:  # a NUL, or what no file name holds
        raise error(_shown(path), f"is no path: {problem}", "Check the path.") from None


def exists(path: StrPath, error: PathError = InputError) -> bool:
    """Return True if something lies at a path; see `find`."""
    return find(path, error) is not None


def is_folder(path: StrPath, error: PathError = InputError) -> bool:
    """Return True if a folder lies at a path; see `find`."""
    found = find(path, error)
    return found is not None and stat.S_ISDIR(found.st_mode)


def is_file(path: StrPath, error: PathError = InputError) -> bool:
    """Return True if a regular file lies at a path; see `find`."""
    found = find(path, error)
    return found is not None and stat.S_ISREG(found.st_mode)


def resolved(path: StrPath, error: PathError = InputError) -> Path:
    """Return an absolute path without links; see `find`."""
    find(path, error)
    try:
        return Path(path).resolve()
    except (OSError, RuntimeError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or str(problem)
        raise error(_shown(path), f"cannot be read: {reason}", "Check the path.") from None


def _shown(path: StrPath) -> str:
    text = os.fspath(path)
    return text if len(text) <= 300 else f"{text[:300]}…"
