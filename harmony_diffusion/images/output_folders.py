"""Folders that are written completely or not at all, and replaced only by their own kind."""

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


def write_folder_atomically(folder: Path, write: Callable[[Path], None]) -> None:
    """Write a folder completely or not at all; replace an existing one.

    Args:
        folder: Folder to make.
        write: Function that fills a temporary folder.

    Raises:
        OutputError: The file system refuses the folder or what is written into it.
    """
    check_new_folder(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=folder.parent))
    except (OSError, ValueError) as error:
        raise output_error(folder, error) from error
    try:
        staging.chmod(0o755)  # mkdtemp denies access to all other users
        write(staging)
        for path in [*staging.rglob("*"), staging]:
            _sync_to_disk(path)
        if folder.exists():
            discard_folder(folder)
        staging.rename(folder)
        _sync_to_disk(folder.parent)
    except BaseException as error:
        shutil.rmtree(staging, ignore_errors=True)
        if isinstance(error, OSError) and not isinstance(error, HarmonyError) and _is_in(staging, error):
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
    check_new_folder(folder)
    if not exists(folder, OutputError):
        return
    if not overwrite:
        fix = "Replace it with --overwrite (`overwrite=True`), or choose another name."
        raise OutputError(folder, "exists already", fix)
    if not folder.is_dir() or (any(folder.iterdir()) and not is_one(folder)):
        raise OutputError(folder, f"holds something else than {kind}", "Choose another name.")


def holds_only(folder: Path, patterns: Iterable[str]) -> bool:
    """Return True if the name of every file and folder in a folder matches one of the patterns."""
    patterns = list(patterns)
    return all(any(fnmatch(path.name, pattern) for pattern in patterns) for path in folder.iterdir())


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
