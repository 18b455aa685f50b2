"""Parts of `train_controlnet.py` and `train_inpainting.py` around the training loop."""

import argparse
import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import default_collate

from harmony_diffusion.data.keyed_random import sample_key
from harmony_diffusion.data.photographs import parse_filters
from harmony_diffusion.data.training_set import Item, KeyedView, PhotographSet, TrainingSet
from harmony_diffusion.data.transforms import WHOLE_FRAMES
from harmony_diffusion.metrics.functional import fmse, mse, psnr
from harmony_diffusion.training.arguments import (
    add_data_arguments,
    add_optimizer_arguments,
    add_run_arguments,
    check_shared_arguments,
)
from harmony_diffusion.training.attention import FLAG
from harmony_diffusion.training.diffusion_data import DiffusionData, PrecomputedSet, open_data, precompute
from harmony_diffusion.training.diffusion_step import (
    Conditions,
    drops_other_control,
    drops_prompt,
    embed_prompts,
    encode_images,
    sample_noise,
    sample_timesteps,
)
from harmony_diffusion.training.model_card import diffusion_card_head, launch_command
from harmony_diffusion.training.pixel_loss import draw_pixel_weights
from harmony_diffusion.training.precision import DTYPES
from harmony_diffusion.training.schedules import learning_rate_factor
from harmony_diffusion.training.validation import Triple, Validation

logger = logging.getLogger(__name__)

# Names and meaning of diffusers: "constant" does not warm up.
SCHEDULES = ("constant", "constant_with_warmup", "linear", "cosine")
VALIDATION_SEED = 1
# Settings that a run must share with the checkpoint it continues.
FIXED = (
    "resolution", "split", "filter", "max_train_samples", "proportion_empty_prompts", "precompute",
    "perturb_foreground", "seed", "learning_rate", "lr_scheduler", "lr_warmup_steps", "use_8bit_adam",
    "adam_weight_decay", "adam_epsilon", "max_grad_norm", "use_ema", "ema_decay", "mixed_precision",
    "snr_gamma", "pixel_loss", "whole_frames", "no_mirror", "optimizer", "decoupled",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser, learning_rate: float) -> None:
    """Add the flags of both scripts of the diffusion method."""
    add = add_data_arguments(parser)
    add("--max_train_samples", type=int, help="use only the first N samples")
    add("--whole_frames", type=float, default=WHOLE_FRAMES, help="share of samples that are not cropped (the paper: 1)")  # fmt: skip  # noqa: E501
    add("--no_mirror", action="store_true", help="do not mirror half of the samples (the paper)")
    add("--captions", type=Path, help="captions by train/prepare_captions.py (default: empty prompts)")
    add("--caption_column", help="column of the data set with the prompts, replaces --captions")
    add("--proportion_empty_prompts", type=float, default=0.0, help="share of samples without their prompt")
    add("--perturb_foreground", action="store_const", const=True, help="change colour and light of the foreground in the composite, not in the target")  # fmt: skip  # noqa: E501
    add("--no_perturb_foreground", dest="perturb_foreground", action="store_const", const=False)
    add("--decoupled", action="store_const", const=True, help="also move objects, mirror backgrounds and change masks, as train_discriminative.py does")  # fmt: skip  # noqa: E501
    add("--precompute", type=int, default=0, metavar="VARIANTS", help="encode N crops of each photograph in advance (default: encode in each step)")  # fmt: skip  # noqa: E501
    add("--precomputed_dir", type=Path, help="folder of the encoded crops (default: OUTPUT/precomputed)")
    add = add_optimizer_arguments(parser, SCHEDULES, learning_rate)
    add("--optimizer", choices=("adam", "adamw"), default="adamw", help="adam: weight decay as part of the gradient, as in the paper; adamw: apart from it")  # fmt: skip  # noqa: E501
    add("--use_8bit_adam", action="store_true", help="needs bitsandbytes")
    add("--pixel_loss", type=float, metavar="SHARE", help="weight the error of each latent channel by its effect on the image, and decode this share of the samples")  # fmt: skip  # noqa: E501
    add("--snr_gamma", type=float, help="limit of the signal-to-noise ratio that weights timesteps, often 5")
    add(FLAG, action="store_true", help="attention by xformers, on CUDA devices")
    add = add_run_arguments(parser)
    add("--validation_inference_steps", type=int, default=20)
    add("--validation_guidance_scale", type=float, default=7.5)


