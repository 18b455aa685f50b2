"""Train any registry model to turn composites into real photographs.

    accelerate launch train/train_discriminative.py --model hdnet --data PATH/TO/DATA --output outputs/hdnet

`--data` holds composites with ground truth (iHarmony4, folders, JSON lines), or photographs with masks,
from which composites are made during training. OUTPUT receives `checkpoint-STEP` folders and, at the end,
`model`: a folder for `load_model`. To continue a killed run, start the same command again: it continues
from the newest checkpoint and ends with the same weights, because order, augmentation and noise are
functions of (seed, step). The settings of the papers are in `train/recipes`.
"""

import argparse
import copy
import json
import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from harmony_diffusion.data.keyed_random import KeyedDraws
from harmony_diffusion.data.layouts import Listing, list_dataset
from harmony_diffusion.data.photographs import parse_filters, subset_weights
from harmony_diffusion.data.sample import Problem
from harmony_diffusion.data.synthesis.composites import (
    SyntheticComposites,
    jitter,
    reference_colors,
    reversed_filters,
)
from harmony_diffusion.data.synthesis.placement import place
from harmony_diffusion.data.training_set import Item, KeyedView, PairSet, PhotographSet, TrainingSet
from harmony_diffusion.data.transforms import WHOLE_FRAMES
from harmony_diffusion.errors import InputError
from harmony_diffusion.models import MODELS, create_model, load_model, model_class
from harmony_diffusion.models.color_grid import ColorGrid
from harmony_diffusion.models.efficientnet import init_lite0_from_imagenet
from harmony_diffusion.models.idih import IDIH
from harmony_diffusion.models.imrsf_dam_gct import IMRSFDAMGCT
from harmony_diffusion.models.layers import blend
from harmony_diffusion.process import keep_freed_memory
from harmony_diffusion.training.arguments import (
    HelpWithDefaults,
    add_data_arguments,
    add_optimizer_arguments,
    add_run_arguments,
    check_shared_arguments,
)
from harmony_diffusion.training.batch_norm import synchronize_batch_norms
from harmony_diffusion.training.distillation import Teachers
from harmony_diffusion.training.launching import run_script
from harmony_diffusion.training.loop import images_in_a_step, train_model
from harmony_diffusion.training.model_card import (
    drop_local_paths,
    launch_command,
    name_in_card,
    write_model_card,
)
from harmony_diffusion.training.objectives import ForegroundObjective, HarmonizerObjective
from harmony_diffusion.training.optimizers import build_optimizer, parameter_groups
from harmony_diffusion.training.order import TwoStreams
from harmony_diffusion.training.schedules import SCHEDULES, learning_rate_factor
from harmony_diffusion.training.validation import Triple, Validation, validate

logger = logging.getLogger("train_discriminative")

VALIDATION_SEED = 1
REFERENCES = 2048  # photographs whose foreground colours are transferred
PRECISIONS = ("no", "bf16")
# Settings that a run must share with the checkpoint it continues.
FIXED = (
    "model", "model_config", "freeze", "loss", "min_area", "raw_output", "loss_stride", "smoothness",
    "clean_background", "split", "filter", "subset_power", "resolution", "whole_frames", "quarter_turns",
    "seed", "teachers", "optimizer", "muon_layers", "muon_lr_factor", "learning_rate", "backbone_lr_factor",
    "adam_weight_decay", "adam_epsilon", "max_grad_norm", "lr_scheduler", "lr_warmup_steps",
    "lr_milestones", "lr_gamma", "lr_constant_epochs", "use_ema", "ema_decay", "mixed_precision",
)  # fmt: skip


