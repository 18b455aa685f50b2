"""What the two training scripts of the diffusion method do alike around their loops."""

import argparse
import contextlib
import functools
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import default_collate

from harmony_diffusion.data.keyed_random import sample_key
from harmony_diffusion.data.photographs import parse_filters
from harmony_diffusion.data.training_set import Item, KeyedView, PhotographSet, TrainingSet
from harmony_diffusion.errors import HarmonyError, MissingDependencyError
from harmony_diffusion.metrics.functional import fmse, mse, psnr
from harmony_diffusion.training.diffusion_data import DiffusionData, PrecomputedSet, open_data, precompute
from harmony_diffusion.training.diffusion_step import (
    Conditions,
    drops_other_control,
    drops_prompt,
    embed_prompts,
    encode_images,
)
from harmony_diffusion.training.model_card import diffusion_card_head, launch_command
from harmony_diffusion.training.pixel_loss import draw_pixel_weights
from harmony_diffusion.training.schedules import learning_rate_factor
from harmony_diffusion.training.validation import Triple

logger = logging.getLogger(__name__)

# Names and meaning of diffusers: "constant" does not warm up.
SCHEDULES = ("constant", "constant_with_warmup", "linear", "cosine")
DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
VALIDATION_SEED = 1
# What a run that goes on from a checkpoint must have in common with the one that wrote it.
FIXED = (
    "resolution", "train_split", "filter", "max_train_samples", "proportion_empty_prompts", "precompute",
    "perturb_foreground", "seed", "learning_rate", "lr_scheduler", "lr_warmup_steps", "use_8bit_adam",
    "adam_beta1", "adam_beta2", "adam_weight_decay", "adam_epsilon", "max_grad_norm", "use_ema", "ema_decay",
    "mixed_precision", "snr_gamma", "pixel_loss",
)  # fmt: skip


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what says which data to train and validate on."""
    add = parser.add_argument_group("data").add_argument
    add("--train_data_dir", "--data", dest="train_data_dir", type=Path, required=True, help="photographs with masks (a folder with index.csv, Open Images or a manifest of it), or composites")  # fmt: skip  # noqa: E501
    add("--train_split", default="train")
    add(
        "--filter", nargs="*", action="extend", default=[], metavar="COLUMN=VALUE", help="photographs to take"
    )
    add("--max_train_samples", type=int, help="take the first so many only")
    add("--captions", type=Path, help="captions by train/prepare_captions.py; without any, prompts are empty")
    add("--caption_column", help="column of the data set that holds the prompts instead")
    add("--proportion_empty_prompts", type=float, default=0.0, help="share of samples without their prompt")
    add("--perturb_foreground", "--perturb-foreground", dest="perturb_foreground", action=argparse.BooleanOptionalAction, help="perturb colour and light of the composite, and not of the target")  # fmt: skip  # noqa: E501
    add("--resolution", type=int, default=512)
    add("--bad_samples", choices=("stop", "skip"), default="stop", help="what to do with unusable files")
    add("--precompute", type=int, default=0, metavar="VARIANTS", help="encode so many crops of each photograph beforehand, and train on these; 0: encode at each step")  # fmt: skip  # noqa: E501
    add("--precomputed_dir", type=Path, help="where they are kept (default: OUTPUT_DIR/precomputed)")
    add("--dataloader_num_workers", type=int, default=0)


def add_optimizer_arguments(parser: argparse.ArgumentParser, learning_rate: float) -> None:
    """Add what says how weights are updated."""
    add = parser.add_argument_group("optimizer").add_argument
    add("--train_batch_size", type=int, default=4, help="per process and micro-batch")
    add("--gradient_accumulation_steps", type=int, default=1)
    add("--gradient_checkpointing", action="store_true")
    add("--num_train_epochs", type=int, default=1)
    add("--max_train_steps", type=int, help="in place of --num_train_epochs")
    add("--learning_rate", type=float, default=learning_rate)
    add("--scale_lr", action="store_true", help="times the images of a step")
    add("--lr_scheduler", choices=SCHEDULES, default="constant")
    add("--lr_warmup_steps", type=int, default=500, help="optimizer steps, whatever the number of processes")
    add("--use_8bit_adam", action="store_true", help="needs bitsandbytes")
    add("--adam_beta1", type=float, default=0.9)
    add("--adam_beta2", type=float, default=0.999)
    add("--adam_weight_decay", type=float, default=1e-2)
    add("--adam_epsilon", type=float, default=1e-8)
    add("--pixel_loss", type=float, metavar="SHARE", help="count errors by what they do to the decoded picture: to first order, and for this share of the samples by decoding them")  # fmt: skip  # noqa: E501
    add("--snr_gamma", type=float, help="weigh timesteps by at most so much SNR; 5 is usual")
    add("--max_grad_norm", type=float, default=1.0, help="clip gradients to this norm; 0: do not")
    add("--use_ema", action="store_true", help="validate and publish a moving average of the weights")
    add("--ema_decay", type=float, default=0.9999)


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what says where a run is kept, watched and published."""
    add = parser.add_argument_group("run").add_argument
    add("--output_dir", "--output", dest="output_dir", type=Path, required=True)
    add("--seed", type=int, default=0)
    add("--mixed_precision", choices=tuple(DTYPES), help="default: as `accelerate launch` says, or no")
    add("--allow_tf32", action="store_true")
    add("--checkpointing_steps", type=int, default=500)
    add("--checkpoints_total_limit", type=int, default=3)
    add("--resume_from_checkpoint", default="latest", help="'latest' in OUTPUT_DIR, if any, or one by name")
    add("--validation_split", help="split of the data to validate on; default: no validation")
    add("--num_validation_images", type=int, default=4)
    add("--validation_steps", type=int, default=500)
    add("--validation_inference_steps", type=int, default=20)
    add("--validation_guidance_scale", type=float, default=7.5)
    add("--logging_steps", type=int, default=20)
    add("--report_to", choices=("none", "tensorboard"), default="none")
    add("--half", action="store_true", help="publish the weights in half precision")
    add("--push_to_hub", action="store_true")
    add("--hub_model_id", help="default: the name of OUTPUT_DIR")


