"""Writing results: whole or not at all, and never over something nobody asked to replace."""

import errno
import os
import stat
import tempfile
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

from harmony_diffusion.errors import InputError, OutputError
from harmony_diffusion.paths import exists, is_folder

_REASONS = {
    errno.EACCES: ("permission denied", "Choose a folder you may write to."),
    errno.EPERM: ("permission denied", "Choose a folder you may write to."),
    errno.EROFS: ("the file system is read-only", "Choose another folder."),
    errno.ENOSPC: ("the disk is full", "Free some space or choose another disk."),
    errno.EDQUOT: ("your disk quota is used up", "Free some space or choose another disk."),
    errno.EFBIG: ("the file would be larger than is allowed here", "Choose another folder."),
    errno.ENAMETOOLONG: ("the file name is too long", "Choose a shorter one."),
    errno.ELOOP: ("the path is a loop of symbolic links", "Choose another path."),
    errno.ENOENT: ("its folder does not exist", "Create it first."),
    errno.ENOTDIR: ("a part of its folder is a file", "Choose another path."),
}


def check_output(
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    inputs: Iterable[object] = (),
    keep_inputs: bool = False,
) -> Path:
    """Check, before any work is done, that a result may be written to `path`.

    Args:
        path: File to be written.
        overwrite: Whether a file that exists already may be replaced.
        inputs: Paths that are read; when `path` is one of them, the message says so.
        keep_inputs: Refuse to replace one of `inputs` even if `overwrite` is true: for files whose names the
            caller did not choose.

    Returns:
        `path` with symbolic links followed: the file that will be replaced.

    Raises:
        OutputError: The file exists and `overwrite` is false, or it cannot be written there.
    """
    try:
        target = Path(path).resolve()
        try:
            # `resolve` leaves a loop as it is; `stat` names it.
            found = target.stat()
        except (FileNotFoundError, NotADirectoryError):
            found = None
        folder = target.parent.stat()
    except (OSError, RuntimeError, ValueError) as error:
        raise output_error(path, error) from None
    if not stat.S_ISDIR(folder.st_mode):
        raise OutputError(path, "its folder is a file", "Choose another path.")
    if found is None:
        return target
    if stat.S_ISDIR(found.st_mode):
        raise OutputError(path, "is a folder", "Give the name of a file in it.")
    if not stat.S_ISREG(found.st_mode):
        raise OutputError(path, "is not a regular file", "Choose another path.")
    is_input = any(_is_same_file(source, found) for source in inputs)
    if is_input and keep_inputs and overwrite:
        raise OutputError(path, "would replace a file that is read", "Choose another name for the output.")
    if not overwrite:
        reason = "is the picture that was read" if is_input else "exists already"
        raise OutputError(path, reason, "Choose another name, or allow it with `overwrite` (`--overwrite`).")
    return target


def check_new_folder(folder: Path) -> None:
    """Check, before any work is done, that a folder can be made or replaced.

    Raises:
        OutputError: It cannot: a part of its path is a file, or may not be written to.
    """
    exists(folder, OutputError)
    parent = folder.parent
    while not exists(parent, OutputError):
        parent = parent.parent
    if not is_folder(parent, OutputError):
        raise output_error(folder, NotADirectoryError(errno.ENOTDIR, ""))
    if not os.access(parent, os.W_OK | os.X_OK):
        raise output_error(folder, PermissionError(errno.EACCES, ""))


def _is_same_file(source: object, found: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.stat(source), found)  # type: ignore[arg-type]
    except (OSError, ValueError, TypeError):
        return False


def output_error(path: object, error: Exception) -> OutputError:
    """Return what the file system said of a path that is written, with a remedy."""
    return OutputError(path, *reason_of(error))


def reason_of(error: Exception) -> tuple[str, str]:
    """Return why the file system refuses a path to be written, and the remedy."""
    if isinstance(error, OSError) and error.errno in _REASONS:
        return _REASONS[error.errno]
    if isinstance(error, RuntimeError):  # how Python 3.11 reports a loop of links
        return _REASONS[errno.ELOOP]
    return (error.strerror if isinstance(error, OSError) else None) or str(error), ""


