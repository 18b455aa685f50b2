"""What a training script needs besides its loop: order of samples, schedules, averages, checkpoints.

Everything random in a run is a function of (seed, step), so the state of a run is its weights, its optimizer
and the number of steps done: no state of a random generator is ever saved.
"""

import contextlib
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from diffusers.models.modeling_utils import ModelMixin
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.utils.data import Sampler

from harmony_diffusion.data.keyed_random import sample_key
from harmony_diffusion.data.training_set import Item, TrainingSet
from harmony_diffusion.errors import CheckpointError, InputError

SCHEDULES = ("constant", "step", "linear", "cosine")
UNFINISHED = ".unfinished-"
_PREFIX = "checkpoint-"


class BatchPositions(Sampler[list[int]]):
    """Positions of the samples of one process in the order of the run: a batch sampler that starts anywhere.

    The samples of a step follow one another; the step is cut into micro-batches, and each of these into one
    part a process. So the samples of a step depend on its size alone, not on how it is shared out.

    Args:
        batch_size: Samples of one micro-batch of one process.
        accumulation: Micro-batches of a step.
        start: First step.
        stop: Step before which to stop.
        rank: Number of this process.
        processes: Number of processes.

    Example:
        >>> list(BatchPositions(2, 1, start=3, stop=5, rank=1, processes=2))
        [[14, 15], [18, 19]]
    """

    def __init__(
        self, batch_size: int, accumulation: int, start: int, stop: int, rank: int = 0, processes: int = 1
    ) -> None:
        self.batch_size, self.processes, self.rank = batch_size, processes, rank
        self.first, self.last = start * accumulation, stop * accumulation

    def __len__(self) -> int:
        """Return the number of micro-batches."""
        return max(0, self.last - self.first)

    def __iter__(self) -> Iterator[list[int]]:
        """Iterate over the positions of each micro-batch."""
        for number in range(self.first, self.last):
            begin = (number * self.processes + self.rank) * self.batch_size
            yield list(range(begin, begin + self.batch_size))


