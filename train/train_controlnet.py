"""Train a ControlNet for the edges or for the colours of a foreground, beside a frozen inpainting model.

    accelerate launch train/train_controlnet.py --control high --data OPEN_IMAGES/manifest-train.csv \
        --captions OPEN_IMAGES/captions --output outputs/high

`--data` holds photographs with masks. Each photograph is its own target: the ControlNet sees the edges
(`high`) or the blurred colours (`low`) of the foreground, the inpainting model sees the background.
`--perturb_foreground` changes colour and light of the foreground before the control image is drawn.
Without it the control image already holds the target colours, and the ControlNet does not learn to
harmonize. It is on by default for `low`. `--beside FOLDER` adds a trained, frozen ControlNet of the other
kind for half of the samples, so that the new ControlNet learns what is missing.

OUTPUT receives `checkpoint-STEP` folders and, at the end, `model`: a ControlNet for diffusers with its
model card. To continue a killed run, start the same command again: it continues from the newest
checkpoint and ends with the same weights. The settings of the paper are in `train/recipes`.
"""

import argparse
import copy
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.models.controlnets.controlnet import ControlNetModel

from harmony_diffusion.diffusion.base_models import load_base_components, read_pipeline_config
from harmony_diffusion.diffusion.control_detectors import BACKENDS
from harmony_diffusion.diffusion.control_images import SIGMA
from harmony_diffusion.diffusion.control_settings import (
    CANNY_THRESHOLDS,
    ROLES,
    ControlSettings,
    load_control_settings,
)
from harmony_diffusion.diffusion.controlnets import CONTROL_INPUTS, check_controlnet, make_controlnet
from harmony_diffusion.errors import InputError
from harmony_diffusion.pipelines.stable_diffusion import StableDiffusionHarmonizationPipeline
from harmony_diffusion.process import keep_freed_memory
from harmony_diffusion.training.arguments import HelpWithDefaults
from harmony_diffusion.training.attention import enable_xformers
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