def check_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse arguments that contradict one another, and fill in what others decide."""
    args.mixed_precision = args.mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if args.mixed_precision not in DTYPES:
        parser.error(f"--mixed_precision must be one of {', '.join(DTYPES)}, got {args.mixed_precision}")
    args.hub_model_id = args.hub_model_id or args.output_dir.resolve().name
    if args.captions and args.caption_column:
        parser.error("--captions and --caption_column: give one of them")
    if args.resolution < 64 or args.resolution % 64:
        parser.error("--resolution must be a multiple of 64, as the pipeline's working size is")
    if not 0 <= args.proportion_empty_prompts <= 1:
        parser.error("--proportion_empty_prompts must be in [0, 1]")
    if args.pixel_loss is not None and not 0 <= args.pixel_loss <= 1:
        parser.error("--pixel_loss must be in [0, 1]")


def open_split(args: argparse.Namespace, split: str, composer: Any = None) -> DiffusionData:
    """List a split of the data as the arguments say."""
    return open_data(
        args.train_data_dir,
        split,
        args.resolution,
        filters=parse_filters(args.filter),
        captions=args.captions,
        caption_column=args.caption_column,
        perturb=args.perturb_foreground,
        composer=composer,
        skip_bad=args.bad_samples == "skip",
        limit=args.max_train_samples if split == args.train_split else None,
    )


class Conditioner:
    """Makes the conditions of a step from what the loader returned.

    Args:
        data: Where the items come from.
        models: `vae`, `tokenizer` and `text_encoder`.
        image_channel: See `encode_images`.
        draw: Draws control images from composite and mask, or None.
        empty_share: Share of samples without their prompt.
        device: Where to compute.
        draw_other: Draws those of a ControlNet that is there already; half of the samples go without it.
        pixel_share: Share of samples to be decoded by `PixelLoss`.
    """

    def __init__(
        self,
        data: DiffusionData,
        models: Mapping[str, Any],
        image_channel: str,
        draw: Callable[[Tensor, Tensor], Tensor] | None,
        empty_share: float,
        device: torch.device,
        draw_other: Callable[[Tensor, Tensor], Tensor] | None = None,
        pixel_share: float | None = None,
    ) -> None:
        self.data, self.models, self.image_channel = data, models, image_channel
        self.draw, self.empty_share, self.device = draw, empty_share, device
        self.draw_other, self.pixel_share = draw_other, pixel_share

    @torch.no_grad()
    def __call__(self, items: Item) -> Conditions:
        """Return the conditions of a micro-batch."""
        keys = items["key"]
        dropped = drops_prompt(keys, self.empty_share)
        if "latents" in items:
            text = torch.where(dropped[:, None, None], items["empty_text"], items["text"]).to(self.device)
            names = ("latents", "latent_mask", "image_latents")
            latents, hole, image_latents = (items[name].to(self.device) for name in names)
            composite, mask = (items[name].to(self.device).float() / 255 for name in ("composite", "mask"))
        else:
            prompts = [
                "" if drop else self.data.prompts[source]
                for source, drop in zip(items["source"].tolist(), dropped.tolist(), strict=True)
            ]
            text = embed_prompts(self.models["tokenizer"], self.models["text_encoder"], prompts)
            images = self.data.images(items, self.device)
            latents, hole, image_latents = encode_images(self.models["vae"], images, self.image_channel)
            composite, mask = images.composite, images.mask
        pixels = draw_pixel_weights(keys, self.pixel_share).to(composite) if self.pixel_share else None
        controls = self.controls(keys, composite, mask)
        return Conditions(latents, hole, image_latents, text, *controls, pixels)

    def controls(
        self, keys: Tensor, composite: Tensor, mask: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return `control`, `other_control` and `other_scale` of the conditions."""
        control = self.draw(composite, mask) if self.draw else None
        if self.draw_other is None:
            return control, None, None
        there = (~drops_other_control(keys, 0.5)).to(composite)[:, None, None, None]
        return control, self.draw_other(composite, mask), there


