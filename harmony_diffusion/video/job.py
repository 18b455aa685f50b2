"""The folder of a video job: what is known so far, so that a run that was stopped goes on where it was.

`OUT.harmony/` holds `job.json` (what is computed from what), `records.bin` (one record a frame, appended in
whole batches), `segments/` (or `frames/`) and `lock`, which one run at a time holds. It is removed when the
result stands in its place.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from harmony_diffusion import __version__
from harmony_diffusion.errors import OutputError
from harmony_diffusion.images.output_files import output_error
from harmony_diffusion.video.files import import_av
from harmony_diffusion.video.filters import SMALL_SIDE

SCHEMA = 1
BATCH = 4  # frames that are predicted in one call and written down together
_LOCK = "lock"
_ENDS = 1 << 20  # bytes at either end of an input that are hashed


def record_type(count: int) -> np.dtype[Any]:
    """Return what is written down of a frame, with `count` numbers for its filters."""
    return np.dtype(
        [
            ("pixels", "<f8"),  # of foreground
            ("box", "<i4", (4,)),  # of the foreground: top, bottom, left, right
            ("window", "<i4", (4,)),  # over which its maps lie
            ("predicted", "u1"),
            ("histograms", "<f4", (3, 16)),
            ("content", "<f4"),
            ("small", "u1", (SMALL_SIDE, SMALL_SIDE, 4)),
            ("numbers", "<f4", (count,)),
        ]
    )


class VideoJob:
    """Open or make the folder of a job.

    Args:
        output: The file or folder that will be written.
        identity: All that decides the result, as JSON values.
        resume: Go on with a folder that is there; else begin anew.

    Raises:
        OutputError: A folder is there that was begun with something else.
    """

    def __init__(self, output: Path, identity: dict[str, Any], *, resume: bool = True) -> None:
        self.output, self.folder = output, job_folder(output)
        identity = json.loads(json.dumps(identity))
        found = read_job(self.folder)
        if self.folder.exists() and not resume:
            self.remove()
            found = None
        if found is not None and found["identity"] != identity:
            differing = sorted(
                key
                for key in {*identity, *found["identity"]}
                if identity.get(key) != found["identity"].get(key)
            )
            raise OutputError(
                self.folder,
                f"holds an unfinished job with other settings ({', '.join(differing)})",
                "Repeat its call, or begin anew with `resume=False` (`--restart`).",
            )
        self.identity = identity
        self.result: dict[str, Any] | None = None if found is None else found["result"]
        try:
            self.folder.mkdir(exist_ok=True)
            self.segments.mkdir(exist_ok=True)
            if found is None:
                self._write()
        except OSError as error:
            raise OutputError(self.folder, error.strerror or str(error)) from error

    @property
    def segments(self) -> Path:
        """Folder of the finished parts of the result."""
        return self.folder / "segments"

    @property
    def records(self) -> Path:
        """File of the records."""
        return self.folder / "records.bin"

    def known(self, kind: np.dtype[Any], total: int) -> int:
        """Return how many records are written, after cutting off what a stopped run left of a batch."""
        if not self.records.exists():
            return 0
        count = self.records.stat().st_size // kind.itemsize
        if count < total:
            count -= count % BATCH
        os.truncate(self.records, count * kind.itemsize)
        return count

    def append(self, records: np.ndarray) -> None:
        """Write down the records of a batch."""
        with open(self.records, "ab") as file:
            file.write(records.tobytes())

    def open_records(self, kind: np.dtype[Any]) -> np.ndarray:
        """Return all records, to be read and written."""
        return np.memmap(self.records, kind, "r+")

    def finish(self, result: dict[str, Any], moves: Iterable[tuple[Path, Path]]) -> None:
        """Note the result, put the finished files in their places, and remove the folder."""
        self.result = result
        self._write()
        for source, target in moves:
            move(source, target)
        self.remove()

    def remove(self) -> None:
        """Empty the folder, `job.json` last, so that a stopped removal goes on; `locked` removes the rest."""
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if path.name not in ("job.json", _LOCK):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        (self.folder / "job.json").unlink(missing_ok=True)
        with suppress(OSError):
            self.folder.rmdir()

    def _write(self) -> None:
        temporary = self.folder / "job.tmp"
        temporary.write_text(json.dumps({"identity": self.identity, "result": self.result}, indent=1))
        os.replace(temporary, self.folder / "job.json")


def job_folder(output: Path) -> Path:
    """Return the folder of the job that writes `output`."""
    return output.with_name(output.name + ".harmony")


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Hold the job folder of `output` alone; the end of the process, however it comes, lets go of it.

    Raises:
        OutputError: Another run holds it, or the folder cannot be made.
    """
    folder = job_folder(output)
    try:
        descriptor = _take_lock(folder)
    except BlockingIOError:
        raise OutputError(
            output,
            f"is being written by another run, which holds {folder.name}",
            "Wait for its end, or choose another name.",
        ) from None
    except (OSError, ValueError) as error:
        raise output_error(output, error) from None
    try:
        yield
    finally:
        # Unlinked while it is held: who opens it now finds another file, or none, and tries again.
        (folder / _LOCK).unlink(missing_ok=True)
        os.close(descriptor)
        with suppress(OSError):
            folder.rmdir()


