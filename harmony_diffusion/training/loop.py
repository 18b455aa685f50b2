"""The training loop of all scripts in `train/`."""

import argparse
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from harmony_diffusion.data.keyed_random import sample_key
from harmony_diffusion.data.training_set import Item, KeyedView, TrainingSet
from harmony_diffusion.errors import HarmonyError
from harmony_diffusion.images.output_folders import remove_unfinished
from harmony_diffusion.training import sharding
from harmony_diffusion.training.order import BatchPositions
from harmony_diffusion.training.publishing import publish
from harmony_diffusion.training.reporter import Reporter
from harmony_diffusion.training.step_clock import StepClock
from harmony_diffusion.training.trained_model import TrainedModel
from harmony_diffusion.training.validation import Validation

logger = logging.getLogger(__name__)


def train_model(
    args: argparse.Namespace,
    accelerator: Accelerator,
    *,
    model: ModelMixin,
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    samples: TrainingSet,
    steps: int,
    settings: Mapping[str, Any],
    learning_rate: Callable[[int], float],
    make_inputs: Callable[[Item], tuple[Any, ...]],
    validate: Callable[[ModelMixin], Validation] | None,
    write_model: Callable[[Path, ModelMixin, Mapping[str, float]], None],
) -> None:
    """Train a model from its newest checkpoint, or from the start, to its last step, and publish it.

    Everything random is a function of the seed and the step, so a killed run that is started again ends with
    the same weights as an uninterrupted run.

    Args:
        args: Arguments of the script, with the flags of `training.arguments`.
        accelerator: Accelerator of the run.
        model: Model to train, on the device.
        objective: Module with `model` as a child; it returns losses by name, of which `loss` is minimized.
        optimizer: Optimizer of the model. The entry `factor` of a parameter group scales its learning rate.
        samples: Training samples.
        steps: Number of steps of the whole run.
        settings: Settings that a run must share with the checkpoint it continues.
        learning_rate: Function from the number of steps done to the learning rate.
        make_inputs: Function from a batch of the loader to the arguments of `objective`. The random generator
            of torch is seeded before each call.
        validate: Function that scores a model; None for no validation. Only the main process calls it.
        write_model: Function that writes weights and card to a folder, with the last scores.

    Raises:
        CheckpointError: The checkpoint is missing, or belongs to a run with other settings.
        HarmonyError: A loss is not finite.
    """
    accumulation, device, rank = (
        args.gradient_accumulation_steps,
        accelerator.device,
        accelerator.process_index,
    )
    batch = images_in_a_step(args, accelerator)
    if accelerator.is_main_process:
        args.output.mkdir(parents=True, exist_ok=True)
        remove_unfinished(args.output)
    sharded = accelerator.distributed_type in sharding.KINDS
    trained = (sharding.ShardedModel if sharded else TrainedModel)(model, optimizer, args, accelerator)
    fixed = dict(settings) | {"samples": len(samples), "batch": batch}
    if args.lr_scheduler in ("linear", "cosine"):
        fixed["steps"] = steps
    start = trained.begin(objective, fixed)
    loader = DataLoader(
        KeyedView(samples, args.seed),
        batch_sampler=BatchPositions(
            args.train_batch_size, accumulation, start, steps, rank, accelerator.num_processes
        ),
        num_workers=args.dataloader_num_workers,
        pin_memory=device.type == "cuda",
    )
    reporter = Reporter(args.output, args.report_to) if accelerator.is_main_process else None
    clock = StepClock(device, args.profile_steps)
    progress = tqdm(
        total=steps * batch,
        initial=start * batch,
        unit=" images",
        desc=args.output.name,
        disable=reporter is None,
    )

    batches, skipped = iter(loader), 0
    for step in range(start, steps):
        rate = learning_rate(step)
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("factor", 1.0)
        for micro_batch in range(step * accumulation, (step + 1) * accumulation):
            with clock.part("data"):
                items = next(batches)
            skipped += int(items["skipped"].sum())
            torch.manual_seed(sample_key(args.seed, micro_batch, rank))
            with clock.part("transfer and augmentation"):
                inputs = make_inputs(items)
            with clock.part("model"), accelerator.accumulate(trained.synchronized):
                losses = trained.objective(*inputs)
                accelerator.backward(losses["loss"])
                if args.max_grad_norm and accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
                trained.stepper.step()
                trained.stepper.zero_grad()
        if trained.average is not None:
            trained.average.update(model, step)
        done = step + 1
        clock.step += 1

        progress.update(batch)
        if reporter is not None and clock.is_complete(done == steps):
            logger.info(clock.report(batch))
        if reporter is not None and done % args.logging_steps == 0:
            values = finite_values(losses, done)
            progress.set_postfix({name: f"{value:.4g}" for name, value in values.items()})
            reporter.scalars({f"train/{name}": value for name, value in values.items()}, done)
            reporter.scalars({"train/learning_rate": rate}, done)
        if done % args.checkpointing_steps == 0 or done == steps:
            finite_values(losses, done)
            trained.save(done)
        if validate is not None and done % args.validation_steps == 0 and done < steps:
            with trained.averaged() as averaged:
                if reporter is not None:
                    reporter.validation(validate(averaged), done)
            accelerator.wait_for_everyone()
    progress.close()

    skipped = int(accelerator.reduce(torch.tensor(skipped, device=device)))
    with trained.averaged() as averaged:
        if reporter is not None:
            if skipped:
                logger.warning("%d unusable samples were drawn and skipped", skipped)
            scores: dict[str, float] = {}
            if validate is not None:
                result = validate(averaged)
                reporter.validation(result, steps)
                scores = result.scores
            publish(args, lambda folder: write_model(folder, averaged, scores))


def images_in_a_step(args: argparse.Namespace, accelerator: Accelerator) -> int:
    """Return the number of images in one optimizer step of all processes."""
    return args.train_batch_size * args.gradient_accumulation_steps * accelerator.num_processes


def finite_values(losses: Mapping[str, Tensor], step: int) -> dict[str, float]:
    """Read the losses of a step.

    Raises:
        HarmonyError: A loss is not finite.
    """
    values = {name: value.item() for name, value in losses.items()}
    if not all(math.isfinite(value) for value in values.values()):
        raise HarmonyError(
            f"Step {step}: the loss is not finite ({values}). The last checkpoint is still good; lower "
            "--learning_rate or set --max_grad_norm."
        )
    return values
