"""Train any registry model to turn composites into real photographs.

    accelerate launch train/train_discriminative.py --model hdnet --data PATH/TO/DATA --output outputs/hdnet

`--data` is composites with ground truth (iHarmony4, folders, JSON lines) or photographs with masks, of which
composites are made as training goes. OUTPUT gets `checkpoint-STEP` folders and at the end `model`, a folder
for `load_model`. The same command, run again after the process was killed, goes on from the newest checkpoint
and ends with the same weights: order, augmentation and noise are functions of (seed, step). The papers'
settings are in `train/recipes`.
"""

import argparse
import contextlib
import copy
import json
import logging
import math
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from diffusers.models.modeling_utils import ModelMixin
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from harmony_diffusion.data.keyed_random import KeyedDraws, sample_key
from harmony_diffusion.data.layouts import Listing, list_dataset
from harmony_diffusion.data.photographs import parse_filters, subset_weights
from harmony_diffusion.data.sample import Problem
from harmony_diffusion.data.synthesis.composites import (
    SyntheticComposites,
    jitter,
    reference_colors,
    reversed_filters,
)
from harmony_diffusion.data.training_set import Item, KeyedView, PairSet, PhotographSet, TrainingSet
from harmony_diffusion.data.transforms import WHOLE_FRAMES
from harmony_diffusion.errors import HarmonyError, InputError, MissingDependencyError
from harmony_diffusion.models import MODELS, create_model, load_model, model_class
from harmony_diffusion.models.efficientnet import init_lite0_from_imagenet
from harmony_diffusion.models.idih import IDIH
from harmony_diffusion.models.imrsf_dam_gct import IMRSFDAMGCT
from harmony_diffusion.models.layers import blend
from harmony_diffusion.training.batch_norm import synchronize_batch_norms
from harmony_diffusion.training.checkpoints import (
    finish,
    remove_unfinished,
    resume,
    save_checkpoint,
    write_folder_atomically,
)
from harmony_diffusion.training.ema import MovingAverage
from harmony_diffusion.training.model_card import forget_origins, launch_command, told_name, write_model_card
from harmony_diffusion.training.objectives import ForegroundObjective, HarmonizerObjective
from harmony_diffusion.training.order import BatchPositions, TwoStreams
from harmony_diffusion.training.schedules import SCHEDULES, learning_rate_factor
from harmony_diffusion.training.validation import Triple, Validation, validate

logger = logging.getLogger("train_discriminative")

VALIDATION_SEED = 1
REFERENCES = 2048  # photographs whose foreground colours are transferred
WARM_UP_STEPS = 3  # left out of the profile
# What a run that goes on from a checkpoint must have in common with the one that wrote it.
FIXED = (
    "model", "model_config", "freeze", "loss", "min_area", "raw_output", "loss_stride", "smoothness",
    "clean_background", "split", "filter", "subset_power", "resolution", "whole_frames", "quarter_turns",
    "seed", "optimizer", "learning_rate", "backbone_lr_factor", "adam_beta1", "adam_beta2",
    "adam_weight_decay", "adam_epsilon", "max_grad_norm", "lr_scheduler", "lr_warmup_steps",
    "lr_milestones", "lr_gamma", "lr_constant_epochs", "use_ema", "ema_decay", "mixed_precision",
)  # fmt: skip


class Data(NamedTuple):
    """Training samples, what makes composites of them (nothing, if they are composites), and their story."""

    listing: Listing
    samples: TrainingSet
    composer: SyntheticComposites | None
    facts: dict[str, object]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_data_arguments(parser.add_argument_group("data"))
    add_loss_arguments(parser.add_argument_group("model and loss"))
    add_optimizer_arguments(parser.add_argument_group("optimizer"))
    add_run_arguments(parser.add_argument_group("run"))
    args = parser.parse_args()
    if args.loss == "harmonizer" and args.train_batch_size % 2:
        parser.error("--loss harmonizer needs an even --train_batch_size, half of it for each stream")
    if args.push_to_hub and not args.hub_model_id:
        parser.error("--push_to_hub needs --hub_model_id")
    return args