def check_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Fill in the defaults that depend on other arguments; exit if arguments are invalid."""
    check_shared_arguments(parser, args)
    if args.use_8bit_adam and args.optimizer != "adamw":
        parser.error("--use_8bit_adam is AdamW; leave out --optimizer adam")
    if args.optimizer == "adamw":
        args.optimizer = "adamw_8bit" if args.use_8bit_adam else "adamw_fused"
    if args.captions and args.caption_column:
        parser.error("--captions and --caption_column: give one of them")
    if args.resolution < 64 or args.resolution % 64:
        parser.error("--resolution must be a multiple of 64, like the working size of the pipeline")
    if not 0 <= args.whole_frames <= 1:
        parser.error("--whole_frames must be in [0, 1]")
    if not 0 <= args.proportion_empty_prompts <= 1:
        parser.error("--proportion_empty_prompts must be in [0, 1]")
    if args.pixel_loss is not None and not 0 <= args.pixel_loss <= 1:
        parser.error("--pixel_loss must be in [0, 1]")
    if args.decoupled and args.perturb_foreground is False:
        parser.error("--decoupled and --no_perturb_foreground: give one of them")
    args.perturb_foreground = args.decoupled or args.perturb_foreground


def open_split(args: argparse.Namespace, split: str, composer: Any = None) -> DiffusionData:
    """List one split of the data set that the arguments name."""
    return open_data(
        args.data,
        split,
        args.resolution,
        filters=parse_filters(args.filter),
        captions=args.captions,
        caption_column=args.caption_column,
        perturb=args.perturb_foreground,
        decoupled=bool(args.decoupled),
        composer=composer,
        skip_bad=args.bad_samples == "skip",
        limit=args.max_train_samples if split == args.split else None,
        whole_frames=args.whole_frames,
        mirror=not args.no_mirror,
    )


class Conditioner:
    """Maker of the inputs of `DenoisingObjective` from a batch of the loader.

    Args:
        data: Source of the batches.
        models: `vae`, `tokenizer`, `text_encoder` and `scheduler`.
        image_channel: See `encode_images`.
        draw: Function that draws control images from composite and mask, or None.
        empty_share: Share of samples without their prompt.
        device: Device of the run.
        draw_other: `draw` of the other ControlNet, a frozen one, which sees half of the samples; or None.
        pixel_share: Share of samples that `PixelLoss` decodes, or None.
        last_share: Share of samples at the last timestep, or None.
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
        last_share: float | None = None,
    ) -> None:
        self.data, self.models, self.image_channel = data, models, image_channel
        self.draw, self.empty_share, self.device = draw, empty_share, device
        self.draw_other, self.pixel_share = draw_other, pixel_share
        self.last_share = last_share

    def inputs(self, items: Item) -> tuple[Conditions, Tensor, Tensor]:
        """Return the arguments of `DenoisingObjective`: conditions, noise and timesteps of a micro-batch."""
        conditions = self(items)
        noise = sample_noise(items["key"], conditions.latents)
        count = self.models["scheduler"].config.num_train_timesteps
        timesteps = sample_timesteps(items["key"], count, self.last_share)
        return conditions, noise, timesteps.to(self.device)

    @torch.no_grad()
    def __call__(self, items: Item) -> Conditions:
        """Return the conditions of a micro-batch."""
        keys = items["key"]
        dropped = drops_prompt(keys, self.empty_share)
        if "latents" in items:
            text = torch.where(dropped[:, None, None], items["empty_text"], items["text"]).to(self.device)
            names = ("latents", "latent_mask", "image_latents")
            latents, latent_mask, image_latents = (items[name].to(self.device) for name in names)
            composite, mask = (items[name].to(self.device).float() / 255 for name in ("composite", "mask"))
        else:
            prompts = [
                "" if drop else self.data.prompts[source]
                for source, drop in zip(items["source"].tolist(), dropped.tolist(), strict=True)
            ]
            text = embed_prompts(self.models["tokenizer"], self.models["text_encoder"], prompts)
            images = self.data.images(items, self.device)
            latents, latent_mask, image_latents = encode_images(
                self.models["vae"], images, self.image_channel
            )
            composite, mask = images.composite, images.mask
        pixels = draw_pixel_weights(keys, self.pixel_share).to(composite) if self.pixel_share else None
        controls = self.controls(keys, composite, mask)
        foreground = F.interpolate(mask, latents.shape[-2:], mode="area")
        return Conditions(latents, latent_mask, image_latents, text, *controls, pixels, foreground)

    def controls(
        self, keys: Tensor, composite: Tensor, mask: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return `control`, `other_control` and `other_scale` of the conditions."""
        control = self.draw(composite, mask) if self.draw else None
        if self.draw_other is None:
            return control, None, None
        shown = (~drops_other_control(keys, 0.5)).to(composite)[:, None, None, None]
        return control, self.draw_other(composite, mask), shown


def freeze(models: Mapping[str, Any], names: Sequence[str], device: torch.device, precision: str) -> None:
    """Move models that are not trained to a device, in the number format of `--mixed_precision`."""
    for name in names:
        # The autoencoders of Stable Diffusion overflow in float16.
        dtype = DTYPES["no" if name == "vae" and precision == "fp16" else precision]
        models[name].requires_grad_(False).eval()
        nn.Module.to(models[name], device, dtype)  # ModelMixin.to logs advice that does not apply


def training_samples(
    args: argparse.Namespace,
    data: DiffusionData,
    models: Mapping[str, Any],
    image_channel: str,
    accelerator: Accelerator,
) -> TrainingSet:
    """Return the training samples, encoded in advance with `--precompute`."""
    if not args.precompute:
        return data.samples
    folder = args.precomputed_dir or args.output / "precomputed"
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
    logger.info("%d samples and prompts encoded in advance", written)
    accelerator.wait_for_everyone()
    return PrecomputedSet(
        folder, cast(PhotographSet, data.samples), args.precompute
    )  # precompute raises otherwise


def learning_rate(args: argparse.Namespace, step: int, total: int) -> float:
    """Return the learning rate after `step` of `total` steps."""
    schedule = "constant" if args.lr_scheduler.startswith("constant") else args.lr_scheduler
    warmup = 0 if args.lr_scheduler == "constant" else args.lr_warmup_steps
    return args.learning_rate * learning_rate_factor(schedule, step, total, warmup=warmup, hold=warmup)


def validation_images(data: DiffusionData, count: int) -> tuple[Triple, list[str]]:
    """Return the images and prompts of the validation, the same in every call."""
    view = KeyedView(data.samples, VALIDATION_SEED)
    items = [view[index] for index in range(min(count, len(view)))]
    images = data.images(default_collate(items), torch.device("cpu"))
    return images, [data.prompts[int(item["source"])] for item in items]


@torch.no_grad()
def validate_pipeline(pipe: Any, images: Triple, prompts: Sequence[str], **options: Any) -> Validation:
    """Score a pipeline on images of its working size, with fixed seeds.

    Args:
        pipe: `StableDiffusionHarmonizationPipeline`.
        images: On the CPU.
        prompts: One for each image.
        options: Arguments of the pipeline call.

    Returns:
        Mean scores, and one row of composite, mask, harmonized and real for each image.
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
            context=10.0,  # the whole image
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
    return Validation(means, torch.cat(rows, 1))


@contextlib.contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Set modules to evaluation mode within a `with` block."""
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
    """Write the model card `FOLDER/README.md`.

    Args:
        folder: Folder of the weights.
        title: Title of the card.
        usage: Code example.
        facts: Facts by heading.
        scores: Scores on the validation images; empty without validation.
    """
    lines = [diffusion_card_head("diffusers-training"), f"# {title}", ""]
    lines += ["Trained with Harmony Diffusion.", "", "```python", usage, "```", ""]
    for heading, entries in facts.items():
        lines += [f"## {heading}", "", *(f"- {name}: {value}" for name, value in entries.items()), ""]
    lines += ["```", launch_command(), "```", "", "## Results", ""]
    lines += [f"- {name}: {value:.2f}" for name, value in scores.items()] or ["not run: no validation data."]
    (folder / "README.md").write_text("\n".join(lines) + "\n", "utf-8")


def training_facts(args: argparse.Namespace, steps: int, batch: int) -> dict[str, object]:
    """Return the facts on the training for the model card."""
    return {
        "steps": steps,
        "images a step": batch,
        "resolution": args.resolution,
        "whole pictures": f"{args.whole_frames:.0%}" + (", none mirrored" if args.no_mirror else ""),
        "optimizer": {"adam": "Adam", "adamw_fused": "AdamW", "adamw_8bit": "AdamW, 8-bit"}[args.optimizer],
        "learning rate": args.learning_rate,
        "foreground perturbed": "yes" if args.perturb_foreground else "no",
        "empty prompts": f"{args.proportion_empty_prompts:.0%}",
        "seed": args.seed,
    }
