"""Train or fine-tune the inpainting model that the ControlNets work beside.

    accelerate launch train/train_inpainting.py --data PATH/TO/PHOTOGRAPHS --caption_column label \
        --random_base mini --taef2 taef2.safetensors --output outputs/base
    accelerate launch train/train_inpainting.py --data PATH/TO/IHARMONY4 --image_channel composite \
        --output outputs/harmonizer

Only the U-Net is trained. It starts from Stable Diffusion 2 inpainting, from the model in
`--pretrained_model_name_or_path`, or from random weights (`--random_base`). With `--image_channel
composite` the U-Net sees the whole composite instead of the background, so that the pipeline harmonizes
directly (`init="composite"`, few steps, no guidance; DiffHarmony, Zhou et al., ICMR 2024). The
foregrounds of photographs are then perturbed, and the photograph is the target. Composites with ground
truth are used as they are. `--decoupled` also moves objects, mirrors backgrounds and changes masks, so that
pixels at the border do not show the true colours. `--zero_terminal_snr`, `--last_timestep` and `--color_loss`
train for the right colours in few steps: see `train/recipes/mini_harmonizer.sh`.

OUTPUT receives `checkpoint-STEP` folders and, at the end, `model`: a pipeline with its model card, for
`train_controlnet.py`, `assemble_pipeline` and `harmony`. To continue a killed run, start the same command
again: it continues from the newest checkpoint and ends with the same weights.
"""

import argparse
import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch.utils.data import default_collate

from harmony_diffusion.data.training_set import KeyedView, TrainingSet
from harmony_diffusion.diffusion.base_models import load_base_components
from harmony_diffusion.diffusion.random_weights import BASES, random_components
from harmony_diffusion.errors import InputError
from harmony_diffusion.models.tiny_autoencoder import load_taef2
from harmony_diffusion.pipelines.call_defaults import CALL_SETTINGS, parse_call
from harmony_diffusion.pipelines.saved_folders import open_in_single_precision
from harmony_diffusion.pipelines.stable_diffusion import IMAGE_CHANNELS, StableDiffusionHarmonizationPipeline
from harmony_diffusion.process import keep_freed_memory
from harmony_diffusion.training.arguments import HelpWithDefaults
from harmony_diffusion.training.attention import enable_xformers
from harmony_diffusion.training.color_loss import ColorLoss, ColorReadout
from harmony_diffusion.training.diffusion_run import (
    FIXED,
    Conditioner,
    add_arguments,
    check_arguments,
    evaluating,
    freeze,
    learning_rate,
    open_split,
    training_facts,
    training_samples,
    validate_pipeline,
    validation_images,
    write_card,
)
from harmony_diffusion.training.diffusion_step import DenoisingObjective
from harmony_diffusion.training.launching import run_script
from harmony_diffusion.training.loop import images_in_a_step, train_model
from harmony_diffusion.training.model_card import drop_local_paths, name_in_card
from harmony_diffusion.training.optimizers import build_optimizer
from harmony_diffusion.training.pixel_loss import PixelLoss
from harmony_diffusion.training.precision import autocast
from harmony_diffusion.training.validation import Validation

# Settings of this script alone that a run must share with the checkpoint it continues.
OWN = ("image_channel", "color_loss", "last_timestep", "zero_terminal_snr")
FITTED = 128  # images that `ColorReadout` is fitted to

