"""Training in shards: FSDP and DeepSpeed ZeRO split a model and its optimizer among the processes.

`accelerate launch --config_file train/configs/fsdp.yaml` and `deepspeed_zero2.yaml` turn it on.

Run so far, with two processes of tiny models on CPUs (gloo): FSDP in float32 and bfloat16 with accumulation,
clipping, validation and a continued run, as in `tests/scripts/test_train_controlnet.py`; DeepSpeed 0.19.8 in
float32 with the same options. Not run: GPUs, several machines, models of the size of Stable Diffusion.
"""

import argparse
import contextlib
import copy
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import (
    DistributedType,
    FullyShardedDataParallelPlugin,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    parse_flag_from_env,
)
from diffusers.models.modeling_utils import ModelMixin
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from harmony_diffusion.errors import InputError
from harmony_diffusion.images.output_folders import UNFINISHED, write_folder_atomically
from harmony_diffusion.training.checkpoints import (
    checkpoint_path,
    discard_old_checkpoints,
    find_checkpoint,
    read_training_state,
)
from harmony_diffusion.training.ema import MovingAverage
from harmony_diffusion.training.precision import autocast
from harmony_diffusion.training.trained_model import TrainedModel

KINDS = (DistributedType.FSDP, DistributedType.DEEPSPEED)


def sharding_is_on() -> bool:
    """Return whether `accelerate launch` was configured for FSDP or DeepSpeed."""
    return any(parse_flag_from_env(f"ACCELERATE_USE_{name}") for name in ("FSDP", "DEEPSPEED"))


def make_sharding_accelerator(args: argparse.Namespace) -> Accelerator:
    """Make the accelerator of a run in shards, from the environment and the arguments.

    Raises:
        InputError: A setting does not work in shards.
    """
    fsdp, deepspeed = (parse_flag_from_env(f"ACCELERATE_USE_{name}") for name in ("FSDP", "DEEPSPEED"))
    setting = os.environ.get
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU")
    for refused, subject, reason, fix in (
        (args.mixed_precision == "fp16", "--mixed_precision", "fp16 does not work in shards", "Use bf16."),
        (args.use_8bit_adam, "--use_8bit_adam", "does not work in shards", "Leave it out."),
        (fsdp and setting("FSDP_VERSION") != "2", "fsdp_version", "must be 2", "Use configs/fsdp.yaml."),
        (setting("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3", "zero_stage", "must be 1 or 2", "Or use FSDP."),
        (deepspeed and cpu, "ACCELERATE_USE_CPU", "excludes DeepSpeed", "Set CUDA_VISIBLE_DEVICES= instead."),
        ("LOCAL_RANK" not in os.environ, "LOCAL_RANK", "is not set", "Start with `accelerate launch`."),
    ):
        if refused:
            raise InputError(subject, reason, fix)
    on_cpu = cpu or not torch.accelerator.is_available()
    accelerator = Accelerator(
        mixed_precision="no",  # the objective applies it: weights and optimizer states stay in float32
        gradient_accumulation_plugin=GradientAccumulationPlugin(args.gradient_accumulation_steps),
        cpu=fsdp and on_cpu,
        kwargs_handlers=[InitProcessGroupKwargs(backend="gloo")] if deepspeed and on_cpu else [],
    )
    if fsdp and on_cpu:
        # accelerate ignores FSDP on CPUs although torch supports it, so its state is set here.
        state: Any = accelerator.state
        PartialState().distributed_type = state.distributed_type = DistributedType.FSDP
        state.fsdp_plugin = FullyShardedDataParallelPlugin()
    return accelerator


class ShardedModel(TrainedModel):
    """A model in training, of which every process holds a shard. See `TrainedModel`."""

    def __init__(
        self,
        model: ModelMixin,
        optimizer: torch.optim.Optimizer,
        args: argparse.Namespace,
        accelerator: Accelerator,
    ) -> None:
        super().__init__(model, optimizer, args, accelerator)
        self.kind = DistributedType(accelerator.distributed_type)
        self._whole: ModelMixin | None = None

    def begin(self, objective: nn.Module, settings: Mapping[str, Any]) -> int:
        """Load the checkpoint that the arguments name, if any, and return the number of steps done."""
        args, accelerator = self.args, self.accelerator
        self.settings = dict(settings) | {"sharding": str(self.kind.value)}
        if self.kind == DistributedType.DEEPSPEED:
            self.settings["processes"] = accelerator.num_processes  # each process reads its own file
            self._configure_deepspeed()
        if accelerator.is_main_process:
            self._whole = copy.deepcopy(self.model).cpu().requires_grad_(False)
        self.synchronized, self.stepper = accelerator.prepare(self.model, self.optimizer)
        for name, child in objective.named_children():
            if child is self.model:
                setattr(objective, name, self.synchronized)
        objective.forward = autocast(args.mixed_precision, accelerator.device)(objective.forward)
        self.objective = objective
        self.average = MovingAverage(self.model, args.ema_decay) if args.use_ema else None
        return self._load_shards()

    def save(self, step: int) -> None:
        """Save a checkpoint; every process must call this."""
        self._save_shards(self.args.output, step, self.args.checkpoints_total_limit)
        self.accelerator.wait_for_everyone()

    @contextlib.contextmanager
    def averaged(self) -> Iterator[ModelMixin]:
        """Yield the complete model to the main process; see `TrainedModel.averaged`."""
        self._gather()
        if self._whole is None:
            yield self.model
            return
        yield self._whole.to(self.accelerator.device)
        self._whole.cpu()

    def _configure_deepspeed(self) -> None:
        args, config = self.args, self.accelerator.deepspeed_plugin.deepspeed_config
        config["train_micro_batch_size_per_gpu"] = args.train_batch_size
        config["gradient_accumulation_steps"] = args.gradient_accumulation_steps
        config["gradient_clipping"] = args.max_grad_norm
        if args.mixed_precision == "bf16":
            config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}

    def _gather(self) -> None:
        """Copy the weights to publish from all processes to the main process."""
        weights = self.average.average if self.average is not None else self.model.state_dict()
        gathered = {}
        for name, value in weights.items():
            value = value.full_tensor() if isinstance(value, DTensor) else value
            if self._whole is not None:
                gathered[name] = value.cpu()
        if self._whole is not None:
            self._whole.load_state_dict(gathered)

    def _save_shards(self, folder: Path, step: int, limit: int | None) -> None:
        shards = folder / f"{UNFINISHED}shards"
        self.accelerator.save_state(str(shards))
        self._gather()
        self.accelerator.wait_for_everyone()
        whole = self._whole
        if whole is None:
            return

        def write(staging: Path) -> None:
            shards.rename(staging / "shards")
            state = {"step": step, "settings": self.settings}
            torch.save(state, staging / "training_state.pt")
            whole.save_pretrained(staging / "model")

        path = checkpoint_path(folder, step)
        write_folder_atomically(path, write)
        discard_old_checkpoints(path, limit)

    def _load_shards(self) -> int:
        path = find_checkpoint(self.args.output, self.args.resume_from_checkpoint)
        if path is None:
            return 0
        state = read_training_state(path, self.settings)
        self.accelerator.load_state(str(path / "shards"))
        if self.average is not None:
            stored = load_file(path / "model" / "diffusion_pytorch_model.safetensors")
            for name, value in self.average.average.items():
                value.copy_(_like(stored[name].to(self.accelerator.device), value))
        return int(state["step"])


def _like(value: Tensor, shard: Tensor) -> Tensor:
    if not isinstance(shard, DTensor):
        return value
    return distribute_tensor(value, shard.device_mesh, shard.placements)