class Data(NamedTuple):
    """Training samples, the maker of composites (None if the samples are composites), facts for the card."""

    listing: Listing
    samples: TrainingSet
    composer: SyntheticComposites | None
    facts: dict[str, object]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpWithDefaults)
    add_model_arguments(parser)
    add = add_data_arguments(parser)
    add("--subset_power", type=float, default=1.0, help="1: draw samples equally often; 0: draw subsets equally often")  # fmt: skip  # noqa: E501
    add("--whole_frames", type=float, default=WHOLE_FRAMES, help="share of samples that are not cropped")
    add("--quarter_turns", action="store_true", help="rotate half of the samples by 90, 180 or 270 degrees")
    add("--clean_background", action="store_true", help="copy the background of the real image")
    add = add_optimizer_arguments(parser, SCHEDULES, learning_rate=1e-3)
    add("--optimizer", choices=("adam", "adamw", "muon"), default="adam", help="muon: for the matrices of --muon_layers, AdamW for the rest")  # fmt: skip  # noqa: E501
    add("--muon_layers", nargs="*", default=[], metavar="PREFIX", help="linear layers to train with Muon")
    add("--muon_lr_factor", type=float, default=4.0, help="of the learning rate of these layers")
    add("--backbone_lr_factor", type=float, default=1.0, help="of the learning rate of a pretrained encoder")
    add("--lr_milestones", type=int, nargs="*", default=[], metavar="EPOCH", help="of the scheduler step")
    add("--lr_gamma", type=float, default=0.1, help="factor at each milestone")
    add("--lr_constant_epochs", type=int, default=0, help="before linear or cosine decay")
    add_run_arguments(parser, PRECISIONS)
    parser.set_defaults(
        resolution=256,
        num_validation_images=64,
        train_batch_size=16,
        num_train_epochs=120,
        lr_warmup_steps=0,
        adam_weight_decay=0.0,
        max_grad_norm=0.0,
        ema_decay=0.9995,
        checkpointing_steps=1000,
        validation_steps=1000,
    )
    args = parser.parse_args()
    check_shared_arguments(parser, args, PRECISIONS)
    if (args.optimizer == "muon") != bool(args.muon_layers):
        parser.error("--optimizer muon and --muon_layers belong together")
    if args.loss == "harmonizer" and args.teachers:
        parser.error("--teachers is for the losses fn_mse and fn_rmse")
    if args.loss == "harmonizer" and args.train_batch_size % 2:
        parser.error("--loss harmonizer needs an even --train_batch_size, half of it for each stream")
    return args


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("model and loss").add_argument
    add(
        "--model",
        choices=sorted(MODELS),
        required=True,
        metavar="NAME",
        help="see `harmony models`",
    )
    add("--model_config", type=json.loads, default={}, help="constructor arguments, as JSON")
    add("--pretrained_model", help="folder or name of the initial weights")
    add("--teachers", nargs="+", default=[], metavar="FOLDER", help="learn the mean result of these models, not the photographs")  # fmt: skip  # noqa: E501
    add("--imagenet_encoder", action="store_true", help="initialize the Lite0 encoder from ImageNet weights")
    add("--freeze", nargs="*", default=[], metavar="PREFIX", help="parameters that are not trained")
    add(
        "--loss",
        choices=("fn_mse", "fn_rmse", "harmonizer"),
        default="fn_mse",
        help="foreground-normalised squared error, its root, or the streams and dynamic loss of Harmonizer",
    )
    add("--min_area", type=float, default=100.0, help="A_min of FN-MSE, in pixels")
    add("--raw_output", action="store_true", help="score the output before the background is pasted back")
    add("--loss_stride", type=int, default=1, help="score every N-th pixel; for models with parameter maps")
    add("--smoothness", type=float, default=0.0, help="weight of the smoothness of parameter maps")
    add("--sync_batch_norm", action="store_true", help="compute batch norms over all processes")
    add("--channels_last", action="store_true", help="memory format of convolutions, faster on CPUs")
    add("--compile", action="store_true", help="with torch.compile")


def open_data(path: Path, split: str, args: argparse.Namespace, composer: SyntheticComposites | None) -> Data:
    """List a data set; the default `composer` transfers the colours of its own photographs."""
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
        photograph.record.get("licence_class", "unknown") for photograph in listing.photographs
    )
    facts["by class of licence"] = ", ".join(f"{name} {count}" for name, count in sorted(licences.items()))
    if composer is None:
        composer = SyntheticComposites(reference_colors(listing.photographs, REFERENCES, skip))
    photographs = PhotographSet(
        listing.photographs, args.resolution, weights, skip, args.quarter_turns, args.whole_frames
    )
    return Data(listing, photographs, composer, facts)


def warn_of_shared_files(trained: Data, held_out: Data) -> None:
    """Warn if validation data are training data: layouts without splits ignore `--split`."""
    first, second = (
        {s.composite for s in data.listing.samples} | {p.picture for p in data.listing.photographs}
        for data in (trained, held_out)
    )
    if shared := len(first & second):
        logger.warning("%d of the %d pictures to validate on are trained on, too", shared, len(second))
        trained.facts["validated on training pictures"] = f"{shared} of {len(second)}: the scores say little"


class Composed(NamedTuple):
    """A training batch: composite, the mask given to the model, real, and the exact mask of the pasting."""

    composite: Tensor
    mask: Tensor
    real: Tensor
    opacity: Tensor


def compose(items: Item, data: Data, args: argparse.Namespace, device: torch.device) -> Composed:
    """Make float images on the device, and composites from photographs."""
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