Content = bytes | Callable[[BinaryIO], object]


def write_atomically(
    path: str | os.PathLike[str],
    content: Content,
    *,
    overwrite: bool = False,
    inputs: Iterable[object] = (),
    scratch: Path | None = None,
) -> None:
    """Write a file so that `path` holds either what it held before or all of the new content.

    The content goes to a temporary file beside the target, is flushed to the disk and then renamed; after
    any error the temporary file is gone.

    Args:
        path: File to be written.
        content: The bytes, or a function that writes them to the open binary file it is given.
        overwrite: Whether a file that exists already may be replaced.
        inputs: Paths that are read; see `check_output`.
        scratch: Folder for the temporary file, on the same file system; None = the folder of `path`.

    Raises:
        OutputError: The file exists and `overwrite` is false, or it cannot be written there.
    """
    write_together([(path, content)], overwrite=overwrite, inputs=inputs, scratch=scratch)


def write_together(
    files: Iterable[tuple[str | os.PathLike[str], Content]],
    *,
    overwrite: bool = False,
    inputs: Iterable[object] = (),
    scratch: Path | None = None,
) -> None:
    """Write several files as `write_atomically` does: when one of them cannot be made, none is written.

    Args:
        files: Path and content of each.
        overwrite: Whether files that exist already may be replaced.
        inputs: Paths that are read; see `check_output`.
        scratch: See `write_atomically`.

    Raises:
        OutputError: A file exists and `overwrite` is false, or cannot be written there.
    """
    inputs = list(inputs)
    targets = [
        (path, check_output(path, overwrite=overwrite, inputs=inputs), content) for path, content in files
    ]
    finished: list[tuple[str, Path]] = []
    current: str | os.PathLike[str] = ""
    try:
        for current, target, content in targets:  # noqa: B007
            descriptor, temporary = tempfile.mkstemp(
                prefix=".harmony-", suffix=".tmp", dir=scratch or target.parent
            )
            finished.append((temporary, target))
            os.close(descriptor)
            with open(temporary, "w+b") as file:
                if isinstance(content, bytes):
                    file.write(content)
                else:
                    content(file)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, _permissions(target))
        while finished:
            os.replace(*finished[0])
            del finished[0]
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise output_error(current, error) from error
    finally:
        for temporary, _ in finished:
            Path(temporary).unlink(missing_ok=True)


def _permissions(target: Path) -> int:
    """Return the permissions of the file that is replaced, or those of any new file."""
    if target.exists():
        return stat.S_IMODE(target.stat().st_mode)
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def output_names(paths: Sequence[str | os.PathLike[str]], *, suffix: str | None = None) -> list[str]:
    """Name the results of a batch after its inputs, and make sure that no two share a name.

    Args:
        paths: The inputs, relative to the folder whose structure is kept (or bare names).
        suffix: Suffix of the results, such as `.png`; None keeps the suffix of each input.

    Returns:
        One relative path an input, in the same order.

    Raises:
        InputError: Two inputs have the same name up to suffix and upper or lower case, as `a.jpg` and
            `A.png` do: their results would replace each other here or on another file system.

    Example:
        >>> output_names(["day/a.jpg", "night/a.jpg"], suffix=".png")
        ['day/a.png', 'night/a.png']
    """
    seen: dict[str, str] = {}
    names = []
    for path in map(Path, paths):
        stem = path.with_suffix("")
        key = comparison_key(stem.as_posix())
        if key in seen:
            raise InputError(
                path,
                f"has the same name as {seen[key]}, so their results would replace each other",
                "Rename one of them, or process them into two folders.",
            )
        seen[key] = str(path)
        names.append((path.with_suffix(suffix) if suffix is not None else path).as_posix())
    return names


def comparison_key(name: str) -> str:
    """Return the form in which macOS and Windows compare names: without case and composition of accents.

    Example:
        >>> comparison_key("Day/A") == comparison_key("day/a")
        True
    """
    return unicodedata.normalize("NFC", name).casefold()