USAGE = """from harmony_diffusion.pipelines.assembly import assemble_pipeline

pipe = assemble_pipeline(BASE, {role}="PATH/TO/THIS/FOLDER")"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpWithDefaults)
    add = parser.add_argument_group("model").add_argument
    add("--control", choices=ROLES, required=True, help="high: edges; low: blurred colours")
    add("--pretrained_model_name_or_path", help="inpainting model (default: Stable Diffusion 2)")
    add("--controlnet_model_name_or_path", help="initial ControlNet (default: the encoder of the U-Net)")
    add("--beside", type=Path, help="frozen ControlNet of the other kind, for half of the samples")
    add("--control_input", choices=CONTROL_INPUTS, default="noisy_latents", help="4 channels, or all 9")
    add("--control_scale", type=float, default=1.0, help="lambda of equation 7")
    add("--conditioning_embedding", type=int, nargs="*", default=[16, 32, 96, 256], help="widths of the layers that embed the control image")  # fmt: skip  # noqa: E501
    add("--unit_embedding", action="store_true", help="initialize these layers to take effect at once")
    add("--canny_thresholds", type=float, nargs=2, default=CANNY_THRESHOLDS, metavar=("LOW", "HIGH"), help="of the edges, as gradients of 8-bit values per pixel (default: 100 200)")  # fmt: skip  # noqa: E501
    add("--canny_backend", choices=BACKENDS, default="opencv", help="program that draws the edges")
    add("--sigma", type=float, default=SIGMA, help="of the blur, in pixels at the training resolution")
    add_arguments(parser, learning_rate=5e-6)
    args = parser.parse_args()
    check_arguments(parser, args)
    if args.perturb_foreground is None:
        args.perturb_foreground = args.control == "low"
    return args


def load_other(args: argparse.Namespace, settings: ControlSettings) -> ControlSettings | None:
    """Read the control settings of `--beside`; return None without it.

    Raises:
        InputError: The ControlNet is of the same kind, or has another `--control_input`.
    """
    if args.beside is None:
        return None
    other = load_control_settings(args.beside)
    if other.role == settings.role or other.control_input != settings.control_input:
        raise InputError(
            "--beside",
            f"has the kind {other.role!r} and the input {other.control_input!r}",
            f"Give a ControlNet of the other kind with the input {settings.control_input!r}.",
        )
    return other


def build_controlnet(args: argparse.Namespace, unet: Any, vae: Any) -> ControlNetModel:
    torch.manual_seed(args.seed)
    if args.controlnet_model_name_or_path:
        controlnet = ControlNetModel.from_pretrained(args.controlnet_model_name_or_path).float()
        check_controlnet(controlnet, unet, args.control_input, args.controlnet_model_name_or_path)
    else:
        if len(args.conditioning_embedding) != len(vae.config.block_out_channels):
            widths = len(vae.config.block_out_channels)
            raise InputError(
                "--conditioning_embedding",
                f"has {len(args.conditioning_embedding)} widths",
                f"Give {widths} widths, one for each level of the autoencoder.",
            )
        controlnet = make_controlnet(
            unet,
            control_input=args.control_input,
            conditioning_embedding_out_channels=tuple(args.conditioning_embedding),
            unit_embedding=args.unit_embedding,
        )
    controlnet.requires_grad_(True).train()
    if args.gradient_checkpointing:
        controlnet.enable_gradient_checkpointing()
        unet.enable_gradient_checkpointing()
    return controlnet


def train(args: argparse.Namespace, accelerator: Accelerator) -> None:
    device = accelerator.device
    models = load_base_components(args.pretrained_model_name_or_path, dtype=torch.float32)
    image_channel = read_pipeline_config(args.pretrained_model_name_or_path).get("image_channel", "masked")
    settings = ControlSettings(
        args.control,
        args.control_input,
        canny_thresholds=tuple(args.canny_thresholds),
        sigma=args.sigma,
        canny_backend=args.canny_backend,
    )
    controlnet = build_controlnet(args, models["unet"], models["vae"]).to(device)
    other_settings, other = load_other(args, settings), None
    if other_settings:
        other = ControlNetModel.from_pretrained(args.beside).float()
        check_controlnet(other, models["unet"], args.control_input, args.beside)
        models[f"controlnet_{other_settings.role}"] = other
    frozen = [name for name, model in models.items() if isinstance(model, torch.nn.Module)]
    freeze(models, frozen, device, args.mixed_precision)

    if args.enable_xformers_memory_efficient_attention:
        enable_xformers([models["unet"], controlnet, *([other] if other else [])])
    data = open_split(args, args.split)
    held_out = open_split(args, args.validation_split, data.composer) if args.validation_split else None
    samples = training_samples(args, data, models, image_channel, accelerator)
    batch = images_in_a_step(args, accelerator)
    steps = args.max_train_steps or math.ceil(args.num_train_epochs * len(samples) / batch)

    def validate(controlnet: ControlNetModel) -> Validation:
        assert held_out is not None
        images, prompts = validation_images(held_out, args.num_validation_images)
        pipe = StableDiffusionHarmonizationPipeline(
            **models,
            **{f"controlnet_{args.control}": controlnet},
            **(other_settings.of_pipeline() if other_settings else {}) | settings.of_pipeline(),
            working_size=args.resolution,
            image_channel=image_channel,
        )
        options = {"num_inference_steps": args.validation_inference_steps}
        options["guidance_scale"] = args.validation_guidance_scale
        with evaluating(controlnet), autocast(args.mixed_precision, device):
            return validate_pipeline(pipe, images, prompts, **options)

    def write_model(folder: Path, controlnet: ControlNetModel, scores: Mapping[str, float]) -> None:
        (copy.deepcopy(controlnet).half() if args.half else controlnet).save_pretrained(folder)
        settings.save(folder)
        drop_local_paths(folder)
        training = {
            "base": name_in_card(args.pretrained_model_name_or_path or "Stable Diffusion 2 inpainting"),
            "started from": name_in_card(args.controlnet_model_name_or_path or "the encoder of the base"),
            **asdict(settings),
            "trained beside": name_in_card(args.beside or "none"),
            **training_facts(args, steps, batch),
        }
        title = f"ControlNet for the {'edges' if args.control == 'high' else 'colours'} of a foreground"
        facts = {"Training": training, "Data": data.facts}
        write_card(folder, title, USAGE.format(role=args.control), facts, scores)

    train_model(
        args,
        accelerator,
        model=controlnet,
        objective=DenoisingObjective(
            models["unet"],
            models["scheduler"],
            controlnet,
            args.control_input,
            args.control_scale,
            args.snr_gamma,
            other,
            PixelLoss(models["vae"]) if args.pixel_loss is not None else None,
        ),
        optimizer=build_optimizer(controlnet.parameters(), args),
        samples=samples,
        steps=steps,
        settings={name: getattr(args, name) for name in (*FIXED, "control_scale")}
        | {"control": str(settings), "beside": str(other_settings)}
        | ({"canny_backend": args.canny_backend} if args.canny_backend != "opencv" else {}),
        learning_rate=lambda step: learning_rate(args, step, steps),
        make_inputs=Conditioner(
            data,
            models,
            image_channel,
            settings.draw,
            args.proportion_empty_prompts,
            device,
            other_settings.draw if other_settings else None,
            args.pixel_loss,
        ).inputs,
        validate=validate if held_out else None,
        write_model=write_model,
    )


def main() -> None:
    keep_freed_memory()
    run_script(train, parse_args())


if __name__ == "__main__":
    main()