def add_data_arguments(group: Any) -> None:
    add = group.add_argument
    add("--data", type=Path, required=True, help="data set, of any layout `harmony data check` knows")
    add("--split", default="train")
    add(
        "--filter", nargs="*", action="extend", default=[], metavar="COLUMN=VALUE", help="photographs to take"
    )
    add("--subset_power", type=float, default=1.0, help="1: samples alike; 0: subsets alike")
    add("--bad_samples", choices=("stop", "skip"), default="stop", help="what to do with unusable files")
    add("--resolution", type=int, default=256)
    add("--whole_frames", type=float, default=WHOLE_FRAMES, help="share of samples that are not cropped")
    add("--quarter_turns", action="store_true", help="turn half of the samples by 90, 180 or 270 degrees")
    add("--clean_background", action="store_true", help="give composites the background of the real")
    add("--validation_data", type=Path, help="default: --data, if --validation_split is given")
    add("--validation_split", help="split to validate on; default: no validation")
    add("--num_validation_images", type=int, default=64)
    add("--dataloader_num_workers", type=int, default=0)


def add_loss_arguments(group: Any) -> None:
    add = group.add_argument
    add("--model", choices=sorted(MODELS), required=True)
    add("--model_config", type=json.loads, default={}, help="constructor arguments, as JSON")
    add("--pretrained_model", type=Path, help="folder of weights to start from")
    add("--imagenet_encoder", action="store_true", help="start the Lite0 encoder from ImageNet weights")
    add("--freeze", nargs="*", default=[], metavar="PREFIX", help="parameters to leave as they are")
    add("--loss", choices=("fn_mse", "fn_rmse", "harmonizer"), default="fn_mse")
    add("--min_area", type=float, default=100.0, help="A_min of FN-MSE, in pixels")
    add("--raw_output", action="store_true", help="score the frame before the background is pasted back")
    add("--loss_stride", type=int, default=1, help="score every N-th pixel only; faster with parameter maps")
    add("--smoothness", type=float, default=0.0, help="weight of the smoothness of parameter maps")
    add("--gradient_checkpointing", action="store_true")
    add("--sync_batch_norm", action="store_true", help="batch norms see the batches of all processes")
    add("--channels_last", action="store_true", help="memory format of the convolutions; faster on CPUs")
    add("--compile", action="store_true")


def add_optimizer_arguments(group: Any) -> None:
    add = group.add_argument
    add("--train_batch_size", type=int, default=16, help="per process and micro-batch")
    add("--gradient_accumulation_steps", type=int, default=1)
    add("--num_train_epochs", type=int, default=120)
    add("--max_train_steps", type=int, help="in place of --num_train_epochs")
    add("--optimizer", choices=("adam", "adamw"), default="adam")
    add("--learning_rate", type=float, default=1e-3)
    add("--backbone_lr_factor", type=float, default=1.0, help="of the learning rate of a pretrained encoder")
    add("--lr_scheduler", choices=SCHEDULES, default="constant")
    add("--lr_warmup_steps", type=int, default=0)
    add("--lr_milestones", type=int, nargs="*", default=[], metavar="EPOCH", help="of the scheduler step")
    add("--lr_gamma", type=float, default=0.1, help="factor at each milestone")
    add("--lr_constant_epochs", type=int, default=0, help="before linear or cosine decay")
    add("--adam_beta1", type=float, default=0.9)
    add("--adam_beta2", type=float, default=0.999)
    add("--adam_weight_decay", type=float, default=0.0)
    add("--adam_epsilon", type=float, default=1e-8)
    add("--max_grad_norm", type=float, default=0.0, help="clip gradients to this norm; 0: do not")
    add("--use_ema", action="store_true", help="validate and publish a moving average of the weights")
    add("--ema_decay", type=float, default=0.9995)


