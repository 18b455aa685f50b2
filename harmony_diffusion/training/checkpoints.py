"""Checkpoints of a run: written completely or not at all, found, and loaded.

Everything random in a run is a function of (seed, step), so the state of a run is its weights, its optimizer
and the number of steps done: no state of a random generator is ever saved.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.models.modeling_utils import ModelMixin
from safetensors.torch import load_file

from harmony_diffusion.data.transforms import WHOLE_FRAMES
from harmony_diffusion.errors import CheckpointError, HarmonyError, OutputError
from harmony_diffusion.images.output_files import check_new_folder, output_error
from harmony_diffusion.paths import exists
from harmony_diffusion.training.ema import MovingAverage

UNFINISHED = ".unfinished-"
_PREFIX = "checkpoint-"
# Settings in checkpoints of version 0.1.0: flags that were renamed, and flags that were removed, each with
# the value that applies now.
_RENAMED = {"train_split": "split"}
_REMOVED = {"adam_beta1": 0.9, "adam_beta2": 0.999}


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
        is_one: Returns True for a folder of this kind.
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


def _is_in(folder: Path, error: OSError) -> bool:
    """Return True if an error is about a file in a folder, or names no file, as on a full disk."""
    named = error.filename
    if not isinstance(named, str | os.PathLike):
        return named is None
    return Path(named).absolute().is_relative_to(folder.absolute())


def discard_folder(folder: Path) -> None:
    """Remove a folder; an interrupted removal leaves only a folder with the prefix of unfinished ones."""
    doomed = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=folder.parent))
    folder.rename(doomed / folder.name)
    shutil.rmtree(doomed)


def remove_unfinished(folder: Path) -> None:
    """Remove unfinished folders of a killed process; no other process may write to `folder`."""
    for path in folder.glob(f"{UNFINISHED}*"):
        shutil.rmtree(path)


def checkpoints(folder: Path) -> list[Path]:
    """List the checkpoints in a folder, the oldest first."""
    found = [path for path in folder.glob(f"{_PREFIX}*") if path.name.removeprefix(_PREFIX).isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix(_PREFIX)))


def save_checkpoint(
    folder: Path,
    step: int,
    model: ModelMixin,
    optimizer: torch.optim.Optimizer,
    average: MovingAverage | None,
    settings: Mapping[str, Any],
    limit: int | None = None,
) -> Path:
    """Save the state of a run as `FOLDER/checkpoint-STEP`, atomically.

    The subfolder `model` is for `load_model`; it holds the averaged weights if there is an average.

    Args:
        folder: Folder of the run.
        step: Steps done.
        model: Model, not wrapped.
        optimizer: Optimizer, not wrapped.
        average: Moving average of the weights.
        settings: Settings that a run must share to continue from here: plain values.
        limit: Number of newest checkpoints to keep; None for all.

    Returns:
        The folder of the checkpoint.
    """

    def write(staging: Path) -> None:
        state = {"step": step, "settings": dict(settings), "optimizer": optimizer.state_dict()}
        if average is not None:
            state["weights"] = model.state_dict()
        torch.save(state, staging / "training_state.pt")
        with average.in_place_of(model) if average is not None else contextlib.nullcontext():
            model.save_pretrained(staging / "model")

    path = checkpoint_path(folder, step)
    write_folder_atomically(path, write)
    discard_old_checkpoints(path, limit)
    return path


def checkpoint_path(folder: Path, step: int) -> Path:
    """Return the path of the checkpoint of a step."""
    return folder / f"{_PREFIX}{step}"


def discard_old_checkpoints(newest: Path, limit: int | None) -> None:
    """Keep the `limit` newest checkpoints of a run, including `newest`; None keeps all."""
    if limit is not None:
        others = [other for other in checkpoints(newest.parent) if other != newest]
        for old in others[: max(0, len(others) - limit + 1)]:
            discard_folder(old)


def find_checkpoint(folder: Path, wanted: str) -> Path | None:
    """Return a checkpoint.

    Args:
        folder: Folder of the run.
        wanted: "latest" for the newest in `folder`, None if there is none; the name of one there; or a path.
    """
    if wanted == "latest":
        found = checkpoints(folder)
        return found[-1] if found else None
    return folder / wanted if (folder / wanted).is_dir() else Path(wanted)


# Settings that older checkpoints lack, and the values that mean the same as their absence.
_ADDED: dict[str, tuple[Any, ...]] = {
    "whole_frames": (WHOLE_FRAMES,),
    "no_mirror": (False,),
    "muon_layers": ([],),
    "muon_lr_factor": (4.0,),
    "optimizer": ("adamw_fused", "adamw_8bit"),
}


def read_training_state(path: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Read the state of a checkpoint.

    Raises:
        CheckpointError: No checkpoint, or one of a run with other settings.
    """
    if not (path / "training_state.pt").is_file():
        raise CheckpointError(f"{path}: is no checkpoint, it has no training_state.pt.")
    state = torch.load(path / "training_state.pt", map_location="cpu", weights_only=True)
    saved, settings = current_settings(state["settings"]), current_settings(settings)
    if differing := [key for key in {**saved, **settings} if saved.get(key) != settings.get(key)]:
        told = ", ".join(
            f"{key} {saved.get(key)!r} there and {settings.get(key)!r} here" for key in differing
        )
        raise CheckpointError(
            f"{path}: comes from another run: {told}. Use the same settings, or another output folder."
        )
    return state


def current_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a checkpoint under their current names.

    A removed setting with a value that no longer applies stays, so that the checkpoint is refused.
    """
    named = {_RENAMED.get(name, name): value for name, value in settings.items()}
    return {
        name: value
        for name, value in named.items()
        if (name not in _REMOVED or value != _REMOVED[name]) and value not in _ADDED.get(name, ())
    }


def load_checkpoint(
    path: Path,
    model: ModelMixin,
    optimizer: torch.optim.Optimizer,
    average: MovingAverage | None,
    settings: Mapping[str, Any],
) -> int:
    """Load weights, optimizer and average of a checkpoint in place.

    Args:
        path: Folder made by `save_checkpoint`.
        model: Model of the same configuration.
        optimizer: Optimizer over its parameters.
        average: Moving average, if the run keeps one.
        settings: Settings of this run.

    Returns:
        Steps done.

    Raises:
        CheckpointError: No checkpoint, or one of a run with other settings.
    """
    state = read_training_state(path, settings)
    stored = load_file(path / "model" / "diffusion_pytorch_model.safetensors")
    if average is not None:
        for key, value in average.average.items():
            value.copy_(stored[key])
    # Copying into the existing tensors keeps their memory alignment, on which rounding may depend, as in an
    # uninterrupted run.
    model.load_state_dict(state["weights"] if average is not None else stored)
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def resume(
    folder: Path,
    wanted: str,
    model: ModelMixin,
    optimizer: torch.optim.Optimizer,
    average: MovingAverage | None,
    settings: Mapping[str, Any],
) -> int:
    """Find and load a checkpoint, and return the number of steps done.

    Args:
        folder: Folder of the run.
        wanted: See `find_checkpoint`.
        model: See `load_checkpoint`.
        optimizer: See `load_checkpoint`.
        average: See `load_checkpoint`.
        settings: See `load_checkpoint`.

    Raises:
        CheckpointError: No checkpoint, or one of a run with other settings.
    """
    path = find_checkpoint(folder, wanted)
    return load_checkpoint(path, model, optimizer, average, settings) if path is not None else 0


def _sync_to_disk(path: Path) -> None:
    if path.is_dir() and not hasattr(os, "O_DIRECTORY"):
        return  # Windows cannot open folders.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