def prepare_batch(
    items: Item, data: Data, args: argparse.Namespace, device: torch.device, teachers: Teachers | None = None
) -> tuple[Any, ...]:
    """Make the arguments of the objective from a batch of the loader."""
    if args.loss != "harmonizer":
        composed = compose(items, data, args, device)
        if teachers is not None:
            composed = composed._replace(real=teachers(composed.composite, composed.mask, composed.opacity))
        # Composites with ground truth have exact masks, so soft masks need no extra opacity.
        return composed if data.composer is not None else composed[:3]
    fine, rest = ({name: values[part::2] for name, values in items.items()} for part in (0, 1))
    keys = fine["key"]
    real, mask = (fine[name].to(device, non_blocking=True).float() / 255 for name in ("real", "mask"))
    draws = KeyedDraws(keys)
    real = jitter(real, draws)
    if data.composer is not None:
        foreground, background, mask, _ = place(real, mask, draws, data.composer.placements)
        real = torch.lerp(background, foreground, mask)
    composite, targets = reversed_filters(real, mask, keys)
    coarse = compose(rest, data, args, device)[:3]
    pairs = zip((composite, mask, real), coarse, strict=True)
    return *(torch.cat(pair) for pair in pairs), targets


def validation_batches(data: Data, args: argparse.Namespace, device: torch.device) -> Iterator[Triple]:
    """Iterate over the validation batches, the same in every call."""
    view = KeyedView(data.samples, VALIDATION_SEED)
    count = min(args.num_validation_images, len(view))
    for begin in range(0, count, args.train_batch_size):
        items = [view[index] for index in range(begin, min(begin + args.train_batch_size, count))]
        yield Triple(*compose(torch.utils.data.default_collate(items), data, args, device)[:3])


def start_from(args: argparse.Namespace) -> ModelMixin:
    """Load the initial weights; iMRSF-DAM-GCT also accepts those of an iDIH."""
    given = load_model(args.pretrained_model).train()
    if isinstance(given, IDIH) and args.model == "imrsf_dam_gct":
        model = IMRSFDAMGCT(**args.model_config)
        fresh = model.start_from_idih(given.state_dict())
        logger.info("%d of %d tensors keep their random initial values", len(fresh), len(model.state_dict()))
        return model
    if not isinstance(given, model_class(args.model)):
        raise InputError(
            args.pretrained_model, f"holds weights of {type(given).__name__}, --model is {args.model}"
        )
    if isinstance(given, ColorGrid) and set(args.model_config) == {"encoder_size"}:
        return given.with_encoder_size(args.model_config["encoder_size"])
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


def train(args: argparse.Namespace, accelerator: Accelerator) -> None:
    device = accelerator.device
    data = open_data(args.data, args.split, args, None)
    if data.composer is not None:
        data.composer.to(device)
    held_out = None
    if args.validation_split:
        held_out = open_data(args.data, args.validation_split, args, data.composer)
        warn_of_shared_files(data, held_out)
    samples = TwoStreams(data.samples) if args.loss == "harmonizer" else data.samples
    batch = images_in_a_step(args, accelerator)
    steps_an_epoch = len(samples) / batch
    steps = args.max_train_steps or math.ceil(args.num_train_epochs * steps_an_epoch)

    model = build_model(args).to(device)
    objective = build_objective(model, args).train()
    teachers = Teachers(args.teachers, device) if args.teachers else None
    if args.compile:
        objective.compile()

    groups = parameter_groups(
        model,
        backbone_factor=args.backbone_lr_factor,
        muon_layers=args.muon_layers,
        muon_factor=args.muon_lr_factor,
    )

    def validate_model(model: ModelMixin) -> Validation:
        assert held_out is not None
        return validate(model, validation_batches(held_out, args, device))

    def write_model(folder: Path, model: ModelMixin, scores: Mapping[str, float]) -> None:
        (copy.deepcopy(model).half() if args.half else model).save_pretrained(folder)
        drop_local_paths(folder)
        origin = name_in_card(args.pretrained_model) if args.pretrained_model else "random weights"
        imagenet = "ImageNet weights of EfficientNet-Lite0 (Apache-2.0)"
        training = {
            "steps": steps,
            "images a step": batch,
            "resolution": args.resolution,
            "loss": args.loss,
            "seed": args.seed,
            "started from": imagenet if args.imagenet_encoder else origin,
        }
        if args.teachers:
            training["teachers"] = ", ".join(name_in_card(teacher) for teacher in args.teachers)
        command = launch_command()
        write_model_card(
            folder, args.model, command=command, training=training, data=data.facts, results=scores
        )

    train_model(
        args,
        accelerator,
        model=model,
        objective=objective,
        optimizer=build_optimizer(groups, args),
        samples=samples,
        steps=steps,
        settings={name: getattr(args, name) for name in FIXED},
        learning_rate=lambda step: learning_rate(args, step, steps, steps_an_epoch),
        make_inputs=lambda items: prepare_batch(items, data, args, device, teachers),
        validate=validate_model if held_out else None,
        write_model=write_model,
    )


def main() -> None:
    keep_freed_memory()
    run_script(train, parse_args(), can_shard=False)


if __name__ == "__main__":
    main()
