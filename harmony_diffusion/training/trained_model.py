"""A model in training with its optimizer and its moving average."""

import argparse
import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from harmony_diffusion.training.checkpoints import resume, save_checkpoint
from harmony_diffusion.training.ema import MovingAverage


class TrainedModel:
    """A model in training, of which every process holds all weights.

    Args:
        model: Model, on the device of the run.
        optimizer: Optimizer of its parameters.
        args: Arguments of the script.
        accelerator: Accelerator of the run.

    Attributes:
        objective: Module that computes the losses.
        synchronized: Argument of `accelerator.accumulate`.
        stepper: Object that steps the optimizer.
        average: Moving average of the weights, or None.
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
        self.average: MovingAverage | None = None
        self.settings: dict[str, Any] = {}

    def begin(self, objective: nn.Module, settings: Mapping[str, Any]) -> int:
        """Load the checkpoint that the arguments name, if any, and return the number of steps done.

        Args:
            objective: Module that computes the losses; the model is one of its children.
            settings: Settings that a run must share with the checkpoint it continues.

        Raises:
            CheckpointError: The checkpoint is missing, or belongs to a run with other settings.
        """
        args, self.settings = self.args, dict(settings)
        self.average = MovingAverage(self.model, args.ema_decay) if args.use_ema else None
        wanted = args.resume_from_checkpoint
        start = resume(args.output, wanted, self.model, self.optimizer, self.average, self.settings)
        self.objective, self.stepper = self.accelerator.prepare(objective, self.optimizer)
        self.synchronized = self.objective
        return start

    def save(self, step: int) -> None:
        """Save a checkpoint; every process must call this."""
        if self.accelerator.is_main_process:
            folder, limit = self.args.output, self.args.checkpoints_total_limit
            save_checkpoint(folder, step, self.model, self.optimizer, self.average, self.settings, limit)
        self.accelerator.wait_for_everyone()

    @contextlib.contextmanager
    def averaged(self) -> Iterator[ModelMixin]:
        """Yield the complete model to the main process, with the averaged weights if there is an average.

        Every process must enter the `with` block; only the main process may use the model.
        """
        average = self.average if self.accelerator.is_main_process else None
        with average.in_place_of(self.model) if average is not None else contextlib.nullcontext():
            yield self.model