def add_run_arguments(group: Any) -> None:
    add = group.add_argument
    add("--output", type=Path, required=True)
    add("--seed", type=int, default=0)
    add("--mixed_precision", choices=("no", "bf16"), default="no")
    add("--allow_tf32", action="store_true")
    add("--checkpointing_steps", type=int, default=1000)
    add("--checkpoints_total_limit", type=int, default=3)
    add("--resume_from_checkpoint", default="latest", help="'latest' in OUTPUT, if any, or a folder")
    add("--validation_steps", type=int, default=1000)
    add("--logging_steps", type=int, default=20)
    add("--report_to", choices=("none", "tensorboard"), default="none")
    add("--profile_steps", type=int, default=0, help="tell how the time of the first N steps is spent")
    add("--half", action="store_true", help="publish the weights in half precision")
    add("--push_to_hub", action="store_true")
    add("--hub_model_id")


def open_data(path: Path, split: str, args: argparse.Namespace, composer: SyntheticComposites | None) -> Data:
    """List a data set; without a `composer`, photographs get one that transfers their own colours."""
    skip = args.bad_samples == "skip"
    problems: list[Problem] = []
    filters = parse_filters(args.filter) or None
    listing = list_dataset(path, split, filters=filters, problems=problems if skip else None)
    subsets = [sample.subset for sample in listing.photographs or listing.samples]
    weights = subset_weights(subsets, args.subset_power) if args.subset_power != 1 else None
    facts: dict[str, object] = {"data set": f"{path.name}, split {split}", "samples": len(subsets)}
    if problems:
        first = f"{problems[0].file}: {problems[0].reason}"
        logger.warning("%d faults in the list of %s passed over, the first %s", len(problems), path, first)
        facts["faults in the list, passed over"] = len(problems)
    facts["by source"] = ", ".join(f"{name} {count}" for name, count in sorted(Counter(subsets).items()))
    if not listing.photographs:
        samples = PairSet(
            listing.samples, args.resolution, weights, skip, args.quarter_turns, args.whole_frames
        )
        return Data(listing, samples, None, facts)
    licences = Counter(
        photograph.record.get("licence_class", "not told") for photograph in listing.photographs
    )
    facts["by class of licence"] = ", ".join(f"{name} {count}" for name, count in sorted(licences.items()))
    if composer is None:
        composer = SyntheticComposites(reference_colors(listing.photographs, REFERENCES, skip))
    photographs = PhotographSet(
        listing.photographs, args.resolution, weights, skip, args.quarter_turns, args.whole_frames
    )
    return Data(listing, photographs, composer, facts)


def warn_of_shared_files(trained: Data, held_out: Data) -> None:
    """Tell how much of the validation data is training data: layouts without splits ignore `--split`."""
    first, second = (
        {s.composite for s in data.listing.samples} | {p.picture for p in data.listing.photographs}
        for data in (trained, held_out)
    )
    if shared := len(first & second):
        logger.warning("%d of the %d pictures to validate on are trained on, too", shared, len(second))


class Composed(NamedTuple):
    """A training batch: composite, given mask, real, and the mask the foreground was pasted with."""

    composite: Tensor
    mask: Tensor
    real: Tensor
    opacity: Tensor


def compose(items: Item, data: Data, args: argparse.Namespace, device: torch.device) -> Composed:
    """Make float images on the device; make composites from photographs."""
    real, mask = (items[name].to(device, non_blocking=True) for name in ("real", "mask"))
    if data.composer is not None:
        composite, mask, real, opacity, _ = data.composer(real, mask, items["key"])
    else:
        composite = items["composite"].to(device, non_blocking=True).float() / 255
        real, mask = real.float() / 255, mask.float() / 255
        opacity = mask
    if args.clean_background:
        composite = blend(composite, real, mask)
    return Composed(composite, mask, real, opacity)


def prepare_batch(items: Item, data: Data, args: argparse.Namespace, device: torch.device) -> tuple[Any, ...]:
    """Make the arguments of the objective from what the loader returned."""
    if args.loss != "harmonizer":
        composed = compose(items, data, args, device)
        # The masks of composites with ground truth are right: the soft ones too are scored as they are.
        return composed if data.composer is not None else composed[:3]
    fine, rest = ({name: values[part::2] for name, values in items.items()} for part in (0, 1))
    keys = fine["key"]
    real, mask = (fine[name].to(device, non_blocking=True).float() / 255 for name in ("real", "mask"))
    real = jitter(real, KeyedDraws(keys))
    composite, targets = reversed_filters(real, mask, keys)
    coarse = compose(rest, data, args, device)[:3]
    pairs = zip((composite, mask, real), coarse, strict=True)
    return *(torch.cat(pair) for pair in pairs), targets


