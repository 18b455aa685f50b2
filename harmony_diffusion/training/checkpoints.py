"""Checkpoints of a run: written completely or not at all, found, and loaded.

Everything random in a run is a function of (seed, step), so the state of a run is its weights, its optimizer
and the number of steps done: no state of a random generator is ever saved.
"""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.models.modeling_utils import ModelMixin
from safetensors.torch import load_file

from harmony_diffusion.data.transforms import WHOLE_FRAMES
from harmony_diffusion.errors import CheckpointError
from harmony_diffusion.images.output_folders import discard_folder, write_folder_atomically
from harmony_diffusion.training.ema import MovingAverage

_PREFIX = "checkpoint-"
# Settings in checkpoints of version 0.1.0: flags that were renamed, and flags that were removed, each with
# the value that applies now.
_RENAMED = {"train_split": "split"}
_REMOVED = {"adam_beta1": 0.9, "adam_beta2": 0.999}


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
    "teachers": ([],),
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