USAGE = """from harmony_diffusion.pipelines.stable_diffusion import StableDiffusionHarmonizationPipeline

pipe = StableDiffusionHarmonizationPipeline.from_pretrained("PATH/TO/THIS/FOLDER")"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpWithDefaults)
    add = parser.add_argument_group("model").add_argument
    add("--pretrained_model_name_or_path", help="inpainting model (default: Stable Diffusion 2)")
    add("--random_base", choices=BASES, help="start from random weights of this size instead")
    add("--taef2", type=Path, help="weights of TAEF2, the autoencoder of a random base (default: random)")
    add("--image_channel", choices=IMAGE_CHANNELS, default="masked", help="what the U-Net sees: the background, or the whole composite")  # fmt: skip  # noqa: E501
    add("--color_loss", type=float, metavar="WEIGHT", help="add the error of the mean colours of the foreground; for TAEF2 and its kind")  # fmt: skip  # noqa: E501
    add("--last_timestep", type=float, metavar="SHARE", help="share of samples at the last timestep (default: all timesteps alike)")  # fmt: skip  # noqa: E501
    add("--zero_terminal_snr", action="store_const", const=True, help="train down to pure noise, so that few steps, or one, give the right colours; the pipeline gets DDIM")  # fmt: skip  # noqa: E501
    add("--average_mirrored", action="store_true", help="the pipeline averages each result with that of the mirrored picture")  # fmt: skip  # noqa: E501
    add("--opacity", type=float, default=1.0, help="share of the change that the pipeline keeps, in [0, 1]")
    add("--call", nargs="+", metavar="NAME=VALUE", default=[], help="arguments that the pipeline uses where a call leaves them out")  # fmt: skip  # noqa: E501
    add_arguments(parser, learning_rate=1e-5)
    args = parser.parse_args()
    check_arguments(parser, args)
    try:
        args.call = parse_call(args.call, CALL_SETTINGS)
    except InputError as error:
        parser.error(str(error))
    if args.random_base and args.pretrained_model_name_or_path:
        parser.error("--random_base and --pretrained_model_name_or_path: give one of them")
    if args.taef2 and not args.random_base:
        parser.error("--taef2 needs --random_base")
    if args.last_timestep is not None and not 0 <= args.last_timestep <= 1:
        parser.error("--last_timestep must be in [0, 1]")
    if not 0 <= args.opacity <= 1:
        parser.error("--opacity must be in [0, 1]")
    if args.color_loss is not None and args.color_loss < 0:
        parser.error("--color_loss must be at least 0")
    if args.perturb_foreground is None:
        args.perturb_foreground = args.image_channel == "composite"
    return args


def load_models(args: argparse.Namespace) -> dict[str, Any]:
    if args.random_base:
        vae = load_taef2(args.taef2) if args.taef2 else None
        components = random_components(args.random_base, seed=args.seed, vae=vae)
        names = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
        models = {name: components[name] for name in names}
    else:
        models = load_base_components(args.pretrained_model_name_or_path, dtype=torch.float32)
    if args.zero_terminal_snr:
        models["scheduler"] = zero_terminal_snr(models["scheduler"])
    return models


def zero_terminal_snr(scheduler: Any) -> DDIMScheduler:
    """Return DDIM with the noise schedule of a scheduler, rescaled so that the last timestep is pure noise.

    Lin et al., WACV 2024, https://arxiv.org/abs/2305.08891. Sampling starts from the last timestep.

    Raises:
        InputError: The U-Net predicts noise, which tells nothing about the image at the last timestep.
    """
    if scheduler.config["prediction_type"] != "v_prediction":
        raise InputError("zero_terminal_snr", "requires a U-Net that predicts velocity")
    return DDIMScheduler.from_config(
        scheduler.config,
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )


def make_color_loss(
    args: argparse.Namespace, models: dict[str, Any], samples: TrainingSet, conditioner: Conditioner
) -> ColorLoss | None:
    """Fit `ColorLoss` to the first training samples, the same in every run; None without `--color_loss`."""
    if args.color_loss is None:
        return None
    view = KeyedView(samples, args.seed)
    count = min(FITTED, len(view))
    parts = [
        conditioner(default_collate([view[index] for index in range(begin, min(begin + 8, count))])).latents
        for begin in range(0, count, 8)
    ]
    return ColorLoss(ColorReadout(models["vae"], torch.cat(parts)), args.color_loss)


def pipeline_settings(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "working_size": args.resolution,
        "image_channel": args.image_channel,
        "average_mirrored": args.average_mirrored,
        "opacity": args.opacity,
        "call_defaults": args.call,
    }


def save_pipeline(folder: Path, models: dict[str, Any], args: argparse.Namespace) -> None:
    """Save the pipeline, in half precision with `--half`."""
    dtype = torch.float16 if args.half else torch.float32
    saved = {
        name: torch.nn.Module.to(copy.deepcopy(model), dtype) if isinstance(model, torch.nn.Module) else model
        for name, model in models.items()
    }
    StableDiffusionHarmonizationPipeline(**saved, **pipeline_settings(args)).save_pretrained(folder)
    drop_local_paths(folder)
    open_in_single_precision(folder)


def train(args: argparse.Namespace, accelerator: Accelerator) -> None:
    device = accelerator.device
    models = load_models(args)
    unet = models["unet"].to(device).requires_grad_(True).train()
    if args.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    freeze(models, ("vae", "text_encoder"), device, args.mixed_precision)

    if args.enable_xformers_memory_efficient_attention:
        enable_xformers([unet])
    data = open_split(args, args.split)
    held_out = open_split(args, args.validation_split, data.composer) if args.validation_split else None
    samples = training_samples(args, data, models, args.image_channel, accelerator)
    batch = images_in_a_step(args, accelerator)
    steps = args.max_train_steps or math.ceil(args.num_train_epochs * len(samples) / batch)

    conditioner = Conditioner(
        data,
        models,
        args.image_channel,
        None,
        args.proportion_empty_prompts,
        device,
        pixel_share=args.pixel_loss,
        last_share=args.last_timestep,
    )

    def validate(unet: Any) -> Validation:
        assert held_out is not None
        images, prompts = validation_images(held_out, args.num_validation_images)
        pipe = StableDiffusionHarmonizationPipeline(**{**models, "unet": unet}, **pipeline_settings(args))
        options: dict[str, Any] = {"num_inference_steps": args.validation_inference_steps}
        options["guidance_scale"] = args.validation_guidance_scale
        if args.image_channel == "composite":
            options |= {"init": "composite", "guidance_scale": 1.0, "detail": "preserve"}
        with evaluating(unet), autocast(args.mixed_precision, device):
            return validate_pipeline(pipe, images, prompts, **options)

    def write_model(folder: Path, unet: Any, scores: Mapping[str, float]) -> None:
        save_pipeline(folder, {**models, "unet": unet}, args)
        origin = name_in_card(args.pretrained_model_name_or_path or "Stable Diffusion 2 inpainting")
        training = {
            "started from": "random weights" if args.random_base else origin,
            **training_facts(args, steps, batch),
            "image channel": args.image_channel,
            "predicts": models["scheduler"].config.prediction_type,
        }
        write_card(folder, "Inpainting model", USAGE, {"Training": training, "Data": data.facts}, scores)

    train_model(
        args,
        accelerator,
        model=unet,
        objective=DenoisingObjective(
            unet,
            models["scheduler"],
            snr_gamma=args.snr_gamma,
            pixel_loss=PixelLoss(models["vae"]) if args.pixel_loss is not None else None,
            color_loss=make_color_loss(args, models, samples, conditioner),
        ),
        optimizer=build_optimizer(unet.parameters(), args),
        samples=samples,
        steps=steps,
        settings={name: getattr(args, name) for name in (*FIXED, *OWN)},
        learning_rate=lambda step: learning_rate(args, step, steps),
        make_inputs=conditioner.inputs,
        validate=validate if held_out else None,
        write_model=write_model,
    )


def main() -> None:
    keep_freed_memory()
    run_script(train, parse_args())


if __name__ == "__main__":
    main()