def validation_batches(data: Data, args: argparse.Namespace, device: torch.device) -> Iterator[Triple]:
    """Iterate over the same batches whenever it is called."""
    view = KeyedView(data.samples, VALIDATION_SEED)
    count = min(args.num_validation_images, len(view))
    for begin in range(0, count, args.train_batch_size):
        items = [view[index] for index in range(begin, min(begin + args.train_batch_size, count))]
        yield Triple(*compose(torch.utils.data.default_collate(items), data, args, device)[:3])


def start_from(args: argparse.Namespace) -> ModelMixin:
    """Load the weights to start from; iMRSF-DAM-GCT may also start from those of an iDIH."""
    given = load_model(args.pretrained_model).train()
    if isinstance(given, IDIH) and args.model == "imrsf_dam_gct":
        model = IMRSFDAMGCT(**args.model_config)
        fresh = model.start_from_idih(given.state_dict())
        logger.info("%d of %d tensors start afresh", len(fresh), len(model.state_dict()))
        return model
    if not isinstance(given, model_class(args.model)):
        raise InputError(
            args.pretrained_model, f"holds weights of {type(given).__name__}, --model is {args.model}"
        )
    if args.model_config:
        raise InputError("model_config", "is that of the weights to start from", "Leave it out.")
    return given


def build_model(args: argparse.Namespace) -> ModelMixin:
    torch.manual_seed(args.seed)
    model = start_from(args) if args.pretrained_model else create_model(args.model, **args.model_config)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError("model", f"{args.model} has nothing to train")
    if args.imagenet_encoder:
        init_lite0_from_imagenet(model.backbone)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and not name.startswith(tuple(args.freeze)))
    if args.channels_last:
        model.to(memory_format=torch.channels_last)
    if args.gradient_checkpointing:
        if not model._supports_gradient_checkpointing:
            raise InputError("gradient_checkpointing", f"is not supported by {type(model).__name__}")
        model.enable_gradient_checkpointing()
    if args.sync_batch_norm:
        synchronize_batch_norms(model)
    return model


def build_objective(model: ModelMixin, args: argparse.Namespace) -> torch.nn.Module:
    if args.loss == "harmonizer":
        return HarmonizerObjective(model)
    root = args.loss == "fn_rmse"
    return ForegroundObjective(model, args.min_area, args.raw_output, args.smoothness, root, args.loss_stride)


def build_optimizer(model: ModelMixin, args: argparse.Namespace) -> torch.optim.Optimizer:
    named = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    factors = {False: 1.0, True: args.backbone_lr_factor}
    groups = [
        {"params": [v for name, v in named if name.startswith("backbone.") == inside], "factor": factor}
        for inside, factor in factors.items()
    ]
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[args.optimizer](
        [group for group in groups if group["params"]],
        lr=args.learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        weight_decay=args.adam_weight_decay,
        eps=args.adam_epsilon,
    )


