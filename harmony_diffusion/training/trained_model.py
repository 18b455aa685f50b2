"""The model that is trained: whole in every process, or shared out among them by FSDP or DeepSpeed.

Which of these is what `accelerate launch` was told; `train/configs` holds the files for the two that shard.
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
from harmony_diffusion.training.checkpoints import (
    UNFINISHED,
    checkpoint_path,
    discard_old_checkpoints,
    find_checkpoint,
    read_training_state,
    resume,
    save_checkpoint,
    write_folder_atomically,
)
from harmony_diffusion.training.diffusion_run import DTYPES
from harmony_diffusion.training.ema import MovingAverage

SHARDING = (DistributedType.FSDP, DistributedType.DEEPSPEED)


def make_accelerator(args: argparse.Namespace) -> Accelerator:
    """Make the accelerator of a run, as `accelerate launch` and the arguments say.

    Raises:
        InputError: They ask for shards, and for what does not go with these.
    """
    fsdp, deepspeed = (parse_flag_from_env(f"ACCELERATE_USE_{name}") for name in ("FSDP", "DEEPSPEED"))
    if not (fsdp or deepspeed):
        return Accelerator(
            mixed_precision=args.mixed_precision, gradient_accumulation_steps=args.gradient_accumulation_steps
        )
    setting = os.environ.get
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU")
    for refused, subject, reason, fix in (
        (args.mixed_precision == "fp16", "--mixed_precision", "fp16 cannot be shared out", "Take bf16."),
        (args.use_8bit_adam, "--use_8bit_adam", "has states that cannot be shared out", "Leave it out."),
        (fsdp and setting("FSDP_VERSION") != "2", "fsdp_version", "must be 2", "Take configs/fsdp.yaml."),
        (setting("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3", "zero_stage", "must be 1 or 2", "Or take FSDP."),
        (deepspeed and cpu, "ACCELERATE_USE_CPU", "excludes DeepSpeed", "Set CUDA_VISIBLE_DEVICES= instead."),
        ("LOCAL_RANK" not in os.environ, "LOCAL_RANK", "is not set", "Start by `accelerate launch`."),
    ):
        if refused:
            raise InputError(subject, reason, fix)
    on_cpu = cpu or not torch.accelerator.is_available()
    accelerator = Accelerator(
        mixed_precision="no",  # the objective does it: weights and states of the optimizer stay in float32
        gradient_accumulation_plugin=GradientAccumulationPlugin(args.gradient_accumulation_steps),
        cpu=fsdp and on_cpu,
        kwargs_handlers=[InitProcessGroupKwargs(backend="gloo")] if deepspeed and on_cpu else [],
    )
    if fsdp and on_cpu:
        # accelerate shards on no CPU, though torch can; told that it is to, it does.
        state: Any = accelerator.state
        PartialState().distributed_type = state.distributed_type = DistributedType.FSDP
        state.fsdp_plugin = FullyShardedDataParallelPlugin()
    return accelerator


class TrainedModel:
    """A model in training with its optimizer and moving average.

    Args:
        model: Model, on the device of the run.
        optimizer: Over its parameters.
        args: Arguments of the script.
        accelerator: See `make_accelerator`.

    Attributes:
        objective: What computes the loss.
        synchronized: What `accelerator.accumulate` takes.
        stepper: What steps the optimizer.
    """

    objective: nn.Module
    synchronized: nn.Module
    stepper: Any

    def __init__(
        self,
        model: ModelMixin,
        optimizer: torch.optim.Optimizer,
        args: argparse.Namespace,
        accelerator: Accelerator,
    ) -> None:
        self.model, self.optimizer, self.args, self.accelerator = model, optimizer, args, accelerator
        self.sharding = accelerator.distributed_type if accelerator.distributed_type in SHARDING else None
        self.average: MovingAverage | None = None
        self.settings: dict[str, Any] = {}
        self._whole: ModelMixin | None = None

    def begin(self, objective: nn.Module, settings: Mapping[str, Any]) -> int:
        """Go on from the checkpoint that the arguments name, if any, and return the steps done.

        Args:
            objective: Module that computes the loss, the model among its children.
            settings: What must be the same for a run that goes on from a checkpoint.

        Raises:
            CheckpointError: No checkpoint, or one of a run with other settings.
        """
        args, accelerator, self.settings = self.args, self.accelerator, dict(settings)
        if self.sharding is None:
            self.average = MovingAverage(self.model, args.ema_decay) if args.use_ema else None
            wanted = args.resume_from_checkpoint
            start = resume(args.output_dir, wanted, self.model, self.optimizer, self.average, self.settings)
            self.objective, self.stepper = accelerator.prepare(objective, self.optimizer)
            self.synchronized = self.objective
            return start
        self.settings["sharding"] = str(self.sharding.value)
        if self.sharding == DistributedType.DEEPSPEED:
            self.settings["processes"] = accelerator.num_processes  # each reads back its own file
            self._configure_deepspeed()
        if accelerator.is_main_process:
            self._whole = copy.deepcopy(self.model).cpu().requires_grad_(False)
        self.synchronized, self.stepper = accelerator.prepare(self.model, self.optimizer)
        for name, child in objective.named_children():
            if child is self.model:
                setattr(objective, name, self.synchronized)
        objective.forward = self.autocast()(objective.forward)
        self.objective = objective
        self.average = MovingAverage(self.model, args.ema_decay) if args.use_ema else None
        return self._load_shards()

    def autocast(self) -> Any:
        """Return the context of `--mixed_precision`."""
        if self.sharding is None:
            return self.accelerator.autocast()
        dtype = DTYPES[self.args.mixed_precision]
        return torch.autocast(self.accelerator.device.type, dtype, enabled=dtype != torch.float32)

    def save(self, step: int) -> None:
        """Save a checkpoint; every process must call this."""
        folder, limit = self.args.output_dir, self.args.checkpoints_total_limit
        if self.sharding is not None:
            self._save_shards(folder, step, limit)
        elif self.accelerator.is_main_process:
            save_checkpoint(folder, step, self.model, self.optimizer, self.average, self.settings, limit)
        self.accelerator.wait_for_everyone()

    @contextlib.contextmanager
    def averaged(self) -> Iterator[ModelMixin]:
        """Give the main process the whole model, of averaged weights if there are any, within a `with` block.

        Every process must enter it; what the others get may not be used.
        """
        main = self.accelerator.is_main_process
        if self.sharding is None:
            average = self.average if main else None
            with average.in_place_of(self.model) if average is not None else contextlib.nullcontext():
                yield self.model
            return
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
        """Bring the weights that are published together in the main process."""
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
        path = find_checkpoint(self.args.output_dir, self.args.resume_from_checkpoint)
        if path is None:
            return 0
        state = read_training_state(path, self.settings)
        self.accelerator.load_state(str(path / "shards"))
        if self.average is not None:
            stored = load_file(path / "model" / "diffusion_pytorch_model.safetensors")
            for name, value in self.average.average.items():
                value.copy_(_like(stored[name].to(self.accelerator.device), value))
        return int(state["step"])


def _like(value: Tensor, shared: Tensor) -> Tensor:
    return (
        distribute_tensor(value, shared.device_mesh, shared.placements)
        if isinstance(shared, DTensor)
        else value
    )
