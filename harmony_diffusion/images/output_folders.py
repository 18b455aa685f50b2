"""Folders that are written completely or not at all, and replaced only by their own kind."""

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from fnmatch import fnmatch
from pathlib import Path

from harmony_diffusion.errors import HarmonyError, OutputError
from harmony_diffusion.images.output_files import check_new_folder, output_error
from harmony_diffusion.paths import exists

UNFINISHED = ".unfinished-"


def write_folder_atomically(
    folder: Path, write: Callable[[Path], None], *, keep_others: bool = False
) -> None:
    """Write a folder completely or not at all; replace an existing one.

    Args:
        folder: Folder to make.
        write: Function that fills a temporary folder.
        keep_others: Do not replace a folder that holds a file for which the new one has no successor.

    Raises:
        OutputError: The file system refuses the folder or what is written into it, or a file would be lost.
    """
    folder = _absolute(folder)
    check_new_folder(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=folder.parent))
    except (OSError, ValueError) as error:
        raise output_error(folder, error) from error
    try:
        staging.chmod(0o755)  # mkdtemp denies access to all other users
        write(staging)
        if keep_others:
            _check_nothing_is_lost(folder, staging)
        for path in [*staging.rglob("*"), staging]:
            _sync_to_disk(path)
        _put_in_place(staging, folder)
        _sync_to_disk(folder.parent)
    except BaseException as error:
        shutil.rmtree(staging, ignore_errors=True)
        if isinstance(error, OSError) and not isinstance(error, HarmonyError):
            if _is_in(staging, error) or _is_in(folder, error):
                raise output_error(folder, error) from error
        raise


def check_replaceable(folder: Path, kind: str, is_one: Callable[[Path], bool], *, overwrite: bool) -> None:
    """Check, before any work is done, that a folder can be made, or replaced without the loss of other files.

    Args:
        folder: Folder to make.
        kind: What it will be, for the message.
        is_one: Returns True for a folder of this kind that holds nothing else.
        overwrite: Whether such a folder may be replaced.

    Raises:
        OutputError: It cannot be made; or it exists, and `overwrite` is false or it holds something else.
    """
    target = _absolute(folder)
    check_new_folder(target)
    if not exists(target, OutputError):
        return
    if not overwrite:
        fix = "Replace it with --overwrite (`overwrite=True`), or choose another name."
        raise OutputError(folder, "exists already", fix)
    try:
        if Path.cwd().is_relative_to(target):
            raise OutputError(folder, "holds the current folder", "Go elsewhere, or choose another name.")
        if not target.is_dir() or (any(target.iterdir()) and not is_one(target)):
            raise OutputError(folder, f"holds something else than {kind}", "Choose another name.")
    except HarmonyError:
        raise
    except OSError as error:
        raise output_error(folder, error) from error
    if not os.access(target, os.W_OK | os.X_OK):
        raise output_error(folder, PermissionError(errno.EACCES, ""))


def holds_only(folder: Path, patterns: Iterable[str]) -> bool:
    """Return True if the name of every file and folder in a folder matches one of the patterns.

    Files in its folders are not looked at; `write_folder_atomically` does not lose them with `keep_others`.
    """
    patterns = list(patterns)
    return all(any(fnmatch(path.name, pattern) for pattern in patterns) for path in folder.iterdir())


def _absolute(folder: Path) -> Path:
    """Return the path without links and dots: it must not change its meaning while folders are renamed."""
    try:
        return folder.resolve()
    except (OSError, RuntimeError, ValueError):
        return folder.absolute()  # `check_new_folder` says what is wrong with it


def _check_nothing_is_lost(folder: Path, successor: Path) -> None:
    """Raise an OutputError if a folder holds files that its successor does not."""
    lost = sorted(
        path
        for path in folder.rglob("*")
        if (path.is_symlink() or not path.is_dir()) and not (successor / path.relative_to(folder)).is_file()
    )
    if lost:
        more = f", with {len(lost) - 1} more" if len(lost) > 1 else ""
        raise OutputError(lost[0], f"would be lost{more}", "Move it away, or choose another name.")


def _put_in_place(staging: Path, folder: Path) -> None:
    """Rename a folder, and remove the one that had its name; if that is interrupted, one of them has it."""
    if not folder.exists():
        staging.rename(folder)
        return
    aside = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=folder.parent))
    before = aside / folder.name
    try:
        folder.rename(before)
        staging.rename(folder)
    except BaseException:
        if before.exists() and not folder.exists():
            before.rename(folder)
        aside.rmdir()
        raise
    # What cannot be removed stays beside the new folder.
    shutil.rmtree(aside, ignore_errors=True)


def discard_folder(folder: Path) -> None:
    """Remove a folder; an interrupted removal leaves only a folder with the prefix of unfinished ones."""
    doomed = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=folder.parent))
    folder.rename(doomed / folder.name)
    shutil.rmtree(doomed)


def remove_unfinished(folder: Path) -> None:
    """Remove unfinished folders of a killed process; no other process may write to `folder`."""
    for path in folder.glob(f"{UNFINISHED}*"):
        shutil.rmtree(path)


def _is_in(folder: Path, error: OSError) -> bool:
    """Return True if an error is about a file in a folder, or names no file, as on a full disk."""
    named = error.filename
    if not isinstance(named, str | os.PathLike):
        return named is None
    return Path(named).absolute().is_relative_to(folder.absolute())


def _sync_to_disk(path: Path) -> None:
    if path.is_dir() and not hasattr(os, "O_DIRECTORY"):
        return  # Windows cannot open folders.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