class StepClock:
    """Adds up how long the parts of a step take; it waits for the device, so it runs only when asked."""

    def __init__(self, device: torch.device, steps: int) -> None:
        self.device, self.steps, self.step = device, steps, 0
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time a part of a step."""
        if not WARM_UP_STEPS <= self.step < WARM_UP_STEPS + self.steps:
            yield
            return
        begin = self._now()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + self._now() - begin

    def report(self, batch: int) -> str:
        """Tell the share of each part, and the images per second."""
        total = sum(self.seconds.values())
        shares = ", ".join(f"{name} {100 * value / total:.1f} %" for name, value in self.seconds.items())
        steps = min(self.step - WARM_UP_STEPS, self.steps)
        return f"profile of {steps} steps: {shares}; {steps * batch / total:.1f} images/s"

    def ends(self, is_last: bool) -> bool:
        """Whether the step before was the last that is timed; `is_last` says that it was the last at all."""
        end = WARM_UP_STEPS + self.steps
        return bool(self.seconds) and (self.step == end or (is_last and self.step < end))

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


class Reporter:
    """Writes scalars and pictures: to the log, to OUTPUT/validation and, if asked, to TensorBoard."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.folder, self.board = args.output, None
        if args.report_to == "tensorboard":
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise MissingDependencyError(
                    'TensorBoard is not installed. Run `pip install "harmony-diffusion[train]"`.'
                ) from error
            self.board = SummaryWriter(str(args.output / "tensorboard"))

    def scalars(self, group: str, values: dict[str, float], step: int) -> None:
        """Report numbers."""
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(f"{group}/{name}", value, step)

    def validation(self, result: Validation, step: int) -> None:
        """Report scores and pictures."""
        told = ", ".join(f"{name} {value:.2f}" for name, value in result.scores.items())
        logger.info("validation after %d steps: %s", step, told)
        self.scalars("validation", result.scores, step)
        pixels = (result.pictures * 255).round().to(torch.uint8)
        (self.folder / "validation").mkdir(exist_ok=True)
        Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())).save(
            self.folder / "validation" / f"step-{step}.png"
        )
        if self.board is not None:
            self.board.add_image("validation/composite, mask, harmonized, real", pixels, step)


def publish(
    model: ModelMixin, args: argparse.Namespace, data: Data, steps: int, batch: int, scores: dict[str, float]
) -> None:
    """Write OUTPUT/model with its card, and upload it if asked."""

    def write(folder: Path) -> None:
        (copy.deepcopy(model).half() if args.half else model).save_pretrained(folder)
        forget_origins(folder)
        training = {
            "steps": steps,
            "images a step": batch,
            "resolution": args.resolution,
            "loss": args.loss,
            "seed": args.seed,
            "started from": told_name(args.pretrained_model) if args.pretrained_model else "random weights",
        }
        if args.imagenet_encoder:
            training["started from"] = "ImageNet weights of EfficientNet-Lite0 (Apache-2.0)"
        write_model_card(
            folder, args.model, command=launch_command(), training=training, data=data.facts, results=scores
        )

    write_folder_atomically(args.output / "model", write)
    if args.push_to_hub:
        from huggingface_hub import HfApi

        hub = HfApi()
        repository = hub.create_repo(args.hub_model_id, exist_ok=True).repo_id
        hub.upload_folder(repo_id=repository, folder_path=args.output / "model")


def learning_rate(args: argparse.Namespace, step: int, total: int, steps_an_epoch: float) -> float:
    return args.learning_rate * learning_rate_factor(
        args.lr_scheduler,
        step,
        total,
        warmup=args.lr_warmup_steps,
        milestones=[math.ceil(epoch * steps_an_epoch) for epoch in args.lr_milestones],
        gamma=args.lr_gamma,
        hold=math.ceil(args.lr_constant_epochs * steps_an_epoch),
    )


def finite_values(losses: dict[str, Tensor], step: int) -> dict[str, float]:
    """Read the losses of a step, and stop a run that has gone astray before it saves its weights."""
    values = {name: value.item() for name, value in losses.items()}
    if not all(math.isfinite(value) for value in values.values()):
        raise HarmonyError(
            f"Step {step}: the loss is not finite ({values}). The last checkpoint is still good; lower "
            "--learning_rate or set --max_grad_norm."
        )
    return values