def freeze(models: Mapping[str, Any], names: Sequence[str], device: torch.device, precision: str) -> None:
    """Bring models that are not trained to a device, in the number format of `--mixed_precision`."""
    for name in names:
        # The autoencoders of Stable Diffusion overflow in float16.
        dtype = DTYPES["no" if name == "vae" and precision == "fp16" else precision]
        models[name].requires_grad_(False).eval()
        nn.Module.to(models[name], device, dtype)  # ModelMixin.to gives advice on other cases


def training_samples(
    args: argparse.Namespace,
    data: DiffusionData,
    models: Mapping[str, Any],
    image_channel: str,
    accelerator: Any,
) -> TrainingSet:
    """Return the samples to train on: as they are, or encoded beforehand if `--precompute` says so."""
    if not args.precompute:
        return data.samples
    folder = args.precomputed_dir or args.output_dir / "precomputed"
    written = precompute(
        folder,
        data,
        models,
        variants=args.precompute,
        image_channel=image_channel,
        batch_size=args.train_batch_size,
        rank=accelerator.process_index,
        processes=accelerator.num_processes,
        seed=args.seed,
    )
    logger.info("%d samples and prompts computed beforehand", written)
    accelerator.wait_for_everyone()
    return PrecomputedSet(folder, cast(PhotographSet, data.samples), args.precompute)  # else it had raised


def build_optimizer(parameters: Sequence[nn.Parameter], args: argparse.Namespace) -> torch.optim.Optimizer:
    """Build AdamW, or its 8-bit variant.

    Raises:
        MissingDependencyError: bitsandbytes is asked for and not there.
    """
    kind: Any = functools.partial(torch.optim.AdamW, fused=True)
    if args.use_8bit_adam:
        try:
            from bitsandbytes.optim import AdamW8bit
        except ImportError as error:
            raise MissingDependencyError(
                '8-bit Adam needs bitsandbytes. Run `pip install "harmony-diffusion[8bit]"`.'
            ) from error
        kind = AdamW8bit
    return kind(
        parameters,
        lr=args.learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        weight_decay=args.adam_weight_decay,
        eps=args.adam_epsilon,
    )


def learning_rate(args: argparse.Namespace, step: int, total: int, batch: int) -> float:
    """Return the learning rate of a step."""
    schedule = "constant" if args.lr_scheduler.startswith("constant") else args.lr_scheduler
    warmup = 0 if args.lr_scheduler == "constant" else args.lr_warmup_steps
    factor = learning_rate_factor(schedule, step, total, warmup=warmup, hold=warmup)
    return args.learning_rate * factor * (batch if args.scale_lr else 1)


def finite_loss(losses: Mapping[str, Tensor], step: int) -> float:
    """Read the loss of a step, and stop a run that has gone astray before it saves its weights.

    Raises:
        HarmonyError: It is not finite.
    """
    value = losses["loss"].item()
    if not np.isfinite(value):
        raise HarmonyError(
            f"Step {step}: the loss is {value}. The last checkpoint is still good; lower --learning_rate or "
            "set --max_grad_norm."
        )
    return value


