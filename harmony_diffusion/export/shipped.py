"""Exports of models with weights, made once and kept in the user's cache. Finding one imports no PyTorch."""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from harmony_diffusion import __version__
from harmony_diffusion.errors import CheckpointError, OutputError
from harmony_diffusion.export.folder import is_exported, read_description, sha256_of
from harmony_diffusion.paths import exists, find

# As `harmony_diffusion.models` names them, which imports PyTorch; a test compares.
DEFAULT_MODEL = "color_grid"
WEIGHTS = Path(__file__).parents[1] / "weights"
CACHE_VARIABLE = "HARMONY_CACHE"


def cache_folder() -> Path:
    """Return `HARMONY_CACHE`, else the folder `harmony_diffusion` in the user's cache folder."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "harmony_diffusion"


def exported_folder(
    name_or_path: str | os.PathLike[str] = "default", *, announce: Callable[[str], None] | None = None
) -> Path:
    """Return an exported folder: the one that is named, or one made once for these weights.

    Args:
        name_or_path: A folder written by `harmony export`; `"default"`, the name of a model whose weights
            come with the package, or a folder written by `save_pretrained`: these are exported to the cache
            when they are first used, which takes about half a minute.
        announce: Called with one line before a model is exported.

    Raises:
        CheckpointError: Nothing to export by this name.
        ExportError: The model cannot be exported.
        MissingDependencyError: A package that the export needs is not installed.
        OutputError: The cache cannot be written to.
    """
    path = Path(name_or_path)
    find(path)
    if is_exported(path):
        return path
    name = DEFAULT_MODEL if os.fspath(name_or_path) == "default" else os.fspath(name_or_path)
    source = WEIGHTS / name if (WEIGHTS / name).is_dir() else path
    weights, config = source / "diffusion_pytorch_model.safetensors", source / "config.json"
    if not (weights.is_file() and config.is_file()):
        raise CheckpointError(
            f"{name}: no network with weights that can run without PyTorch. Give `default`, a folder written "
            "by `harmony export` or `save_pretrained`, or leave out `--runtime`."
        )
    sums = hashlib.sha256(f"{__version__}\n".encode())
    for file in (config, weights):
        sums.update(file.read_bytes())
    folder = cache_folder() / "onnx" / f"{source.name}-{sums.hexdigest()[:16]}"
    if not _is_whole(folder):
        _export_once(source, name, folder, announce)
    return folder


def _is_whole(folder: Path) -> bool:
    """Return True if an export in the cache is as it was written: no error could say how to mend it."""
    if not is_exported(folder):
        return False
    try:
        sums = read_description(folder).sums
        return all(sha256_of(folder / name) == noted for name, noted in sums.items())
    except (CheckpointError, OSError):
        return False


def _export_once(source: Path, name: str, folder: Path, announce: Callable[[str], None] | None) -> None:
    """Export to the cache; what another process has put there meanwhile stays."""
    from harmony_diffusion.export.onnx import check_packages, export_onnx
    from harmony_diffusion.images.output_files import check_new_folder
    from harmony_diffusion.images.output_folders import discard_folder

    check_packages()
    own = folder.with_name(f".{folder.name}-{os.getpid()}")
    try:
        check_new_folder(folder)
        if announce is not None:
            announce(f"exporting {name} once to {folder}")
        from harmony_diffusion.models import load_model

        export_onnx(load_model(source), own, overwrite=True)
    except OutputError as error:
        remedy = f"Name a folder for the cache by {CACHE_VARIABLE}, or give one of `harmony export`."
        raise OutputError(folder, error.reason, remedy) from error
    if exists(folder) and not _is_whole(folder):
        discard_folder(folder)
    try:
        own.rename(folder)
    except OSError:
        shutil.rmtree(own, ignore_errors=True)
        if not _is_whole(folder):
            raise