class TwoStreams:
    """A training set whose even and odd positions are two passes through the same samples.

    Harmonizer trains on a fine and a coarse stream, half of a batch each.

    Args:
        training_set: What both streams draw from.
    """

    def __init__(self, training_set: TrainingSet) -> None:
        self.training_set = training_set

    def __len__(self) -> int:
        """Return the samples in an epoch: all, once in each stream."""
        return 2 * len(self.training_set)

    def sample_at(self, seed: int, epoch: int, index: int) -> Item:
        """Return a sample of the fine stream at an even index, of the coarse stream at an odd one."""
        stream_seed = sample_key(seed, 0, index % 2)
        return self.training_set.sample_at(stream_seed, epoch, index // 2)


def learning_rate_factor(
    schedule: str,
    step: int,
    total: int,
    *,
    warmup: int = 0,
    milestones: Sequence[int] = (),
    gamma: float = 0.1,
    hold: int = 0,
) -> float:
    """Return what the learning rate is multiplied by at a step.

    Args:
        schedule: `"constant"`; `"step"`: times `gamma` at each milestone; `"linear"` and `"cosine"`: constant
            for `hold` steps, then down to 0 at `total`.
        step: Number of steps done before this one.
        total: Number of steps of the run.
        warmup: Steps over which the rate rises linearly, from `1 / warmup` on.
        milestones: Steps from which on the rate is multiplied by `gamma` once more.
        gamma: See `milestones`.
        hold: See `schedule`.

    Raises:
        InputError: An unknown schedule.

    Example:
        >>> [learning_rate_factor("step", step, 9, milestones=(3, 6), gamma=0.5) for step in (2, 3, 6)]
        [1.0, 0.5, 0.25]
    """
    if schedule not in SCHEDULES:
        raise InputError("lr_scheduler", f"is {schedule!r}", f"Choose one of {', '.join(SCHEDULES)}.")
    rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
    if schedule == "step":
        return rise * gamma ** sum(step >= milestone for milestone in milestones)
    done = min(1.0, max(0, step - hold) / max(1, total - hold))
    if schedule == "linear":
        return rise * (1 - done)
    return rise * (0.5 + 0.5 * math.cos(math.pi * done)) if schedule == "cosine" else rise


class MovingAverage:
    """Exponential moving average of the weights and running statistics of a model (EMA).

    The decay starts low, `(1 + n) / (10 + n)` after `n` updates, so that the start is forgotten quickly.

    Args:
        model: Model to follow.
        decay: Decay that is approached.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.average = {key: value.detach().clone() for key, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, updates: int) -> None:
        """Move towards the model; `updates` is the number of updates before this one."""
        weight = 1 - min(self.decay, (1 + updates) / (10 + updates))
        averages, values = [], []
        for key, value in model.state_dict().items():
            if value.is_floating_point():
                averages.append(self.average[key])
                values.append(value)
            else:
                self.average[key].copy_(value)
        # In one call, as diffusers' own average does: there are hundreds of small tensors.
        torch._foreach_lerp_(averages, values, weight)

    @contextlib.contextmanager
    def in_place_of(self, model: nn.Module) -> Iterator[None]:
        """Give the model the averaged weights within a `with` block."""
        own = {key: value.clone() for key, value in model.state_dict().items()}
        model.load_state_dict(self.average)
        try:
            yield
        finally:
            model.load_state_dict(own)


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over the batches of all processes, on any device (torch's own needs CUDA)."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise `(B, C, H, W)`; every process must hold equally many values."""
        if not (self.training and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(input)
        values = input.float()
        count = values.numel() // values.shape[1] * dist.get_world_size()
        mean = all_reduce(values.sum((0, 2, 3))) / count
        centered = values - mean[:, None, None]
        variance = all_reduce(centered.square().sum((0, 2, 3))) / count
        if self.track_running_stats:
            self._follow(mean.detach(), variance.detach() * (count / max(1, count - 1)))
        result = centered * (variance + self.eps).rsqrt()[:, None, None]
        if self.affine:
            result = result * self.weight[:, None, None] + self.bias[:, None, None]
        return result.to(input.dtype)

    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None
        assert self.momentum is not None and self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
        self.running_var.lerp_(variance.to(self.running_var), self.momentum)


def synchronize_batch_norms(model: nn.Module) -> int:
    """Let every batch norm of a model see the batches of all processes, in place; keys stay as they are.

    Returns:
        Number of batch norms.
    """
    norms = [module for module in model.modules() if type(module) is nn.BatchNorm2d]
    for norm in norms:
        norm.__class__ = SyncedBatchNorm2d
    return len(norms)


def write_folder_atomically(folder: Path, write: Callable[[Path], None]) -> None:
    """Write a folder so that it is there whole or not at all; one that exists is replaced.

    Args:
        folder: Folder to make.
        write: Called with a folder beside it to fill.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=folder.parent))
    staging.chmod(0o755)  # mkdtemp makes folders that nobody else may read
    try:
        write(staging)
        for path in [*staging.rglob("*"), staging]:
            _sync_to_disk(path)
        if folder.exists():
            discard_folder(folder)
        staging.rename(folder)
        _sync_to_disk(folder.parent)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def discard_folder(folder: Path) -> None:
    """Remove a folder; if that is cut short, what is left bears the name of an unfinished one."""
    doomed = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=folder.parent))
    folder.rename(doomed / folder.name)
    shutil.rmtree(doomed)


def remove_unfinished(folder: Path) -> None:
    """Remove what a killed process left half-written in a folder that no other process writes to."""
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
    """Save all that a run needs to go on, as `FOLDER/checkpoint-STEP`, atomically.

    The subfolder `model` is what `load_model` reads: the averaged weights where there is an average.

    Args:
        folder: Folder of the run.
        step: Steps done.
        model: Model, not wrapped.
        optimizer: Optimizer, not wrapped.
        average: Moving average of the weights.
        settings: What must be the same for a run that goes on from here: plain values.
        limit: Keep so many checkpoints, the newest; None for all.

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
    """Return where the checkpoint of a step lies in the folder of a run."""
    return folder / f"{_PREFIX}{step}"


def discard_old_checkpoints(newest: Path, limit: int | None) -> None:
    """Keep so many checkpoints of a run, with the one that was just written; None for all."""
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


def read_training_state(path: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Read the state of a checkpoint.

    Raises:
        CheckpointError: No checkpoint, or one of a run with other settings.
    """
    if not (path / "training_state.pt").is_file():
        raise CheckpointError(f"{path}: is no checkpoint, it has no training_state.pt.")
    state = torch.load(path / "training_state.pt", map_location="cpu", weights_only=True)
    saved, settings = state["settings"], dict(settings)
    if differing := [key for key in {**saved, **settings} if saved.get(key) != settings.get(key)]:
        told = ", ".join(
            f"{key} {saved.get(key)!r} there and {settings.get(key)!r} here" for key in differing
        )
        raise CheckpointError(
            f"{path}: comes from another run: {told}. Use the same settings, or another output folder."
        )
    return state


def load_checkpoint(
    path: Path,
    model: ModelMixin,
    optimizer: torch.optim.Optimizer,
    average: MovingAverage | None,
    settings: Mapping[str, Any],
) -> int:
    """Go on from a checkpoint: load weights, optimizer and average in place.

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
    # Copied into the tensors at hand: their alignment, on which rounding may depend, is that of a run
    # that was never interrupted.
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
    """Go on from a checkpoint as `load_checkpoint` does, and return the steps done.

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


def finish(accelerator: Any) -> None:
    """End a run of one or several processes.

    No process leaves while another still publishes; and what uses the process group is released before the
    group is, or gloo may wait for ever.
    """
    accelerator.free_memory()
    accelerator.wait_for_everyone()
    accelerator.end_training()


def _sync_to_disk(path: Path) -> None:
    if path.is_dir() and not hasattr(os, "O_DIRECTORY"):
        return  # Windows cannot open folders.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