def train(args: argparse.Namespace, accelerator: Accelerator) -> None:
    accumulation = args.gradient_accumulation_steps
    device, is_main = accelerator.device, accelerator.is_main_process
    torch.backends.cuda.matmul.allow_tf32 = args.allow_tf32
    if is_main:
        args.output.mkdir(parents=True, exist_ok=True)
        remove_unfinished(args.output)

    data = open_data(args.data, args.split, args, None)
    if data.composer is not None:
        data.composer.to(device)
    held_out = None
    if args.validation_data or args.validation_split:
        path, split = args.validation_data or args.data, args.validation_split or "val"
        held_out = open_data(path, split, args, data.composer)
        warn_of_shared_files(data, held_out)
    samples = TwoStreams(data.samples) if args.loss == "harmonizer" else data.samples
    batch = args.train_batch_size * accumulation * accelerator.num_processes
    steps_an_epoch = len(samples) / batch
    total = args.max_train_steps or math.ceil(args.num_train_epochs * steps_an_epoch)

    model = build_model(args).to(device)
    optimizer = build_optimizer(model, args)
    average = MovingAverage(model, args.ema_decay) if args.use_ema else None
    settings = {name: getattr(args, name) for name in FIXED} | {"samples": len(samples), "batch": batch}
    if args.lr_scheduler in ("linear", "cosine"):
        settings["steps"] = total
    start = resume(args.output, args.resume_from_checkpoint, model, optimizer, average, settings)
    objective = build_objective(model, args).train()
    if args.compile:
        objective.compile()
    objective, stepper = accelerator.prepare(objective, optimizer)
    loader = DataLoader(
        KeyedView(samples, args.seed),
        batch_sampler=BatchPositions(
            args.train_batch_size,
            accumulation,
            start,
            total,
            accelerator.process_index,
            accelerator.num_processes,
        ),
        num_workers=args.dataloader_num_workers,
        pin_memory=device.type == "cuda",
    )
    reporter = Reporter(args) if is_main else None
    clock = StepClock(device, args.profile_steps)

    def validate_here(step: int) -> dict[str, float]:
        if held_out is None or reporter is None:
            return {}
        with average.in_place_of(model) if average is not None else contextlib.nullcontext():
            result = validate(model, validation_batches(held_out, args, device))
        reporter.validation(result, step)
        return result.scores

    skipped, batches = 0, iter(loader)
    progress = tqdm(
        total=total * batch, initial=start * batch, unit=" images", desc=args.model, disable=not is_main
    )
    for step in range(start, total):
        for group in optimizer.param_groups:
            group["lr"] = group["factor"] * learning_rate(args, step, total, steps_an_epoch)
        for part in range(step * accumulation, (step + 1) * accumulation):
            with clock.part("data"):
                items = next(batches)
            skipped += int(items["skipped"].sum())
            torch.manual_seed(sample_key(args.seed, part, accelerator.process_index))
            with clock.part("transfer and augmentation"):
                inputs = prepare_batch(items, data, args, device)
            with clock.part("model"), accelerator.accumulate(objective):
                losses = objective(*inputs)
                accelerator.backward(losses["loss"])
                if args.max_grad_norm and accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
                stepper.step()
                stepper.zero_grad()
        if average is not None:
            average.update(model, step)
        done = step + 1
        clock.step += 1
        if is_main and clock.ends(done == total):
            logger.info(clock.report(batch))
        progress.update(batch)
        if reporter is not None and done % args.logging_steps == 0:
            values = finite_values(losses, done)
            progress.set_postfix({name: f"{value:.4g}" for name, value in values.items()})
            reporter.scalars("train", values | {"learning_rate": optimizer.param_groups[0]["lr"]}, done)
        if done % args.validation_steps == 0 and done < total:
            validate_here(done)
            accelerator.wait_for_everyone()
        if done % args.checkpointing_steps == 0 or done == total:
            finite_values(losses, done)
            if is_main:
                save_checkpoint(
                    args.output, done, model, optimizer, average, settings, args.checkpoints_total_limit
                )
            accelerator.wait_for_everyone()
    progress.close()
    skipped = int(accelerator.reduce(torch.tensor(skipped, device=device)))
    if is_main:
        if skipped:
            logger.warning("%d unusable samples were drawn and passed over", skipped)
        with average.in_place_of(model) if average is not None else contextlib.nullcontext():
            publish(model, args, data, total, batch, validate_here(total))


def main() -> None:
    args = parse_args()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    accelerator = Accelerator(
        mixed_precision=args.mixed_precision, gradient_accumulation_steps=args.gradient_accumulation_steps
    )
    try:
        train(args, accelerator)
    except HarmonyError as error:
        sys.exit(f"train_discriminative: {error}")
    finish(accelerator)


if __name__ == "__main__":
    main()