class Board:
    """Writes numbers and pictures to the log, to OUTPUT_DIR/validation and, if asked, to TensorBoard."""

    def __init__(self, folder: Path, report_to: str) -> None:
        self.folder, self.board = folder, None
        if report_to == "tensorboard":
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise MissingDependencyError(
                    'TensorBoard is not installed. Run `pip install "harmony-diffusion[train]"`.'
                ) from error
            self.board = SummaryWriter(str(folder / "tensorboard"))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Report numbers."""
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(name, value, step)

    def pictures(self, pictures: Tensor, step: int) -> None:
        """Report a sheet of pictures in [0, 1], `(3, H, W)`."""
        pixels = (pictures * 255).round().to(torch.uint8)
        (self.folder / "validation").mkdir(exist_ok=True)
        path = self.folder / "validation" / f"step-{step}.png"
        Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())).save(path)
        if self.board is not None:
            self.board.add_image("validation", pixels, step)


def validation_images(data: DiffusionData, count: int) -> tuple[Triple, list[str]]:
    """Return the same images with the same prompts whenever it is called."""
    view = KeyedView(data.samples, VALIDATION_SEED)
    items = [view[index] for index in range(min(count, len(view)))]
    images = data.images(default_collate(items), torch.device("cpu"))
    return images, [data.prompts[int(item["source"])] for item in items]


@torch.no_grad()
def validate_pipeline(
    pipe: Any, images: Triple, prompts: Sequence[str], **options: Any
) -> tuple[dict[str, float], Tensor]:
    """Score a pipeline on images of its working size, with seeds that are always the same.

    Args:
        pipe: `StableDiffusionHarmonizationPipeline`.
        images: On the CPU.
        prompts: One for each image.
        options: Of the call.

    Returns:
        Means over the images, and a row an image of composite, mask, harmonized and real.
    """
    pipe.set_progress_bar_config(disable=True)
    rows, scores = [], []
    for index, prompt in enumerate(prompts):
        composite, mask, real = (part[index] for part in images)
        pixels = (composite.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
        harmonized = pipe(
            pixels,
            (mask[0] * 255).round().to(torch.uint8).numpy(),
            prompt,
            generator=torch.Generator().manual_seed(sample_key(VALIDATION_SEED, 0, index)),
            context=10.0,  # the whole picture
            output_type="pt",
            **options,
        ).images[0]
        harmonized = harmonized.float().cpu()
        rows.append(torch.cat([composite, mask.expand_as(composite), harmonized, real], 2))
        levels = [(255 * image[None]).round() for image in (harmonized, composite, real)]
        values = {"mse": mse(levels[0], levels[2]), "psnr": psnr(levels[0], levels[2])}
        values["fmse"] = fmse(levels[0], levels[2], mask[None])
        values["composite_fmse"] = fmse(levels[1], levels[2], mask[None])
        scores.append({name: value.item() for name, value in values.items()})
    means = {name: float(np.mean([score[name] for score in scores])) for name in scores[0]}
    return means, torch.cat(rows, 1)


@contextlib.contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Put modules into evaluation mode within a `with` block."""
    modes = [module.training for module in modules]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.train(mode)


def write_card(
    folder: Path,
    title: str,
    usage: str,
    facts: Mapping[str, Mapping[str, object]],
    scores: Mapping[str, float],
) -> None:
    """Write `FOLDER/README.md`: what the weights are, how and on what they were trained.

    Args:
        folder: Folder of the weights.
        title: First line.
        usage: Code that uses them.
        facts: Facts by heading.
        scores: Scores on the validation images, or none.
    """
    lines = [diffusion_card_head("diffusers-training"), f"# {title}", ""]
    lines += ["Trained with Harmony Diffusion.", "", "```python", usage, "```", ""]
    for heading, entries in facts.items():
        lines += [f"## {heading}", "", *(f"- {name}: {value}" for name, value in entries.items()), ""]
    lines += ["```", launch_command(), "```", "", "## Results", ""]
    lines += [f"- {name}: {value:.2f}" for name, value in scores.items()] or ["not run: no validation data."]
    (folder / "README.md").write_text("\n".join(lines) + "\n", "utf-8")


def training_facts(args: argparse.Namespace, steps: int, batch: int) -> dict[str, object]:
    """Return what a card tells of the training."""
    return {
        "steps": steps,
        "images a step": batch,
        "resolution": args.resolution,
        "learning rate": args.learning_rate,
        "foreground perturbed": "yes" if args.perturb_foreground else "no",
        "empty prompts": f"{args.proportion_empty_prompts:.0%}",
        "seed": args.seed,
    }


def push_to_hub(folder: Path, repository: str) -> None:
    """Upload a folder to the Hub."""
    from huggingface_hub import HfApi

    hub = HfApi()
    hub.upload_folder(repo_id=hub.create_repo(repository, exist_ok=True).repo_id, folder_path=folder)