def _take_lock(folder: Path) -> int:
    """Make the folder, and return the descriptor of its locked file."""
    while True:
        folder.mkdir(exist_ok=True)
        try:
            descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # another run has just removed the folder
            continue
        try:
            _lock_file(descriptor)
            if os.path.samestat(os.fstat(descriptor), os.stat(folder / _LOCK)):
                return descriptor
        except FileNotFoundError:
            pass
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock_file(descriptor: int) -> None:
    """Lock a file without waiting, where the system and the file system know locks.

    Raises:
        BlockingIOError: Another run holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL):
            raise


def read_job(folder: Path) -> dict[str, Any] | None:
    """Return what `job.json` of a folder holds; None when there is none."""
    try:
        found = json.loads((folder / "job.json").read_text())
        return found if {"identity", "result"} <= found.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def move(source: Path, target: Path) -> None:
    """Put a finished file in its place; of a folder, its files one by one where the place is a folder."""
    if source.is_dir() and target.is_dir():
        for path in sorted(source.iterdir()):
            os.replace(path, target / path.name)
        source.rmdir()
    elif source.exists():
        os.replace(source, target)


def identity_of_files(paths: Iterable[Path]) -> list[list[Any]]:
    """Describe files by name, size and time of change; single files also by their first and last MiB."""
    described = []
    paths = list(paths)
    for path in paths:
        found = path.stat()
        entry: list[Any] = [path.name, found.st_size, found.st_mtime_ns]
        if len(paths) <= 4:
            digest = hashlib.sha256()
            with open(path, "rb") as file:
                digest.update(file.read(_ENDS))
                file.seek(max(0, found.st_size - _ENDS))
                digest.update(file.read(_ENDS))
            entry.append(digest.hexdigest())
        described.append(entry)
    return described


def identity_of_model(model: Any) -> dict[str, Any]:
    """Describe a model by its class, its settings and a hash of its weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).float().numpy().tobytes())
    return {
        "class": type(model).__name__,
        "config": {k: repr(v) for k, v in sorted(model.config.items()) if not k.startswith("_")},
        "weights": digest.hexdigest(),
        "device": model.device.type,
        "dtype": str(model.dtype),
    }


def identity_of_versions() -> dict[str, Any]:
    """Describe what of the environment can change a byte."""
    import torch

    av = import_av()
    return {
        "schema": SCHEMA,
        "harmony_diffusion": __version__,
        "av": av.__version__,
        "libraries": {name: list(version) for name, version in sorted(av.library_versions.items())},
        "torch": torch.__version__,
    }
